"""Slow, obvious versions of what saff computes: loops and exact fractions."""

from fractions import Fraction

import numpy as np


def precision_recall_metrics_oracle(confidence, truth, valid=None):
    """Give exact precision and recall, one threshold and one mask at a time."""
    valid = np.ones_like(truth) if valid is None else valid
    precision, recall = [], []
    for threshold in range(256):
        kept = (confidence >= threshold) & valid
        hits = int((kept & truth).sum())
        precision.append(Fraction(hits, int(kept.sum())) if kept.any() else Fraction(1))
        recall.append(Fraction(hits, int((truth & valid).sum())))
    return precision, recall


def f_measure_metrics_oracle(precision, recall, beta_squared):
    """Give the exact F-measure of two fractions."""
    if precision == 0 or recall == 0:
        return Fraction(0)
    return (1 + beta_squared) / (beta_squared / recall + 1 / precision)


def stretch_metrics_oracle(confidence):
    """Stretch an 8-bit map pixel by pixel, halves rounded to even."""
    low, high = int(confidence.min()), int(confidence.max())
    stretched = np.zeros_like(confidence)
    for pixel in np.ndindex(confidence.shape):
        if high > low:
            stretched[pixel] = round(Fraction(255 * (int(confidence[pixel]) - low), high - low))
    return stretched


def evaluation_metrics_oracle(images, beta_squared, normalise):
    """Give exact curves and means over images, in the order that the definitions have."""
    precisions, recalls, scores, errors, ious, accuracies = [], [], [], [], [], []
    for confidence, truth, valid in images:
        if not (truth & valid).any():
            continue
        shown = stretch_metrics_oracle(confidence) if normalise else confidence
        precision, recall = precision_recall_metrics_oracle(shown, truth, valid)
        precisions.append(precision)
        recalls.append(recall)
        scores.append(
            [
                f_measure_metrics_oracle(p, r, beta_squared)
                for p, r in zip(precision, recall, strict=True)
            ]
        )
        pixels = [(int(c), bool(t)) for c, t in zip(confidence[valid], truth[valid], strict=True)]
        errors.append(sum(Fraction(abs(c - 255 * t), 255) for c, t in pixels) / len(pixels))
        both = sum(t and c >= 128 for c, t in pixels)
        ious.append(Fraction(both, sum(t or c >= 128 for c, t in pixels)))
        accuracies.append(Fraction(sum(t == (c >= 128) for c, t in pixels), len(pixels)))

    def mean(values):
        return sum(values) / len(values)

    precision = [mean(column) for column in zip(*precisions, strict=True)]
    recall = [mean(column) for column in zip(*recalls, strict=True)]
    return {
        "precision": precision,
        "recall": recall,
        "mean_pr": [
            f_measure_metrics_oracle(p, r, beta_squared)
            for p, r in zip(precision, recall, strict=True)
        ],
        "mean_f": [mean(column) for column in zip(*scores, strict=True)],
        "max_f": mean([max(score) for score in scores]),
        "mae": mean(errors),
        "iou": mean(ious),
        "accuracy": mean(accuracies),
    }


def neighbours_superpixels_oracle(superpixels):
    """Give every pixel side between two regions: {(i, j): [(pixel, pixel), ...]}, i < j."""
    height, width = superpixels.shape
    sides = {}
    for row in range(height):
        for column in range(width):
            for other in ((row + 1, column), (row, column + 1)):
                if other[0] == height or other[1] == width:
                    continue
                pair = sorted((int(superpixels[row, column]), int(superpixels[other])))
                if pair[0] != pair[1]:
                    sides.setdefault(tuple(pair), []).append(((row, column), other))
    return sides


def border_strength_superpixels_oracle(edges, superpixels):
    """Give the mean, over each shared border, of the stronger pixel of every pixel side."""
    return {
        pair: float(np.mean([float(max(edges[a], edges[b])) for a, b in sides]))
        for pair, sides in neighbours_superpixels_oracle(superpixels).items()
    }


