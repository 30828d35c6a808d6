"""Predict with a trained network: several scales, flipped images, a second look, sharp outlines.

Images that become inputs of one size are computed together, in batches that are always full:
places that no image needs are filled up.  So what comes out for an image does not depend on what
is computed beside it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from saff.arrays import Image, PixelMap
from saff.backbones.inputs import to_input
from saff.config import Inference
from saff.network import Network
from saff.outlines import cut_outline
from saff.resize import Size, resize, shrink, size_in_multiples
from saff.superpixels import region_means, slic
from saff.threads import single_thread

WORKING_SIDE = 1024  # longer images are shrunk to it, and their maps enlarged again
GPU_BATCH = 16  # a CPU core is faster with one after the other
REGIONS = 300  # superpixels of an image to refine with
GUIDED_RADIUS = 8  # pixels of the guided filter's window, for a longer side of 512
GUIDED_EPSILON = (0.03 * 255) ** 2  # variance of colour that counts as flat
LEAST_CROP = 24  # pixels of a rectangle's shorter side that are worth a second look
MOST_CROP = 0.95  # of the image's longer side: a larger rectangle would be seen as before
MOST_COMPONENTS = 4  # that are looked at again, each by itself

Box: TypeAlias = tuple[slice, slice]


def predict(
    network: Network, image: Image, settings: Inference, device: torch.device | str = "cpu"
) -> PixelMap:
    """Foreground confidence of one image.

    Parameters
    ----------
    network : Network
        In evaluation mode, on the device.
    image : uint8 array of shape (H, W, 3)
        RGB.
    settings : Inference
        Scales, flip, refinement.
    device : torch.device or str
        Where the network is.

    Returns
    -------
    confidence : float32 array of shape (H, W)
        Probability of foreground in [0, 1], averaged over scales and flipped images.

    Raises
    ------
    ValueError
        If the image is not uint8 (H, W, 3), or the network gives NaN or another shape.
    """
    return predict_many(network, [image], settings, device)[0]


def predict_many(
    network: Network,
    images: Sequence[Image],
    settings: Inference,
    device: torch.device | str = "cpu",
    sizes: Sequence[Size] | None = None,
) -> list[PixelMap]:
    """Foreground confidence of several images; each as :func:`predict` gives it.

    Parameters
    ----------
    network, settings, device
        As for :func:`predict`.
    images : sequence of uint8 arrays of shape (H, W, 3)
        RGB, of any sizes.
    sizes : sequence of tuple of int, optional
        (H, W) of the maps, where :func:`to_working_size` has shrunk the images.
    """
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
    device = torch.device(device)
    with single_thread(), torch.inference_mode():
        small = [to_working_size(image) for image in images]
        sides = [settings.input_sides] * len(small)
        means = _mean_answers(network, small, sides, settings.horizontal_flip, device)
        if settings.zoom_share:
            for boxes_of in (foreground_box, component_boxes):
                _zoom(network, small, means, boxes_of, settings, device)
        refined = [
            refine(settings.refinement, mean, image)
            for mean, image in zip(means, small, strict=True)
        ]
        sizes = sizes or [(image.shape[0], image.shape[1]) for image in images]
        return [
            np.clip(resize(confidence, size), 0.0, 1.0)
            for confidence, size in zip(refined, sizes, strict=True)
        ]


def _mean_answers(
    network: Network,
    images: Sequence[Image],
    sides: Sequence[Sequence[int]],
    mirror: bool,
    device: torch.device,
) -> list[PixelMap]:
    """Mean over the sides of each image, and over flipped ones, in the image's own size."""
    sums: list[PixelMap] = [np.zeros(image.shape[:2], np.float32) for image in images]
    buckets: dict[Size, list[int]] = {}
    for index, image in enumerate(images):
        for side in sides[index]:
            size = size_in_multiples(image.shape, side, network.multiple)
            buckets.setdefault(size, []).append(index)
    for size, members in buckets.items():
        for index, answer in _answers(network, images, size, members, mirror, device):
            sums[index] += resize(answer, sums[index].shape)
    return [total / np.float32(len(of)) for total, of in zip(sums, sides, strict=True)]


def _zoom(
    network: Network,
    images: Sequence[Image],
    means: Sequence[PixelMap],
    boxes_of: Callable[[PixelMap], list[Box]],
    settings: Inference,
    device: torch.device,
) -> None:
    """Look again at rectangles of each image, and average with what was seen, in place."""
    share = np.float32(settings.zoom_share)
    places = [
        (mean, image, box)
        for mean, image in zip(means, images, strict=True)
        for box in boxes_of(mean)
    ]
    crops = [np.ascontiguousarray(image[box]) for _, image, box in places]
    sides = [
        [closer_side(settings.input_sides, crop, image)]
        for crop, (_, image, _) in zip(crops, places, strict=True)
    ]
    answers = _mean_answers(network, crops, sides, settings.horizontal_flip, device)
    for (mean, _, box), closer in zip(places, answers, strict=True):
        mean[box] += share * (closer - mean[box])


def closer_side(sides: Sequence[int], crop: Image, image: Image) -> int:
    """Choose the scale at which a part of an image is looked at again.

    Parameters
    ----------
    sides : sequence of int
        Longer sides in pixels at which the whole image was seen.
    crop, image : uint8 arrays of shape (H, W, 3)
        The part and the whole.

    Returns
    -------
    side : int
        The smallest of them that shows the part at least as large as the whole image was ever
        shown; the largest if none does.

    Examples
    --------
    >>> image = np.zeros((300, 400, 3), np.uint8)
    >>> closer_side((320, 448), image[:200, :200], image), closer_side((320, 448), image, image)
    (320, 448)
    """
    wanted = max(sides) * max(crop.shape[:2]) / max(image.shape[:2])
    return min(side for side in sides if side >= wanted or side == max(sides))


