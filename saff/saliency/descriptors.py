"""What a region looks like and how it differs: the 93 features of DRFI.

Everything that a feature needs is additive over superpixels (sums, sums of squares, histograms,
border lengths), so pixels are read once and the regions of all levels are matrix products.

References
----------
Jiang, Wang, Yuan, Wu, Zheng and Li, Salient object detection: a discriminative regional feature
integration approach, CVPR 2013; Wang et al., IJCV 2017.  Tables 1 and 2 there.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.sparse import csr_array

from saff.arrays import AnyArray, Image, LabelMap
from saff.saliency.hierarchy import Hierarchy

FEATURES = 93  # 29 of contrast, 29 of backgroundness, 35 of the region itself
ORIENTATIONS = 6
COLOUR_BINS = 6  # a channel
POSITION_BINS = 64  # an axis
BORDER_WIDTH = 0.03  # of the longer side: the strip that stands for the background
TEXTURE_SIGMA = 1.4  # pixels
SPACE_SIGMA = 0.25  # of the longer side: how far a region's surroundings reach
COLOURS, TEXTURES = 9, 2 * ORIENTATIONS + 3
CODES = 256  # of local binary patterns
HISTOGRAMS = (COLOUR_BINS**3,) * 3 + (TEXTURES, CODES)
TINY = 1e-9
NOISE = 1e-5  # of float32 filters over lightness in [0, 1]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Sums over the pixels of each superpixel; each row of all arrays is one superpixel.

    Attributes
    ----------
    area, border : float arrays of shape (R,)
        Pixels, and pixel sides on the image border.
    sums, squares : float arrays of shape (R, 25)
        Of RGB, HSV and Lab in [0, 1], of 15 texture responses, and of the binary pattern.
    histograms : float array of shape (R, 919)
        Of RGB, HSV, Lab, of the strongest texture response, and of the binary patterns.
    columns, rows : float arrays of shape (R, 64)
        Histograms of pixel positions.
    shared : float array of shape (R, R)
        Length of common borders in pixel sides; 0 on the diagonal.
    strip : float array of shape (R,)
        Share of the superpixel's pixels in the strip along the image border.
    shape : tuple of int
        (H, W) of the image.
    """

    area: AnyArray
    border: AnyArray
    sums: AnyArray
    squares: AnyArray
    histograms: AnyArray
    columns: AnyArray
    rows: AnyArray
    shared: AnyArray
    strip: AnyArray
    shape: tuple[int, int]


# Pixels


def texture(lightness: AnyArray) -> AnyArray:
    """Absolute responses of 15 filters: float32 (H, W) in [0, 1] to (15, H, W).

    First and second derivatives of a Gaussian in six directions, steered from two and three of
    them, and three filters without direction: a reduced Leung-Malik bank.
    """
    smooth = cv2.GaussianBlur(lightness, (0, 0), TEXTURE_SIGMA)
    wide = cv2.GaussianBlur(smooth, (0, 0), TEXTURE_SIGMA * np.sqrt(3.0))  # together twice as wide
    x, y = (cv2.Sobel(smooth, cv2.CV_32F, *d, scale=1 / 8) for d in ((1, 0), (0, 1)))
    xx, xy, yy = (cv2.Sobel(smooth, cv2.CV_32F, *d, scale=1 / 4) for d in ((2, 0), (1, 1), (0, 2)))
    angles = np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS
    responses = [np.cos(a) * x + np.sin(a) * y for a in angles]
    responses += [np.cos(a) ** 2 * xx + np.sin(2 * a) * xy + np.sin(a) ** 2 * yy for a in angles]
    responses += [xx + yy, cv2.Laplacian(wide, cv2.CV_32F), smooth - wide]
    strength: AnyArray = np.abs(np.asarray(responses, dtype=np.float32))
    return strength


def binary_patterns(lightness: AnyArray) -> AnyArray:
    """Which of its eight neighbours are at least as light: float (H, W) to uint8 (H, W)."""
    padded = np.pad(lightness, 1, mode="edge")
    height, width = lightness.shape
    codes = np.zeros(lightness.shape, dtype=np.uint8)
    around = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
    for bit, (row, column) in enumerate(around):
        neighbour = padded[row : row + height, column : column + width]
        codes |= (neighbour >= lightness).astype(np.uint8) << bit
    return codes


