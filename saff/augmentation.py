"""Random changes of a training sample: pasted foregrounds, colours, blur; section 5 of method.md.

Every function is pure given its generator.  Labels of single images err in ways that a network can
learn by heart; what is pasted has a sure outline, and colours that change leave it only the shape.
"""

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from saff.arrays import AnyArray

Bytes = NDArray[np.uint8]
SURE = 0.6  # confidence from which a pixel may be pasted
SHARES = (0.02, 0.35)  # of an image, that a foreground to be pasted covers
LEAST_MEAN = 0.8  # mean confidence inside it
MOST_ON_BORDER = 0.02  # share of the image's border that it covers
MOST_DOUBTFUL = 0.15  # share of the image with a confidence between 0.25 and SURE
PASTED_SIDE = (0.15, 0.8)  # of the crop, that its longer side becomes
GREY_SHARE, SATURATION = 0.1, (0.5, 1.4)
GAIN, TINT, BRIGHTNESS = (0.7, 1.3), (0.9, 1.1), 20.0
BLUR_SHARE, BLUR_SIGMA = 0.2, (0.5, 1.8)
JPEG_SHARE, JPEG_QUALITY = 0.15, (20, 70)


def can_be_pasted(confidence: AnyArray) -> bool:
    """Whether a label has one sure and compact foreground: uint8 (H, W), 0..255."""
    if not confidence.size:
        return False
    level = confidence[::4, ::4].astype(np.float32) / 255
    mask = level > SURE
    if not SHARES[0] < mask.mean() < SHARES[1] or level[mask].mean() < LEAST_MEAN:
        return False
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()
    doubtful = ((level > 0.25) & (level < SURE)).mean()
    return bool(border < MOST_ON_BORDER and doubtful < MOST_DOUBTFUL)


def paste(
    image: Bytes,
    confidence: Bytes,
    valid: NDArray[np.bool_],
    pixels: AnyArray,
    rng: Generator,
) -> tuple[Bytes, Bytes, NDArray[np.bool_]]:
    """Paste the foreground of another image somewhere onto a crop, also over its border.

    Parameters
    ----------
    image, confidence, valid : uint8 (C, C, 3), uint8 (C, C), bool (C, C)
        The crop, its label and which pixels lie within the image.
    pixels : uint8 array of shape (H, W, 4)
        RGB and confidence of the other image; see :func:`can_be_pasted`.
    rng : numpy.random.Generator
        Four numbers are drawn.

    Returns
    -------
    image, confidence, valid : as given
        New arrays.
    """
    side = image.shape[0]
    mask = np.clip((pixels[..., 3].astype(np.float32) / 255 - SURE) * 5 + 0.5, 0, 1)
    rows, columns = np.flatnonzero(mask.max(1) > 0.5), np.flatnonzero(mask.max(0) > 0.5)
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    scale = float(rng.uniform(*PASTED_SIDE)) * side / max(bottom - top, right - left)
    x, y = rng.uniform(0.1, 0.9, 2) * side
    sign = -1.0 if rng.random() < 0.5 else 1.0
    affine = np.array(
        [
            [sign * scale, 0, x - sign * scale * (left + right) / 2],
            [0, scale, y - scale * (top + bottom) / 2],
        ]
    )
    warped = cv2.warpAffine(np.ascontiguousarray(pixels[..., :3]), affine, (side, side))
    cover = cv2.GaussianBlur(cv2.warpAffine(mask, affine, (side, side)), (3, 3), 0)
    mixed = image + (warped.astype(np.float32) - image) * cover[:, :, None]
    label = confidence * (1 - cover) + 255 * cover
    return (
        np.rint(mixed).astype(np.uint8),
        np.rint(label).astype(np.uint8),
        valid | (cover > 0.5),
    )


def recolour(image: Bytes, rng: Generator) -> Bytes:
    """Change saturation, tint, contrast and brightness, or drop colour: uint8 (H, W, 3)."""
    keep = 0.0 if rng.random() < GREY_SHARE else rng.uniform(*SATURATION)
    gain = rng.uniform(*GAIN) * rng.uniform(*TINT, 3)
    matrix = (keep * np.eye(3) + (1 - keep) / 3) * gain[:, None]
    offset = 127 * (1 - gain.mean()) + rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    affine = np.hstack([matrix, np.full((3, 1), offset)])
    return np.clip(cv2.transform(image.astype(np.float32), affine), 0, 255).astype(np.uint8)


def blur(image: Bytes, rng: Generator) -> Bytes:
    """Blur some samples, and save others as a poor JPEG: uint8 (H, W, 3)."""
    chance = rng.random()
    if chance < BLUR_SHARE:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(*BLUR_SIGMA))))
    if chance < BLUR_SHARE + JPEG_SHARE:
        quality = int(rng.integers(*JPEG_QUALITY))
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return image
