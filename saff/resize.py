"""Resizing: one place for sizes, and for how pixels are averaged, interpolated or repeated."""

from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np

from saff.arrays import AnyArray

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""


def shrunk_size(shape: Sequence[int], side: int) -> Size:
    """Size at which neither side is longer than ``side``; the aspect ratio is kept.

    Parameters
    ----------
    shape : sequence of int
        Height and width, and whatever follows them in an array's shape.
    side : int
        In pixels.

    Examples
    --------
    >>> shrunk_size((375, 500, 3), 100), shrunk_size((375, 500, 3), 600)
    ((75, 100), (375, 500))
    """
    factor = min(1.0, side / max(shape[:2]))
    height, width = (max(1, round(n * factor)) for n in shape[:2])
    return height, width


def size_in_multiples(shape: Sequence[int], side: int, multiple: int) -> Size:
    """Size whose longer side is about ``side`` and whose sides are multiples of ``multiple``.

    Parameters
    ----------
    shape : sequence of int
        Height and width, and whatever follows them in an array's shape.
    side, multiple : int
        In pixels; no side gets shorter than one ``multiple``.

    Examples
    --------
    >>> size_in_multiples((375, 500, 3), 512, 32)
    (384, 512)
    """
    factor = side / max(shape[:2])
    height, width = (max(1, round(n * factor / multiple)) * multiple for n in shape[:2])
    return height, width


def resize(pixels: AnyArray, size: Size, *, average: bool | None = None) -> AnyArray:
    """Resize an image or a map; one that has the size already is returned as it is.

    Parameters
    ----------
    pixels : uint8 or float32 array of shape (H, W) or (H, W, C)
        C is at most 4.
    size : tuple of int
        New height and width.
    average : bool, optional
        Average the pixels that fall together; otherwise interpolate between them linearly.
        Without it, average where the result has fewer pixels.
    """
    if pixels.shape[:2] == size:
        return pixels
    height, width = size
    if average is None:
        average = height * width < pixels.shape[0] * pixels.shape[1]
    method = cv2.INTER_AREA if average else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=method))


def shrink(pixels: AnyArray, side: int) -> AnyArray:
    """Shrink an image whose longer side exceeds ``side`` pixels; return others as they are."""
    return resize(pixels, shrunk_size(pixels.shape, side), average=True)


def repeat(labels: AnyArray, size: Size) -> AnyArray:
    """Enlarge a label map by repeating its labels: (h, w) to (height, width)."""
    if labels.shape == size:
        return labels
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, labels.shape, strict=True))
    repeated: AnyArray = labels[np.ix_(rows, columns)]
    return repeated


def sample(pixels: AnyArray, size: Size) -> AnyArray:
    """Shrink by taking the pixel nearest to the centre of each cell, without averaging."""
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(np.intp)
        for n, m in zip(size, pixels.shape, strict=False)
    )
    sampled: AnyArray = pixels[np.ix_(rows, columns)]
    return sampled
