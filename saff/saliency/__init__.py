"""RGB -> saliency map: back ends by name.

A back end is any callable ``back_end(image)`` from uint8 (H, W, 3) to float32 (H, W) in [0, 1].
One that computes on superpixels may also have ``on_regions(image, superpixels)``, with the same
result type; the run then hands it the superpixels it has, instead of cutting the image twice.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from saff import backends
from saff.arrays import Image, LabelMap, PixelMap
from saff.modelfile import read_model
from saff.saliency.drfi import KIND, Drfi, shipped_drfi
from saff.saliency.rbd import RobustBackground


class Saliency(Protocol):
    """What a saliency back end is."""

    def __call__(self, image: Image, /) -> PixelMap:
        """Saliency of each pixel: uint8 (H, W, 3) to float32 (H, W) in [0, 1]."""


@runtime_checkable
class RegionSaliency(Protocol):
    """A saliency back end that can share the run's superpixels."""

    def on_regions(self, image: Image, superpixels: LabelMap) -> PixelMap:
        """Saliency of each pixel, constant on each region of the given int32 (H, W) label map."""


def load(name: str) -> Saliency:
    """Load a saliency back end.

    Parameters
    ----------
    name : str
        ``"rbd"`` (robust background detection), ``"drfi"`` (region features at 15 levels and a
        regressor that comes with the package),
        ``"drfi:FILE"`` (a regressor of your own, as ``jobs/fit_saliency.py`` writes it), or
        ``package.module:factory``.

    Returns
    -------
    saliency : Saliency
        Callable on an image.

    Raises
    ------
    SettingsError
        If there is no such back end.
    WeightsError
        If its model file is missing or damaged.
    """
    kind, _, file = name.partition(":")
    if kind == "drfi" and file:
        return Drfi(read_model(file, KIND))
    known: dict[str, Callable[[], Saliency]] = {
        "rbd": RobustBackground,
        "drfi": shipped_drfi,
    }
    return backends.load("saliency", name, known)
