"""Outlines by colour: the best cut of an image inside a narrow band around a mask's outline.

The colours of both sides are modelled by mixtures of Gaussians, and the cut of least cost through
the band is taken (Rother, Kolmogorov and Blake, "GrabCut", SIGGRAPH 2004; OpenCV's implementation).
What lies outside of the band stays as it was, and so does a map that the cut would change too much.
The cut is made on a small image; the outline of a large one is then brought to its edges.
"""

import cv2
import numpy as np

from saff.arrays import Image, PixelMap
from saff.quality import mask_iou
from saff.resize import resize, shrunk_size

SIDE = 320  # longer side in pixels at which the cut is made
SURE = 0.95  # confidence from which the inside of the band's inner edge is fixed
WEIGHT, BAND = 0.5, 0.015  # where a network has a share of the map
LABEL_WEIGHT, LABEL_BAND = 0.35, 0.025  # where it has none: superpixels miss by more
LEAST_IOU = 0.5  # of the masks before and after, below which the map stays as it was
FINE = 2  # times SIDE: longer sides from which the result follows the edges of the image as well
SMOOTHNESS = 11.0  # of that step, where a pixel is one of the map's; grows with their area
CONTRAST = 8.0  # levels of colour between neighbours that count as an edge
STEP = 2  # one pixel in so many rows and columns serves to model the colours
SEED = 0  # of the k-means that the mixtures start from


def cut_outline(
    confidence: PixelMap, image: Image, weight: float = WEIGHT, band: float = BAND
) -> PixelMap:
    """Bring the outline of a confidence map to the best cut of its image's colours.

    Parameters
    ----------
    confidence : float32 array of shape (H, W)
        In [0, 1].
    image : uint8 array of shape (H, W, 3)
        RGB.
    weight : float
        Weight in [0, 1] of the cut in the result; the rest is the map as it was.
    band : float
        Share of the longer side: how far from the outline the cut may lie where the map is sure.

    Returns
    -------
    refined : float32 array of shape (H, W)
        In [0, 1]: a mean of the map and of the cut's mask; ``confidence`` itself where it has no
        outline, or where the masks before and after have an IoU below one half.
    """
    if confidence.shape != image.shape[:2]:
        raise ValueError(f"confidence must be {image.shape[:2]}, got shape {confidence.shape}")
    size = shrunk_size(image.shape, SIDE)
    small, level = resize(image, size), resize(confidence, size)
    inside = level >= 0.5
    if inside.all() or not inside.any():
        return confidence
    found = _grab_cut(small, _states(level, inside, band))
    if found is None:
        return confidence
    if mask_iou(inside, found) < LEAST_IOU:
        return confidence
    mask = resize(found.astype(np.float32), (image.shape[0], image.shape[1]))
    mean = (1 - weight) * confidence + weight * mask
    refined: PixelMap = np.clip(mean, 0.0, 1.0).astype(np.float32)
    enlarged = max(image.shape) / SIDE
    return refined if enlarged < FINE else follow_edges(refined, image, enlarged)


def follow_edges(confidence: PixelMap, image: Image, enlarged: float) -> PixelMap:
    """Bring the steps of an enlarged map to the edges of its image.

    The map is smoothed within the image's edges (Min et al., Fast global image smoothing based on
    weighted least squares, TIP 2014; OpenCV's implementation).

    Parameters
    ----------
    confidence : float32 array of shape (H, W)
        In [0, 1].
    image : uint8 array of shape (H, W, 3)
        RGB.
    enlarged : float
        How many pixels wide a pixel of the map was before it was enlarged.

    Returns
    -------
    refined : float32 array of shape (H, W)
        In [0, 1]; ``confidence`` itself where the masks before and after have an IoU below one
        half.
    """
    smoothness = SMOOTHNESS * enlarged**2
    smooth = cv2.ximgproc.fastGlobalSmootherFilter(image, confidence, smoothness, CONTRAST)
    if mask_iou(confidence >= 0.5, smooth >= 0.5) < LEAST_IOU:
        return confidence
    return np.clip(smooth, 0.0, 1.0)


def _states(level: PixelMap, inside: np.ndarray, band: float) -> np.ndarray:
    """What GrabCut may change: the pixels of the band, as probable foreground or background."""
    depth, distance = (
        cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5) for part in (inside, ~inside)
    )
    reach = band * max(level.shape)
    states = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    states[(depth > reach) & (level > SURE)] = cv2.GC_FGD
    states[distance > reach] = cv2.GC_BGD
    return states


def _grab_cut(image: Image, states: np.ndarray) -> np.ndarray | None:
    """Foreground of the best cut, bool (h, w); None where one side has no pixel of its own."""
    if not _has_both_sides(states):
        return None
    step = STEP if _has_both_sides(states[::STEP, ::STEP]) else 1
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    colours, sides = (np.ascontiguousarray(part[::step, ::step]) for part in (image, states))
    cv2.setRNGSeed(SEED)
    models = None, background, foreground
    cv2.grabCut(colours, sides, *models, 0, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
    cv2.grabCut(image, states, *models, 1, cv2.GC_EVAL_FREEZE_MODEL)  # type: ignore[call-overload]
    return _is_foreground(states)


def _is_foreground(states: np.ndarray) -> np.ndarray:
    """Where a pixel is foreground, sure or probable."""
    found: np.ndarray = states & 1 == cv2.GC_FGD
    return found


def _has_both_sides(states: np.ndarray) -> bool:
    found = _is_foreground(states)
    return bool(found.any() and not found.all())
