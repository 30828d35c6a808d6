"""Settings of a run: published and recommended values, JSON in and out, digest.

pydantic checks types and ranges; what it finds wrong becomes one message of a SettingsError.
"""

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from saff.errors import SettingsError

T = TypeVar("T")
RENAMED = {  # earlier names of settings
    "more_superpixels": "extra_superpixel_counts",
    "spreads": "spread_steps",
    "training.side": "training.max_side",
    "training.scale": "training.scale_range",
    "training.crop": "training.crop_size",
    "training.batch": "training.batch_size",
    "training.accumulation": "training.gradient_accumulation_steps",
    "training.labels": "training.targets",
    "training.doubt": "training.ignore_margin",
    "training.rate": "training.learning_rate",
    "training.head_rate": "training.head_learning_rate_factor",
    "training.bias_rate": "training.bias_learning_rate_factor",
    "training.power": "training.poly_power",
    "training.warmup": "training.warmup_steps",
    "training.average": "training.ema_decay",
    "training.checkpoint_every": "training.checkpoint_interval",
    "inference.sides": "inference.input_sides",
    "inference.mirror": "inference.horizontal_flip",
}


def _checked(kind: type[T]) -> type[T]:
    """Have pydantic check the settings of a dataclass, however an instance is made."""
    strictly = ConfigDict(strict=True, extra="forbid")
    made: Any = pydantic_dataclass(kind, frozen=True, kw_only=True, config=strictly)
    check = made.__init__

    @functools.wraps(check)
    def init(self: Any, /, **values: Any) -> None:
        try:
            check(self, **values)
        except ValidationError as error:
            raise SettingsError(_message(made, values, error)) from None

    made.__init__ = init
    return made  # type: ignore[no-any-return]


def _message(kind: Any, values: dict[str, Any], error: ValidationError) -> str:
    """Say of each wrong setting what came and what was expected."""
    prefix = f"{kind.__name__.lower()}.".removeprefix("config.")
    strange, wrong = [], {}
    for found in error.errors(include_url=False):
        cause, context, name = found["type"], found.get("ctx", {}), str([*found["loc"], ""][0])
        if cause == "unexpected_keyword_argument":
            strange.append(prefix + name)
        elif cause == "value_error":  # a message of our own
            wrong[name] = str(context["error"])
        else:
            described = kind.__pydantic_fields__[name].description or "an object of settings"
            expected = context.get("expected", described)  # the choices of a Literal
            wrong[name] = f"{prefix}{name} must be {expected}, got {values[name]!r}"
    lines = [f"unknown setting {n}; it is called {RENAMED[n]} now" for n in strange if n in RENAMED]
    if unknown := sorted(set(strange) - set(RENAMED)):
        known = ", ".join(sorted(entry.name for entry in dataclasses.fields(kind)))
        lines.append(
            f"unknown setting{'s' * (len(unknown) > 1)} {', '.join(unknown)}; known: {known}"
        )
    return "; ".join([*lines, *wrong.values()])


def _section(kind: Any) -> BeforeValidator:
    return BeforeValidator(lambda value: kind(**value) if isinstance(value, dict) else value)


# Types of settings; a message gives their description.
Flag = Annotated[bool, Field(description="true or false")]
Text = Annotated[str, Field(description="text")]
Weights = Annotated[str | None, Field(description="text or null")]
Whole = Annotated[int, Field(ge=0, description="a whole number of at least 0")]
Count = Annotated[int, Field(ge=1, description="a whole number of at least 1")]
Number = Annotated[  # -0.0 + 0.0 is 0.0: equal settings have equal digests
    float,
    Field(allow_inf_nan=False, description="a finite number"),
    AfterValidator(lambda value: float(value) + 0.0),
]
Positive = Annotated[Number, Field(gt=0, description="a finite number above 0")]
NotNegative = Annotated[Number, Field(ge=0, description="a finite number of at least 0")]
Margin = Annotated[Number, Field(ge=0, le=0.5, description="a number in [0, 0.5]")]
Share = Annotated[Number, Field(ge=0, le=1, description="a number in [0, 1]")]
Decay = Annotated[Number, Field(ge=0, lt=1, description="a number in [0, 1)")]
FromList = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Range = Annotated[tuple[Number, Number], Field(description="a list of 2 finite numbers"), FromList]
FourNumbers = Annotated[
    tuple[Number, Number, Number, Number], Field(description="a list of 4 finite numbers"), FromList
]
Sides = Annotated[
    tuple[Count, ...],
    Field(min_length=1, description="a list of one or more whole numbers of at least 1"),
    FromList,
]
SpreadSteps = Annotated[int, Field(ge=0, le=100, description="a whole number from 0 to 100")]
SuperpixelCount = Annotated[  # similarities are (R, R): 128 MiB each at 4096
    int, Field(ge=1, le=4096, description="a whole number from 1 to 4096")
]
SuperpixelCounts = Annotated[
    tuple[SuperpixelCount, ...],
    Field(description="a list of whole numbers from 1 to 4096"),
    FromList,
]