def foreground_box(confidence: PixelMap) -> list[Box]:
    """Find the rectangle that a network should see enlarged.

    Parameters
    ----------
    confidence : float32 array of shape (H, W)
        In [0, 1].

    Returns
    -------
    boxes : list of tuple of slice
        Rows and columns of the smallest rectangle that holds the mask at one half; empty if there
        is no mask, or if its rectangle is too small to show anything or as large as the image.

    Examples
    --------
    >>> confidence = np.zeros((100, 200), np.float32)
    >>> confidence[10:60, 30:80] = 1
    >>> foreground_box(confidence)
    [(slice(10, 60, None), slice(30, 80, None))]
    >>> foreground_box(confidence + 1), foreground_box(confidence / 3)
    ([], [])
    """
    mask = confidence >= 0.5
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return []
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    return [box] if _is_worth_a_look(box, mask.shape) else []


def component_boxes(confidence: PixelMap) -> list[Box]:
    """Find the rectangles of separate objects: connected components of a mask that has several.

    Parameters
    ----------
    confidence : float32 array of shape (H, W)
        In [0, 1].

    Returns
    -------
    boxes : list of tuple of slice
        As :func:`foreground_box`, of the (at most four) largest components with at least a tenth of
        the largest one's area, in the order of their first pixels; empty if there is only one.

    Examples
    --------
    >>> confidence = np.zeros((100, 200), np.float32)
    >>> confidence[10:60, 30:80] = confidence[50:99, 150:190] = confidence[0, 0] = 1
    >>> component_boxes(confidence)
    [(slice(10, 60, None), slice(30, 80, None)), (slice(50, 99, None), slice(150, 190, None))]
    """
    mask = np.asarray(confidence >= 0.5, np.uint8)
    _, _, found, _ = cv2.connectedComponentsWithStats(mask)
    found = found[1:]  # without the background
    areas = found[:, cv2.CC_STAT_AREA]
    large = [
        place for place in np.argsort(-areas, kind="stable") if areas[place] >= areas.max() / 10
    ]
    if len(large) < 2:
        return []
    boxes = [
        (slice(top, top + height), slice(left, left + width))
        for left, top, width, height in found[sorted(large[:MOST_COMPONENTS]), :4].tolist()
    ]
    return [box for box in boxes if _is_worth_a_look(box, mask.shape)]


def _is_worth_a_look(box: Box, shape: tuple[int, ...]) -> bool:
    """Whether a rectangle, enlarged, shows what the whole image does not."""
    sides: list[int] = [part.stop - part.start for part in box]
    return min(sides) >= LEAST_CROP and max(sides) <= MOST_CROP * max(shape)


def to_working_size(image: Image) -> Image:
    """Shrink an image to the size at which it is computed; small ones stay as they are."""
    return shrink(image, WORKING_SIDE)


def batch_on(device: torch.device) -> int:
    """Inputs of one size that are computed together on a device."""
    return GPU_BATCH if device.type == "cuda" else 1


def _answers(
    network: Network,
    images: Sequence[Image],
    size: Size,
    members: Sequence[int],
    mirror: bool,
    device: torch.device,
) -> Iterator[tuple[int, PixelMap]]:
    """Probability of foreground on the network's grid, for the members of a bucket."""
    batch = batch_on(device)
    for start in range(0, len(members), batch):
        chunk = members[start : start + batch]
        pixels = np.zeros((batch, *size, 3), np.uint8)
        for place, index in enumerate(chunk):
            pixels[place] = resize(images[index], size)
        x = to_input(pixels, network, device)
        answer = _probability(network, x)
        if mirror:
            answer = (answer + _probability(network, x.flip(3)).flip(2)) / 2
        found = answer.cpu().numpy()
        if not np.isfinite(found[: len(chunk)]).all():
            raise ValueError("the network gave NaN or infinity; train it again")
        yield from zip(chunk, found, strict=False)


def _probability(network: Network, x: Tensor) -> Tensor:
    """Float (N, 3, H, W) to the probability of foreground (N, h, w)."""
    logits = network(x)
    if logits.ndim != 4 or logits.shape[:2] != (len(x), 2):
        raise ValueError(f"the network must give logits ({len(x)}, 2, h, w), got {logits.shape}")
    return functional.softmax(logits.float(), dim=1)[:, 1]


def refine(
    how: Literal["none", "superpixels", "guided", "graph_cut"], confidence: PixelMap, image: Image
) -> PixelMap:
    """Bring the borders of a confidence map to those of its image.

    Parameters
    ----------
    how : {"none", "superpixels", "guided", "graph_cut"}
        Nothing; the mean over superpixels; a guided filter (He et al., PAMI 2013) whose guide is
        the image; the best cut of the image's colours near the outline
        (:func:`saff.outlines.cut_outline`).
    confidence : float32 array of shape (H, W)
        In [0, 1].
    image : uint8 array of shape (H, W, 3)
        RGB.

    Returns
    -------
    refined : float32 array of shape (H, W)
        In [0, 1].
    """
    if how == "superpixels":
        superpixels = slic(image, REGIONS)
        means = region_means(confidence[None], superpixels)[:, 0]
        return means.astype(np.float32)[superpixels]
    if how == "graph_cut":
        return cut_outline(confidence, image)
    if how == "guided":
        radius = max(1, round(GUIDED_RADIUS * max(image.shape[:2]) / 512))
        filtered = cv2.ximgproc.guidedFilter(image, confidence, radius, GUIDED_EPSILON)
        return np.clip(filtered, 0.0, 1.0)
    return confidence
