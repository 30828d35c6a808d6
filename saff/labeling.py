"""label_image(): the whole method for one image, on one screen."""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from saff import config as settings, edges, saliency, semantic
from saff.arrays import AnyArray, Features, Image, LabelMap, Mask, Matrix, PixelMap
from saff.averaging import weighted_mean
from saff.config import Config, Inference
from saff.encoding import (
    apparent_similarity,
    border_contrast,
    cheap_paths,
    class_vectors,
    context,
    feature_similarity,
    min_max_normalise,
    semantic_similarity,
)
from saff.errors import SettingsError
from saff.inference import WORKING_SIDE, predict
from saff.network.shipped import ShippedNetwork, load_shipped
from saff.outlines import LABEL_BAND, LABEL_WEIGHT, cut_outline
from saff.quality import mask_dice, mask_quality
from saff.resize import repeat, resize, shrink
from saff.superpixels import border_lengths, border_strength, pooling, region_means, slic
from saff.threads import single_thread
from saff.weighting import Fit, fit_weights

AFFINITY_LEVELS = slice(1, 3)  # of five: stride 16 and the first of stride 32, parts and objects
ONE_PASS = Inference(input_sides=(320,), horizontal_flip=False, refinement="none")


@dataclass(frozen=True, slots=True)
class Models:
    """The back ends of a run, loaded; the network where ``config.network_share`` is above 0."""

    encoder: semantic.Encoder
    saliency: saliency.Saliency
    edges: edges.Edges
    network: ShippedNetwork | None = None


@dataclass(frozen=True, slots=True)
class LabeledImage:
    """What the method says of one image.

    Attributes
    ----------
    confidence : float32 array of shape (H, W)
        In [0, 1].  ``scores`` painted on the superpixels; then, where configured, averaged with a
        network's (``config.network_share``) and with the outline cut anew (``config.outline``).
    pseudo_label : uint8 array of shape (H, W)
        1 where the confidence is at least 0.5, else 0.
    superpixels : int32 array of shape (H, W)
        Labels 0 .. R-1, none missing.
    features : float32 array of shape (R, 4)
        Columns S_s, S_s_con, S_a, S_a_con, in [0, 1].
    weights : float64 array of shape (4,)
        One per column of ``features``.
    bias : float
        Bias of the score.
    scores : float64 array of shape (R,)
        Confidence of each superpixel before these last steps, in [0, 1].  With ``paper()`` it is
        ``clip(features @ weights + bias, 0, 1)``; with ``spread_steps`` that, spread and
        normalised; with ``extra_superpixel_counts`` the mean over several cuts.
    seeds_foreground, seeds_background : int
        Superpixels that the weights were fitted to.
    fallback : str
        Empty when the fit was used as configured, otherwise what was used instead.
    quality : float
        How far the mask can be trusted, in [0, 1]; see :func:`saff.quality.mask_quality`.
    embedding : float32 array of shape (D,)
        What the image shows, for comparison with others: see :func:`embed`.
    """

    confidence: PixelMap
    pseudo_label: Mask
    superpixels: LabelMap
    features: AnyArray
    weights: Features
    bias: float
    scores: Features
    seeds_foreground: int
    seeds_background: int
    fallback: str
    quality: float
    embedding: AnyArray


@lru_cache(maxsize=4)
def load_models(config: Config) -> Models:
    """Load the back ends a configuration names, once per process.

    Raises
    ------
    SettingsError
        If one is unknown; its subclass WeightsError if weights are missing or damaged.
    """
    with single_thread():
        encoder = semantic.load(
            config.encoder,
            side=config.encoder_side,
            weights=config.encoder_weights,
            class_scores=uses_classes(config),
        )
        network = load_shipped() if config.network_share else None
        return Models(encoder, saliency.load(config.saliency), edges.load(config.edges), network)


def uses_classes(config: Config) -> bool:
    """Whether pseudo labels depend on an encoder's class scores."""
    return config.semantic_unary == "max_class" or config.semantic_affinity == "classes"