@_checked
@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network learns from labels."""

    network: Text = "efficientnet_lite2_unet"
    """Network, a name that ``saff.network.load`` knows, or ``package.module:factory``."""
    network_weights: Weights = "shipped"
    """Weights to start from: "shipped" for the whole network that comes with saff, a file or URI of
    the trunk's weights, or null for the trunk's published ImageNet weights."""
    frozen_stages: Whole = 2
    """Number of the trunk's first stages that are not trained: edges and colours."""
    max_side: Count = 512
    """Longer side in pixels to which larger images are shrunk before anything else."""
    scale_range: Range = (0.6, 1.2)
    """Smallest and largest factor by which a sample is scaled, drawn log-uniformly."""
    crop_size: Count = 320
    """Side of the square that the network sees, in pixels."""
    batch_size: Count = 8
    """Samples per step, over all workers."""
    gradient_accumulation_steps: Count = 1
    """Parts that a worker's share of a batch is computed in, one after the other; saves memory."""
    steps: Count = 600
    """Steps of the optimiser."""
    targets: Literal["hard", "soft"] = "hard"
    """Targets: the confidence binarised at 0.5 (published), or the confidence itself."""
    ignore_margin: Margin = 0.1
    """Distance to 0.5 below which a confidence is left out of the loss; in [0, 0.5]."""
    paste_probability: Share = 0.4
    """Probability that the foreground of another image is pasted onto a sample; in [0, 1]."""
    color_jitter: Flag = True
    """Change colours, and blur some samples, at random."""
    pseudo_label_share: Share = 0.4
    """Share of the pseudo label in refreshed labels; the rest is a network's prediction; in
    [0, 1].  A run refreshes its labels before each training but the first from ImageNet."""

    optimiser: Literal["sgd", "adamw"] = "adamw"
    """SGD with momentum (published), or AdamW, which needs fewer steps."""
    learning_rate: Positive = 1e-4
    """Learning rate of the trunk's weights at the start."""
    head_learning_rate_factor: NotNegative = 10.0
    """Factor on ``learning_rate`` for the layers that start from random numbers."""
    bias_learning_rate_factor: NotNegative = 1.0
    """Factor on the learning rate of a layer's weights for its biases, which never decay."""
    poly_power: NotNegative = 0.9
    """Power of the poly schedule: ``learning_rate * (1 - step / steps) ** poly_power``."""
    warmup_steps: Whole = 30
    """Steps in which the learning rate rises from 0 to its value."""
    momentum: Decay = 0.9
    """Momentum of SGD, or the decay of AdamW's first moment; in [0, 1)."""
    weight_decay: NotNegative = 0.01
    """Weight decay; biases have none."""
    ema_decay: Decay = 0.99
    """Decay of the running average of the weights that becomes the result; 0: the last weights."""
    bfloat16: Flag = True
    """Compute in bfloat16 on a GPU that has it."""

    seed: Whole = 0
    """Seed of the new layers, the order of the images and the random crops."""
    checkpoint_interval: Count = 100
    """Steps between checkpoints."""
    keep_checkpoints: Count = 2
    """Number of checkpoints that are kept; older ones are removed."""

    def __post_init__(self) -> None:
        """Refuse a range that is empty."""
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            got = list(self.scale_range)
            raise SettingsError(f"training.scale_range must be 0 < low <= high, got {got}")


@_checked
@dataclass(frozen=True, kw_only=True)
class Inference:
    """How a trained network predicts."""

    input_sides: Sides = (320, 448)
    """Longer sides of the network's input in pixels; the predictions are averaged."""
    horizontal_flip: Flag = True
    """Average with the prediction for the image flipped from left to right."""
    zoom_share: Share = 0.45
    """Weight of a second look, in which the rectangle that holds the foreground is the whole input,
    at one of the sides, and of a third at each of several objects; in [0, 1], 0: the
    first look alone (published)."""
    refinement: Literal["none", "superpixels", "guided", "graph_cut"] = "graph_cut"
    """Last step: nothing, the mean over superpixels, a guided filter along the edges of the image,
    or the best cut of its colours near the outline (``saff.outlines``)."""
    foreground_found_above: Share = 0.92
    """Mean confidence of the thousandth of all pixels that has most of it, in the network's own map
    before any refinement, below which an image counts as one without any foreground and its mask is
    empty; in [0, 1], 0 leaves every mask as it is.  Chosen for the network that comes with saff."""
    pseudo_label_share: Share = 0.35
    """Weight of the image's own pseudo label in the prediction, a mean; 0: the network alone
    (published), in about half the time."""
    max_pixels: Count = 100_000_000
    """Images whose header announces more pixels are refused before decoding."""


