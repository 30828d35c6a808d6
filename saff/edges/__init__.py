"""RGB -> edge map: back ends by name.

A back end is any callable ``back_end(image)`` from uint8 (H, W, 3) to float32 (H, W) in [0, 1].
"""

from collections.abc import Callable
from typing import Protocol

from saff import backends
from saff.arrays import Image, PixelMap
from saff.edges.gradient import Gradient
from saff.edges.learned import KIND, LearnedEdges, shipped_edges
from saff.edges.structured import StructuredEdges
from saff.modelfile import read_model


class Edges(Protocol):
    """What an edge back end is."""

    def __call__(self, image: Image, /) -> PixelMap:
        """Edge strength of each pixel: uint8 (H, W, 3) to float32 (H, W) in [0, 1]."""


def load(name: str) -> Edges:
    """Load an edge back end.

    Parameters
    ----------
    name : str
        ``"gradient"`` (colour gradient), ``"learned"`` (a small network trained on BSDS500, whose
        weights come with the package), ``"learned:FILE"`` (weights of your own, as
        ``jobs/fit_edges.py`` writes them), ``"structured:FILE"`` (a structured forest as OpenCV
        reads it), or ``package.module:factory``.

    Returns
    -------
    edges : Edges
        Callable on an image.

    Raises
    ------
    SettingsError
        If there is no such back end.
    WeightsError
        If its model file is missing or damaged.
    """
    kind, _, file = name.partition(":")
    if kind == "structured":
        return StructuredEdges(file)
    if kind == "learned" and file:
        return LearnedEdges(read_model(file, KIND))
    known: dict[str, Callable[[], Edges]] = {"gradient": Gradient, "learned": shipped_edges}
    return backends.load("edges", name, known)
