"""RGB -> edge map: back ends by name.

A back end is any callable ``back_end(image)`` from uint8 (H, W, 3) to float32 (H, W) in [0, 1].
"""

from typing import Protocol

from saff import backends
from saff.arrays import Image, PixelMap
from saff.edges.gradient import Gradient


class Edges(Protocol):
    """What an edge back end is."""

    def __call__(self, image: Image, /) -> PixelMap:
        """Edge strength of each pixel: uint8 (H, W, 3) to float32 (H, W) in [0, 1]."""


def load(name: str) -> Edges:
    """Load an edge back end.

    Parameters
    ----------
    name : str
        ``"gradient"`` (colour gradient), or ``package.module:factory``.

    Returns
    -------
    edges : Edges
        Callable on an image.

    Raises
    ------
    SettingsError
        If there is no such back end.
    """
    return backends.load("edges", name, {"gradient": Gradient})