@_checked
@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides what a mask looks like; equal settings give equal masks."""

    encoder: Text = "efficientnet_lite0"
    """Semantic encoder, a name that ``saff.semantic.load`` knows."""
    encoder_weights: Weights = None
    """File or URI of the encoder's weights; null means the published ones."""
    encoder_side: Count = 512
    """Longer side of the encoder's input, in pixels."""
    saliency: Text = "rbd"
    """Saliency back end, a name that ``saff.saliency.load`` knows."""
    edges: Text = "gradient"
    """Edge back end, a name that ``saff.edges.load`` knows."""
    superpixel_count: SuperpixelCount = 400
    """Wanted number of superpixels per image."""
    extra_superpixel_counts: SuperpixelCounts = ()
    """Further cuts of the image, whose confidence is averaged with that of the first."""
    working_side: Count = 320
    """Longer side in pixels at which larger images are cut into superpixels; the map is enlarged
    again.  The encoder has a side of its own."""
    max_pixels: Count = 100_000_000
    """Images whose header announces more pixels are refused before decoding."""

    temperature: Positive = 10.0
    """Temperature of the softmax that turns class scores into semantic vectors; above 0."""
    semantic_unary: Literal["max_class", "border_contrast", "attention"] = "border_contrast"
    """S_s: the strongest class (published), how unlike the image border the features are, or a
    transformer's attention."""
    semantic_affinity: Literal["classes", "features"] = "features"
    """M_s: shared class probability (Eq. 1), or similarity of the encoder's features."""
    affinity_power: Positive = 4.0
    """Exponent of the feature similarity; larger spreads over fewer, more similar regions."""
    edge_scale: NotNegative = 3.5
    """w_E of Eq. 2."""

    background_below: Number = 0.3
    """Superpixels whose evidence is below are background seeds; in [0, 1]."""
    foreground_above: Number = 0.7
    """Superpixels whose evidence is above are foreground seeds; in [0, 1]."""
    seeds: Literal["geometric_mean", "consensus"] = "consensus"
    """Evidence: sqrt(S_s S_a) (published), or the prior score spread over semantic neighbours."""
    balance: Flag = True
    """Give both classes of seeds the same weight."""
    prior: FourNumbers = (0.4, 0.4, 0.1, 0.1)
    """Weights of S_s, S_s_con, S_a, S_a_con that hold for images in general."""
    prior_strength: NotNegative = 10.0
    """Pull of the fit towards the prior; 0 is the published least squares."""
    spread_steps: SpreadSteps = 2
    """Times the score is spread over semantic neighbours, as Eq. 3 spreads saliency."""
    outline: Literal["none", "graph_cut"] = "graph_cut"
    """Last step: nothing (published), or the best cut of the image's colours near the outline."""
    gamma: Positive = 1.5
    """Exponent of the score, spread or not: puts the best single threshold at 0.5."""
    network_share: Share = 0.5
    """Weight of the network that comes with saff in the confidence, a geometric mean; 0: none
    (published)."""
    zoom_share: Share = 0.45
    """Weight of that network's second look, as ``inference.zoom_share``; 0: none."""

    training: Annotated[Training, _section(Training)] = field(default_factory=Training)
    """How the network learns; does not decide what pseudo labels look like."""
    inference: Annotated[Inference, _section(Inference)] = field(default_factory=Inference)
    """How the network predicts."""

    def __post_init__(self) -> None:
        """Refuse thresholds that leave no room between them."""
        low, high = self.background_below, self.foreground_above
        if not 0 <= low <= high <= 1:
            wanted = "0 <= background_below <= foreground_above <= 1"
            raise SettingsError(f"expected {wanted}, got {low} and {high}")

    def to_json(self) -> str:
        """Write as JSON, one field per line."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def labeling(self) -> dict[str, Any]:
        """Give the settings that pseudo labels depend on, as JSON holds them."""
        values = json.loads(self.to_json())
        return {name: v for name, v in values.items() if name not in ("training", "inference")}

    def digest(self) -> str:
        """SHA-256 of the settings, in hexadecimal; equal for equal settings only."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def default() -> Config:
    """Recommended settings; no download, about 0.15 s of one core per image.

    They differ from :func:`paper` in the semantic feature (features instead of class scores), in
    the seeds (from a consensus instead of the product of two cues), in the fit (pulled towards a
    prior), in the saliency (robust background, fitted to nothing) and in the last steps (the score
    is spread once more, the outline follows the image's colours, the network that comes with saff
    has its say); ``docs/method.md`` says why and ``docs/results.md`` by how much.  No fitted part
    has seen a mask: the encoder learnt the classes of ImageNet, the network learnt from such labels
    as these settings give without it.
    """
    return Config()