def collect(image: Image, superpixels: LabelMap) -> Statistics:
    """Read the pixels once: uint8 (H, W, 3) and int32 (H, W) to statistics of R superpixels."""
    height, width = superpixels.shape
    count = int(superpixels.max()) + 1
    rgb = image.astype(np.float32) / 255
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV) / np.array([360, 1, 1], np.float32)
    signed = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    lab = (signed + np.array([0, 128, 128], np.float32)) / np.array([100, 256, 256], np.float32)
    responses = texture(np.ascontiguousarray(lab[..., 0]))
    responses[responses < NOISE] = 0.0  # so that the strongest of a flat area is the first
    codes = binary_patterns(lab[..., 0])
    colours = [space.reshape(-1, 3) for space in (rgb, hsv, lab)]
    values = np.concatenate(
        [*colours, responses.reshape(TEXTURES, -1).T, codes.reshape(-1, 1) / np.float32(CODES - 1)],
        axis=1,
    )  # (P, 25)
    labels = superpixels.ravel()
    pixels = np.arange(labels.size + 1, dtype=np.int32)
    ones = np.ones(labels.size, dtype=np.float32)
    by_label = csr_array((ones, labels, pixels), shape=(labels.size, count)).T.tocsr()
    bins = [_colour_bins(space) for space in colours]
    bins += [responses.reshape(TEXTURES, -1).argmax(axis=0), codes.ravel()]
    histograms = [_histogram(labels, b, n, count) for b, n in zip(bins, HISTOGRAMS, strict=True)]
    y, x = np.divmod(np.arange(labels.size), width)
    rim = max(1, round(BORDER_WIDTH * max(height, width)))
    inside = (np.minimum(y, height - 1 - y) >= rim) & (np.minimum(x, width - 1 - x) >= rim)
    area = np.bincount(labels, minlength=count).astype(np.float32)
    border, shared = _borders(superpixels, count)
    return Statistics(
        area=area,
        border=border,
        sums=by_label @ values,
        squares=by_label @ (values * values),
        histograms=np.concatenate(histograms, axis=1),
        columns=_histogram(labels, x * POSITION_BINS // width, POSITION_BINS, count),
        rows=_histogram(labels, y * POSITION_BINS // height, POSITION_BINS, count),
        shared=shared,
        strip=np.bincount(labels, weights=~inside, minlength=count) / area,
        shape=(height, width),
    )


def _colour_bins(values: AnyArray) -> AnyArray:
    """Joint bin of three channels in [0, 1]: (P, 3) to (P,)."""
    cells = np.clip((values * COLOUR_BINS).astype(np.int32), 0, COLOUR_BINS - 1)
    return (cells[:, 0] * COLOUR_BINS + cells[:, 1]) * COLOUR_BINS + cells[:, 2]


def _histogram(labels: AnyArray, bins: AnyArray, size: int, count: int) -> AnyArray:
    """Count bins per label: (P,), (P,) to float32 (R, size)."""
    counts = np.bincount(labels.astype(np.int64) * size + bins, minlength=count * size)
    return counts.reshape(count, size).astype(np.float32)


def _borders(superpixels: LabelMap, count: int) -> tuple[AnyArray, AnyArray]:
    """Pixel sides on the image border (R,), and between each two superpixels (R, R)."""
    first = np.concatenate([superpixels[:, :-1].ravel(), superpixels[:-1].ravel()])
    second = np.concatenate([superpixels[:, 1:].ravel(), superpixels[1:].ravel()])
    across = first != second
    pairs = first[across].astype(np.int64) * count + second[across]
    one_way = np.bincount(pairs, minlength=count * count).reshape(count, count)
    edge = [superpixels[0], superpixels[-1], superpixels[:, 0], superpixels[:, -1]]
    border = np.bincount(np.concatenate(edge), minlength=count)
    return border.astype(np.float32), (one_way + one_way.T).astype(np.float32)


# Regions


def describe(statistics: Statistics, hierarchy: Hierarchy) -> AnyArray:
    """Give the features of the regions of all levels: float32 (M, 93)."""
    regions = len(hierarchy.level)
    size, levels = hierarchy.member.shape
    join = csr_array(  # (M, R): which superpixels a region holds
        (
            np.ones(size * levels, np.float32),
            (hierarchy.member.ravel(), np.repeat(np.arange(size), levels)),
        ),
        shape=(regions, size),
    )
    s = statistics
    long_side = max(s.shape)
    area = join @ s.area
    looks = np.concatenate([s.sums[:, : COLOURS + TEXTURES], s.histograms], axis=1)
    own = join @ looks
    position = np.stack([_mean(join @ s.columns), _mean(join @ s.rows)], axis=1)
    position *= np.array([s.shape[1], s.shape[0]], np.float32) / long_side  # of the longer side
    around, touching, perimeter = (np.empty_like(a) for a in (own, area, area))
    around_area = np.empty_like(area)
    for level in range(levels):
        at = hierarchy.level == level
        part = join[at]
        between = (part @ (part @ s.shared).T).astype(np.float32)  # borders within, on the diagonal
        np.fill_diagonal(between, 0.0)
        perimeter[at] = between.sum(axis=1) + part @ s.border
        touching[at] = (between > 0) @ area[at]
        offset = ((position[at][:, None] - position[at][None]) ** 2).sum(axis=2)
        near = np.exp(-offset / (2 * SPACE_SIGMA**2)).astype(np.float32)
        np.fill_diagonal(near, 0.0)
        around[at] = near @ own[at]
        around_area[at] = near @ area[at]
    background = (s.strip @ looks)[None], (s.strip @ s.area)[None]
    contrast = _differ(own, area, around, around_area)
    backgroundness = _differ(own, area, background[0], background[1])
    geometry = _geometry(s, join, position, perimeter / (2 * sum(s.shape)))
    mean = (join @ s.sums) / area[:, None]
    variance = np.maximum((join @ s.squares) / area[:, None] - mean * mean, 0.0)
    pixels = s.area.sum()
    sizes = np.stack([area, touching], axis=1) / pixels
    features = np.concatenate([contrast, backgroundness, geometry, variance, sizes], axis=1)
    return features.astype(np.float32)


def _differ(own: AnyArray, area: AnyArray, other: AnyArray, other_area: AnyArray) -> AnyArray:
    """Differences of 24 means, and chi-square distances of five histograms: (M, 29)."""
    mine = own / np.maximum(area, TINY)[:, None]
    theirs = other / np.maximum(other_area, TINY)[:, None]
    means = COLOURS + TEXTURES
    gaps = np.abs(mine[:, :means] - theirs[:, :means])
    a, b = mine[:, means:], theirs[:, means:]
    ratio = (a - b) ** 2 / (a + b + np.float32(TINY))
    starts = np.concatenate([[0], np.cumsum(HISTOGRAMS)[:-1]])
    return np.concatenate([gaps, 0.5 * np.add.reduceat(ratio, starts, axis=1)], axis=1)


def _mean(histogram: AnyArray) -> AnyArray:
    """Mean position of a histogram over [0, 1]: (M, bins) to (M,)."""
    centres = (np.arange(histogram.shape[1], dtype=np.float32) + 0.5) / histogram.shape[1]
    means: AnyArray = histogram @ centres / histogram.sum(axis=1)
    return means


def _geometry(s: Statistics, join: csr_array, position: AnyArray, perimeter: AnyArray) -> AnyArray:
    """Place and shape: means, 10th and 90th percentiles, perimeter, aspect: (M, 8)."""
    columns, rows = (_mean(join @ h) for h in (s.columns, s.rows))
    tenth = [_percentile(join @ h, 0.1) for h in (s.columns, s.rows)]
    ninetieth = [_percentile(join @ h, 0.9) for h in (s.columns, s.rows)]
    wide, high = (_extent(join @ h) * n for h, n in ((s.columns, s.shape[1]), (s.rows, s.shape[0])))
    return np.stack([columns, rows, *tenth, *ninetieth, perimeter, wide / high], axis=1)


def _percentile(histogram: AnyArray, share: float) -> AnyArray:
    """Position below which a share of the pixels lies: (M, bins) to (M,) in [0, 1]."""
    cumulated = histogram.cumsum(axis=1)
    index = (cumulated >= share * cumulated[:, -1:]).argmax(axis=1)
    positions: AnyArray = (index + 0.5) / histogram.shape[1]
    return positions


def _extent(histogram: AnyArray) -> AnyArray:
    """Length of the range that holds pixels: (M, bins) to (M,) in (0, 1]."""
    held = histogram > 0
    bins = held.shape[1]
    extent: AnyArray = (bins - held.argmax(axis=1) - held[:, ::-1].argmax(axis=1)) / bins
    return extent