def border_lengths_superpixels_oracle(superpixels):
    """Count the outer pixel sides of each region, one pixel at a time."""
    height, width = superpixels.shape
    lengths = [0] * (int(superpixels.max()) + 1)
    for row, column in np.ndindex(height, width):
        outer = (row == 0) + (row == height - 1) + (column == 0) + (column == width - 1)
        lengths[superpixels[row, column]] += outer
    return lengths


def semantic_similarity_encoding_oracle(vectors):
    """Give Eq. 1 as it is printed: sum_k min(v_ik, v_jk)."""
    count, classes = vectors.shape
    similarity = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            for k in range(classes):
                similarity[i, j] += min(vectors[i, k], vectors[j, k])
    return similarity


def row_normalise_encoding_oracle(similarity):
    """Give M': zero diagonal, each row over its sum, rows without similarity zero."""
    count = len(similarity)
    rows = np.zeros((count, count))
    for i in range(count):
        total = sum(similarity[i, j] for j in range(count) if j != i)
        for j in range(count):
            if j != i and total > 0:
                rows[i, j] = similarity[i, j] / total
    return rows


def cheapest_paths_encoding_oracle(adjacency, strength, count):
    """Give all cheapest paths by Floyd and Warshall's three loops."""
    cost = np.full((count, count), np.inf)
    np.fill_diagonal(cost, 0.0)
    for (i, j), value in zip(adjacency, strength, strict=True):
        cost[i, j] = cost[j, i] = min(cost[i, j], value)
    for k in range(count):
        for i in range(count):
            for j in range(count):
                cost[i, j] = min(cost[i, j], cost[i, k] + cost[k, j])
    return cost


def cosine_encoding_oracle(first, second):
    """Give the cosine of two feature vectors, 0 where it is negative or one of them is 0."""
    lengths = sum(a * a for a in first) * sum(b * b for b in second)
    product = sum(a * b for a, b in zip(first, second, strict=True))
    return max(0.0, product / lengths**0.5) if lengths > 0 else 0.0


def feature_similarity_encoding_oracle(levels, power):
    """Give the mean cosine over levels to a power, pair by pair."""
    count = len(levels[0])
    similarity = np.zeros((count, count))
    for i, j in np.ndindex(count, count):
        cosines = [cosine_encoding_oracle(level[i], level[j]) for level in levels]
        similarity[i, j] = (sum(cosines) / len(levels)) ** power
    return similarity


def border_contrast_encoding_oracle(levels, border):
    """Give one minus the mean cosine to the border's pixels, stretched, averaged, stretched."""

    def stretched(values):
        low, high = min(values), max(values)
        return [(v - low) / (high - low) if high - low > 1e-6 else 0.0 for v in values]

    contrasts = []
    for level in levels:
        raw = []
        for vector in level:
            terms = [
                pixels * cosine_encoding_oracle(vector, level[j]) for j, pixels in enumerate(border)
            ]
            raw.append(1.0 - sum(terms) / sum(border))
        contrasts.append(stretched(raw))
    return stretched([sum(column) / len(levels) for column in zip(*contrasts, strict=True)])


