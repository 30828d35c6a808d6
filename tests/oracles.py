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