def label_image(
    image: Image, config: Config | None = None, models: Models | None = None
) -> LabeledImage:
    """Find the foreground of one image, without any annotation.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
        RGB.
    config : Config, optional
        Settings; without it ``saff.config.default()``.
    models : Models, optional
        Loaded back ends; without it those that ``config`` names.

    Returns
    -------
    labeled : LabeledImage
        Confidence map, pseudo label, and everything they come from, at the size of the image.

    Raises
    ------
    ValueError
        If the image is not uint8 (H, W, 3) with at least one pixel, or ``models`` lacks a network
        that ``config`` asks for.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
    config = config or settings.default()
    models = models or load_models(config)
    with single_thread():
        large = shrink(image, max(config.working_side, WORKING_SIDE))
        small = shrink(large, config.working_side)
        maps, edge_map = models.encoder(large), models.edges(small)
        finite("edges", edge_map, small)
        salient: saliency.Saliency = models.saliency
        if not isinstance(salient, saliency.RegionSaliency):
            salient = partial(_given, salient(small))  # once, however many cuts
        counts = (config.superpixel_count, *config.extra_superpixel_counts)
        fused, *others = [
            fuse(small, slic(small, count), maps, edge_map, salient, config) for count in counts
        ]
        scores = fused.scores
        if others:  # other cuts err elsewhere: the mean of all, on the regions of the first
            painted = np.mean([f.scores[f.superpixels] for f in (fused, *others)], axis=0)
            scores = np.clip(region_means(painted[None], fused.superpixels)[:, 0], 0.0, 1.0)
        area = np.bincount(fused.superpixels.ravel())
        superpixels = repeat(fused.superpixels, image.shape[:2])
        painted = scores.astype(np.float32)[fused.superpixels]
        finished, agreement = finish(painted, large, models, config)
        if finished is painted:  # regions of an enlarged map stay constant
            confidence = scores.astype(np.float32)[superpixels]
        else:
            confidence = resize(finished, image.shape[:2])
    return LabeledImage(
        confidence=confidence,
        pseudo_label=(confidence >= 0.5).astype(np.uint8),
        superpixels=superpixels,
        features=fused.features.astype(np.float32),
        weights=fused.fit.weights,
        bias=fused.fit.bias,
        scores=scores,
        seeds_foreground=fused.fit.seeds_foreground,
        seeds_background=fused.fit.seeds_background,
        fallback=fused.fit.fallback,
        quality=mask_quality(fused.features, scores, area) * agreement,
        embedding=embed(maps),
    )


def embed(maps: semantic.SemanticMaps) -> AnyArray:
    """Root mean square of an encoder's last feature level over an image, with L2 norm 1.

    The dot product of two is their cosine similarity.  The root mean square tells altered copies
    from other images more clearly than the mean does, which counts where nothing is, too.

    Parameters
    ----------
    maps : SemanticMaps
        What the encoder gives.

    Returns
    -------
    embedding : float32 array of shape (D,)
        D is 0 for an encoder without feature levels; 0 everywhere if the level is.

    Examples
    --------
    >>> level = np.array([[[3.0, 3.0]], [[0.0, 32**0.5]]], np.float32)
    >>> [round(float(x), 3) for x in embed(semantic.SemanticMaps(level[:0], (level,)))]
    [0.6, 0.8]
    """
    if not maps.levels:
        return np.zeros(0, np.float32)
    pooled = np.sqrt(np.square(maps.levels[-1]).mean(axis=(1, 2), dtype=np.float64))
    embedding: AnyArray = (pooled / (np.linalg.norm(pooled) or 1.0)).astype(np.float32)
    return embedding


@lru_cache(maxsize=4)
def embedding_size(config: Config) -> int:
    """Numbers of an embedding.

    Raises
    ------
    SettingsError
        If the encoder has no feature levels.
    """
    size = len(embed(load_models(config).encoder(np.zeros((32, 32, 3), np.uint8))))
    if not size:
        raise SettingsError(
            f"encoder {config.encoder!r} gives no feature levels, so that there is no embedding; "
            "leave --keep embedding out"
        )
    return size


def finish(
    confidence: PixelMap, image: Image, models: Models, config: Config
) -> tuple[PixelMap, float]:
    """Average a map with the network's, and cut its outline anew.

    Parameters
    ----------
    confidence : float32 array of shape (H, W)
        In [0, 1].
    image : uint8 array of shape (H', W', 3)
        RGB, in the size of the map or larger.
    models, config
        As for :func:`label_image`.

    Returns
    -------
    finished : float32 array
        In [0, 1], of the size of the image where its outline was cut, else of the map; the map
        itself where nothing is to be done.
    agreement : float
        How far both agree with the mask that comes of them: the product of two Dice coefficients,
        in [0, 1]; 1 without a network.
    """
    if not config.network_share:
        if config.outline == "graph_cut":
            enlarged = resize(confidence, image.shape[:2])
            return cut_outline(enlarged, image, LABEL_WEIGHT, LABEL_BAND), 1.0
        return confidence, 1.0
    if models.network is None:
        raise ValueError(f"network_share is {config.network_share}, but models has no network")
    how = replace(ONE_PASS, zoom_share=config.zoom_share)
    predicted = resize(predict(models.network.network, image, how), confidence.shape)
    finished = weighted_mean(confidence, predicted, config.network_share)
    if config.outline == "graph_cut":
        finished = cut_outline(resize(finished, image.shape[:2]), image)
    mask = resize(finished, confidence.shape) >= 0.5
    agreement = mask_dice(confidence >= 0.5, mask) * mask_dice(predicted >= 0.5, mask)
    return finished, agreement


def _given(pixels: PixelMap, image: Image) -> PixelMap:
    """A map that has been computed before, as a back end."""
    return pixels


class Fused(NamedTuple):
    """One cut of an image and what the method says of its regions; see LabeledImage."""

    superpixels: LabelMap
    features: Features
    fit: Fit
    scores: Features


def fuse(
    image: Image,
    superpixels: LabelMap,
    maps: semantic.SemanticMaps,
    edge_map: PixelMap,
    back_end: saliency.Saliency,
    config: Config,
) -> Fused:
    """Encode and weigh the superpixels of one cut: Eq. 1 to 6."""
    unary_s, similarity_s = encode_semantics(maps, superpixels, config)
    unary_a = min_max_normalise(region_saliency(back_end, image, superpixels))
    similarity_a = encode_edges(edge_map, superpixels, config)
    context_s = min_max_normalise(
        context(similarity_a, unary_s)
    )  # Eq. 4: semantics over apparent neighbours
    context_a = min_max_normalise(
        context(similarity_s, unary_a)
    )  # Eq. 3: saliency over semantic ones
    features = np.stack([unary_s, context_s, unary_a, context_a], axis=1)
    fit = fit_image(features, similarity_s, config)
    scores = fit.score(features)  # Eq. 5
    for _ in range(config.spread_steps):
        scores = min_max_normalise(context(similarity_s, scores))
    return Fused(superpixels, features, fit, scores**config.gamma)


def encode_semantics(
    maps: semantic.SemanticMaps, superpixels: LabelMap, config: Config
) -> tuple[Features, Matrix]:
    """S_s and M_s of each superpixel: (R,) in [0, 1] and (R, R), >= 0."""
    refuse_missing(maps, config)
    pool = Pooling(superpixels)
    levels = [pool(level) for level in maps.levels]
    vectors: Features | None = None
    if uses_classes(config):
        vectors = class_vectors(pool(maps.scores), config.temperature)
    if config.semantic_unary == "max_class" and vectors is not None:
        unary = min_max_normalise(vectors.max(axis=1))
    elif config.semantic_unary == "attention" and maps.attention is not None:
        unary = min_max_normalise(pool(maps.attention[None])[:, 0])
    else:
        unary = border_contrast(levels, border_lengths(superpixels))
    if config.semantic_affinity == "classes" and vectors is not None:
        return unary, semantic_similarity(vectors)  # Eq. 1
    area = np.bincount(superpixels.ravel())  # a large region speaks for each of its pixels
    similar = feature_similarity(levels[AFFINITY_LEVELS] or levels, config.affinity_power)
    return unary, similar * area


def refuse_missing(maps: semantic.SemanticMaps, config: Config) -> None:
    """Refuse settings that need what the encoder does not give."""
    used = {config.semantic_unary, config.semantic_affinity}
    gives = {
        "class scores": (len(maps.scores) > 0, {"max_class", "classes"}),
        "feature levels": (len(maps.levels) > 0, {"border_contrast", "features"}),
        "attention": (maps.attention is not None, {"attention"}),
    }
    for what, (there, users) in gives.items():
        if not there and used & users:
            others = [name for name, (has, _) in gives.items() if has]
            raise SettingsError(
                f"encoder {config.encoder!r} gives {' and '.join(others) or 'nothing'} but no "
                f"{what}; class scores serve semantic_unary max_class and semantic_affinity "
                "classes, feature levels border_contrast and features, attention attention"
            )


class Pooling:
    """Averages coarse maps over the superpixels of an image, one set of weights per grid size.

    Parameters
    ----------
    superpixels : int32 array of shape (H, W)
        Labels 0 .. R-1.
    """

    def __init__(self, superpixels: LabelMap) -> None:
        self.superpixels = superpixels
        self.weights: dict[tuple[int, int], AnyArray] = {}

    def __call__(self, grid: AnyArray) -> AnyArray:
        """Average each channel over each superpixel: float32 (D, h, w) to (R, D)."""
        size = (grid.shape[1], grid.shape[2])
        if size not in self.weights:
            self.weights[size] = pooling(self.superpixels, size).astype(np.float32)
        pooled: AnyArray = self.weights[size] @ grid.reshape(len(grid), -1).T
        return pooled


def encode_edges(edge_map: PixelMap, superpixels: LabelMap, config: Config) -> Matrix:
    """M_a of each pair of superpixels: (R, R) in [0, 1].

    E(i, j) counts a border of the image's average strength as 1, whatever the edge map's unit.
    """
    adjacency, strength = border_strength(edge_map, superpixels)
    average = strength.mean() if strength.any() else 1.0
    count, scale = int(superpixels.max()) + 1, config.edge_scale
    return apparent_similarity(cheap_paths(adjacency, strength / average, count, scale), scale)


def region_saliency(back_end: saliency.Saliency, image: Image, superpixels: LabelMap) -> Features:
    """Mean saliency of each superpixel: (R,), sharing the superpixels where the back end can."""
    if isinstance(back_end, saliency.RegionSaliency):
        pixels = back_end.on_regions(image, superpixels)
    else:
        pixels = back_end(image)
    finite("saliency", pixels, image)
    return region_means(pixels[None], superpixels)[:, 0]


def finite(kind: str, pixels: PixelMap, image: Image) -> None:
    """Refuse a back end's map that has not the image's size, or NaN or infinity."""
    if np.shape(pixels) != image.shape[:2]:
        raise ValueError(
            f"the {kind} back end must give {image.shape[:2]}, the image's size, got shape "
            f"{np.shape(pixels)}"
        )
    if not np.isfinite(pixels).all():
        raise ValueError(f"the {kind} back end gave NaN or infinity, expected [0, 1]")


def fit_image(features: Features, similarity_s: Matrix, config: Config) -> Fit:
    """Adaptive weights of one image: seeds as configured, then Eq. 6."""
    evidence = features[:, 0], features[:, 2]  # S_s and S_a
    if config.seeds == "consensus":
        prior_score = np.clip(features @ np.asarray(config.prior), 0.0, 1.0)
        consensus = min_max_normalise(context(similarity_s, prior_score))
        evidence = consensus, consensus  # the geometric mean of both is the consensus itself
    return fit_weights(
        features,
        *evidence,
        background_below=config.background_below,
        foreground_above=config.foreground_above,
        balance=config.balance,
        prior=np.asarray(config.prior),
        prior_strength=config.prior_strength,
    )