def resampled_fit_weighting_oracle(features, foreground, background):
    """Repeat the seeds of each class up to a common count, then plain least squares."""
    n_foreground, n_background = int(foreground.sum()), int(background.sum())
    common = int(np.lcm(n_foreground, n_background))
    rows = np.concatenate(
        [
            np.repeat(features[foreground], common // n_foreground, axis=0),
            np.repeat(features[background], common // n_background, axis=0),
        ]
    )
    target = np.repeat([1.0, 0.0], common)
    return np.linalg.pinv(np.column_stack([rows, np.ones(2 * common)])) @ target


def ridge_weighting_oracle(features, target, importance, prior, strength):
    """Solve the normal equations of the cost that ``fit_weights`` documents, term by term."""
    columns = features.shape[1] + 1
    centre = np.append(prior, 0.0)
    left, right = np.zeros((columns, columns)), np.zeros(columns)
    for row, wanted, weight in zip(features, target, importance, strict=True):
        extended = np.append(row, 1.0)
        left += weight * np.outer(extended, extended)
        right += weight * wanted * extended
    left += strength * sum(importance) * np.eye(columns)
    right += strength * sum(importance) * centre
    return np.linalg.solve(left, right)


def robust_background_saliency_oracle(colour, position, adjacency, on_border, sigmas, smoothness):
    """Give Zhu et al.'s saliency equation by equation, each sum a loop, stretched to [0, 1]."""
    colour_sigma, space_sigma, border_sigma = sigmas
    count = len(colour)
    pairs = {(int(i), int(j)) for i, j in adjacency}
    pairs |= {(int(i), int(j)) for i in on_border for j in on_border if i < j}

    def apart(values, i, j):
        return float(np.sqrt(sum((a - b) ** 2 for a, b in zip(values[i], values[j], strict=True))))

    geodesic = cheapest_paths_encoding_oracle(
        sorted(pairs), [apart(colour, i, j) for i, j in sorted(pairs)], count
    )
    background = []
    for p in range(count):
        close = [np.exp(-(geodesic[p, q] ** 2) / (2 * colour_sigma**2)) for q in range(count)]
        connectivity = sum(close[q] for q in on_border) / np.sqrt(sum(close))
        background.append(1 - np.exp(-(connectivity**2) / (2 * border_sigma**2)))
    contrast = [
        sum(
            apart(colour, p, q)
            * np.exp(-(apart(position, p, q) ** 2) / (2 * space_sigma**2))
            * background[q]
            for q in range(count)
        )
        for p in range(count)
    ]
    contrast = [value / max(contrast) for value in contrast]
    # Half the derivative of each quadratic term of the cost, added up.
    left, right = np.zeros((count, count)), np.zeros(count)
    for p in range(count):
        left[p, p] += background[p] + contrast[p]
        right[p] += contrast[p]
    for i, j in adjacency:
        weight = np.exp(-(apart(colour, i, j) ** 2) / (2 * colour_sigma**2)) + smoothness
        for a, b in ((i, j), (j, i)):
            left[a, a] += weight
            left[a, b] -= weight
    saliency = np.linalg.solve(left, right)
    low, high = saliency.min(), saliency.max()
    return (saliency - low) / (high - low) if high - low > 1e-12 else np.zeros(count)


def reduce_labels_oracle(confidence, valid, size, labels, doubt):
    """Cell by cell: the mean label of the sure pixels, and whether they are half of the cell."""
    count, height, width = confidence.shape
    rows, columns = height // size[0], width // size[1]
    target = np.zeros((count, *size))
    counted = np.zeros((count, *size), bool)
    for n in range(count):
        for i in range(size[0]):
            for j in range(size[1]):
                sure = []
                for y in range(i * rows, (i + 1) * rows):
                    for x in range(j * columns, (j + 1) * columns):
                        level = np.float32(confidence[n, y, x]) / np.float32(255)
                        if valid[n, y, x] and abs(level - np.float32(0.5)) >= np.float32(doubt):
                            sure.append(confidence[n, y, x] >= 128 if labels == "hard" else level)
                counted[n, i, j] = 2 * len(sure) >= rows * columns
                mean = np.mean(sure) if sure else 0.0
                target[n, i, j] = mean if labels == "soft" else mean >= 0.5
    return target, counted


def s_measure_oracle(levels, truth, valid):
    """Give the S-measure from lists of pixels, as its definition has it."""
    pixels = {p: (levels[p] / 255, bool(truth[p])) for p in np.ndindex(truth.shape) if valid[p]}
    inside = [p for p, (_, true) in pixels.items() if true]
    if len(inside) == len(pixels):
        return float(np.mean([x for x, _ in pixels.values()]))

    def score(values):
        spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
        return 2 * np.mean(values) / (np.mean(values) ** 2 + 1 + spread)

    share = len(inside) / len(pixels)
    objects = share * score([x for x, true in pixels.values() if true])
    objects += (1 - share) * score([1 - x for x, true in pixels.values() if not true])
    row, column = (int(np.rint(np.mean(index))) for index in zip(*inside, strict=True))
    regions = 0.0
    for below in (False, True):
        for beside in (False, True):
            part = [v for (r, c), v in pixels.items() if (r > row, c > column) == (below, beside)]
            if part:
                regions += len(part) / len(pixels) * similarity_oracle(*np.array(part, float).T)
    return max(0.0, (objects + regions) / 2)


def similarity_oracle(x, y):
    """Give the structural similarity of two lists of numbers."""
    less = max(len(x) - 1, 1)
    variances = [((v - v.mean()) ** 2).sum() / less for v in (x, y)]
    covariance = ((x - x.mean()) * (y - y.mean())).sum() / less
    above = 4 * x.mean() * y.mean() * covariance
    below = (x.mean() ** 2 + y.mean() ** 2) * sum(variances)
    if abs(above) > 1e-12:
        return above / below
    return 1.0 if below < 1e-12 else 0.0


def e_measures_oracle(levels, truth, valid):
    """Give the E-measure threshold by threshold, from the matrix of alignments."""
    x, true = levels[valid], truth[valid]
    less = max(true.size - 1, 1)
    found = []
    for threshold in range(256):
        kept = x >= threshold
        if true.all():
            found.append(kept.sum() / less)
            continue
        a, b = kept - kept.mean(), true - true.mean()
        alignment = 2 * a * b / (a**2 + b**2 + np.spacing(1))
        found.append(((alignment + 1) ** 2 / 4).sum() / less)
    return found


def weighted_f_oracle(levels, truth, valid):
    """Give the weighted F-measure pixel by pixel."""
    height, width = truth.shape
    inside = [p for p in np.ndindex(truth.shape) if truth[p] and valid[p]]
    error, spread, nearest = np.zeros(truth.shape), np.zeros(truth.shape), {}
    for p in np.ndindex(truth.shape):
        error[p] = valid[p] * abs(levels[p] / 255 - (p in inside))
    for p in np.ndindex(truth.shape):
        steps = [((r - p[0]) ** 2 + (c - p[1]) ** 2, c, r) for r, c in inside]
        nearest[p] = min(steps)
        spread[p] = error[nearest[p][:0:-1]]
    weights = np.exp(-(np.arange(-3, 4) ** 2) / 50)
    weights /= weights.sum()
    missed = false = 0.0
    for row, column in np.ndindex(truth.shape):
        if (row, column) in inside:
            around = sum(
                weights[i + 3] * weights[j + 3] * spread[row + i, column + j]
                for i in range(-3, 4)
                for j in range(-3, 4)
                if 0 <= row + i < height and 0 <= column + j < width
            )
            missed += min(around, error[row, column])
        elif valid[row, column]:
            false += error[row, column] * (2 - 0.5 ** (nearest[row, column][0] ** 0.5 / 5))
    hits = len(inside) - missed
    recall, precision = hits / len(inside), hits / (hits + false + np.spacing(1))
    return 2 * recall * precision / (recall + precision + np.spacing(1))


def outline_oracle(mask):
    """Give the foreground pixels with a background pixel beside, above or below them."""
    height, width = mask.shape
    return [
        (r, c)
        for r, c in np.ndindex(mask.shape)
        if mask[r, c]
        and any(
            0 <= r + i < height and 0 <= c + j < width and not mask[r + i, c + j]
            for i, j in ((-1, 0), (1, 0), (0, -1), (0, 1))
        )
    ]


def boundary_f_oracle(kept, truth, valid, tolerance):
    """Give the F-measure of outlines, pixel by pixel."""

    def distance(p, others):
        return min((((p[0] - r) ** 2 + (p[1] - c) ** 2) ** 0.5 for r, c in others), default=np.inf)

    sides = [[p for p in np.ndindex(truth.shape) if valid[p] and truth[p] == s] for s in (0, 1)]
    filled = truth.copy()
    for p in np.ndindex(truth.shape):
        if not valid[p]:
            filled[p] = distance(p, sides[1]) <= distance(p, sides[0])
    found, true = outline_oracle(kept), outline_oracle(filled)
    near = [distance(p, true) <= tolerance for p in found]
    counted = [n for n, p in zip(near, found, strict=True) if n or valid[p]]
    precision = sum(counted) / len(counted) if counted else 1.0
    met = [distance(p, found) <= tolerance for p in true]
    recall = sum(met) / len(met) if met else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
