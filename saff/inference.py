"""Predict with a trained network: several scales, flipped images, outlines that follow edges.

Images that become inputs of one size are computed together, in batches that are always full:
places that no image needs are filled up.  So what comes out for an image does not depend on what
is computed beside it.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

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
        sums: list[PixelMap] = [np.zeros(image.shape[:2], np.float32) for image in small]
        buckets: dict[Size, list[int]] = {}
        for index, image in enumerate(small):
            for side in settings.input_sides:
                size = size_in_multiples(image.shape, side, network.multiple)
                buckets.setdefault(size, []).append(index)
        for size, members in buckets.items():
            for index, answer in _answers(
                network, small, size, members, settings.horizontal_flip, device
            ):
                sums[index] += resize(answer, sums[index].shape)
        means: list[PixelMap] = [total / np.float32(len(settings.input_sides)) for total in sums]
        refined = [
            refine(settings.refinement, mean, image)
            for mean, image in zip(means, small, strict=True)
        ]
        sizes = sizes or [(image.shape[0], image.shape[1]) for image in images]
        return [
            np.clip(resize(confidence, size), 0.0, 1.0)
            for confidence, size in zip(refined, sizes, strict=True)
        ]


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