def fast() -> Config:
    """Settings at half the cost of :func:`default`: smaller inputs, one look, outlines not cut."""
    return Config(
        encoder_side=320, superpixel_count=300, working_side=256, zoom_share=0.0, outline="none"
    )


def best() -> Config:
    """Settings for masks that fit more closely, at twice the cost: the mean of three cuts."""
    return Config(superpixel_count=600, extra_superpixel_counts=(200, 350), working_side=1024)


def paper() -> Config:
    """Published procedure (arXiv 2005.10513, sections 3 and 4.1), equation by equation.

    Saliency is DRFI as published, with a regressor of our own; edges are learnt from BSDS500 as the
    published ones are.  The encoder (GoogLeNet) is one to be named on a connected machine:
    ``dataclasses.replace(paper(), encoder="googlenet", encoder_side=224)``.
    """
    return Config(
        encoder_side=448,
        superpixel_count=300,
        working_side=1024,
        edges="learned",
        semantic_unary="max_class",
        semantic_affinity="classes",
        background_below=0.2,
        foreground_above=0.6,
        seeds="geometric_mean",
        prior=(0.25, 0.25, 0.25, 0.25),
        prior_strength=0.0,
        spread_steps=0,
        gamma=1.0,
        network_share=0.0,
        zoom_share=0.0,
        outline="none",
        saliency="drfi",
        training=Training(
            network="vgg16",
            network_weights=None,
            paste_probability=0.0,
            color_jitter=False,
            frozen_stages=0,
            scale_range=(0.5, 1.5),
            crop_size=321,
            batch_size=10,
            steps=20_000,
            ignore_margin=0.0,
            optimiser="sgd",
            learning_rate=1e-3,
            bias_learning_rate_factor=2.0,
            warmup_steps=0,
            weight_decay=5e-4,
            ema_decay=0.0,
            checkpoint_interval=1000,
        ),
        inference=Inference(
            pseudo_label_share=0.0,
            input_sides=(384, 512, 640),
            horizontal_flip=False,
            zoom_share=0.0,
            refinement="none",
            foreground_found_above=0.0,
        ),
    )


NAMED = {"default": default, "fast": fast, "best": best, "paper": paper}


def from_json(text: str | bytes) -> Config:
    """Read settings; fields that are left out keep the values of :func:`default`.

    Parameters
    ----------
    text : str or bytes
        A JSON object, with or without a byte-order mark.

    Returns
    -------
    config : Config
        Checked settings.

    Raises
    ------
    SettingsError
        If the text is no JSON object, a setting is unknown or named twice, or a value is wrong.
    """
    try:
        json_text = text.removeprefix("\ufeff") if isinstance(text, str) else text
        values = json.loads(json_text, object_pairs_hook=_without_repetition)
    except SettingsError:
        raise
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"the configuration is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"the configuration must be a JSON object, got {type(values).__name__}")
    return Config(**values)


def with_changes(config: Config, changes: Iterable[str]) -> Config:
    """Give settings of which some have another value, written as ``name=value``.

    Parameters
    ----------
    config : Config
        Settings.
    changes : iterable of str
        ``superpixel_count=400``, ``training.steps=100``: what stands after ``=`` is JSON, or else
        text.

    Returns
    -------
    config : Config
        Checked settings.

    Raises
    ------
    SettingsError
        If a setting is unknown or named twice, or a value is wrong.

    Examples
    --------
    >>> with_changes(default(), ["training.steps=100"]).training.steps
    100
    """
    values = json.loads(config.to_json())
    seen = set()
    for change in changes:
        name, _, text = change.partition("=")
        if name in seen:
            raise SettingsError(f"the configuration names {name} twice; keep one of each")
        seen.add(name)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        section, dot, last = name.rpartition(".")
        place = values.setdefault(section, {}) if dot else values
        if not isinstance(place, dict):
            raise SettingsError(f"{name} is no setting; {section} is one without settings below it")
        place[last] = value
    return from_json(json.dumps(values))


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise SettingsError(f"the configuration names {', '.join(twice)} twice; keep one of each")
    return dict(pairs)
