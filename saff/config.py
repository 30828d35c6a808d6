"""Settings of a run: published and recommended values, JSON in and out, digest."""

import dataclasses
import hashlib
import json
import sys
import typing
from dataclasses import dataclass
from typing import Any, Literal

from saff.errors import SettingsError

MOST_SUPERPIXELS = 4096  # similarities are (R, R): 128 MiB each at this number


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything that decides what a mask looks like; equal settings give equal masks."""

    encoder: str = "efficientnet_lite0"
    """Semantic encoder, a name that ``saff.semantic.load`` knows."""
    encoder_weights: str | None = None
    """File or URI of the encoder's weights; none: the published ones."""
    encoder_side: int = 512
    """Longer side of the encoder's input, in pixels."""
    saliency: str = "rbd"
    """Saliency back end, a name that ``saff.saliency.load`` knows."""
    edges: str = "gradient"
    """Edge back end, a name that ``saff.edges.load`` knows."""
    superpixel_count: int = 300
    """Wanted number of superpixels per image."""
    working_side: int = 1024
    """Longer images are shrunk to this many pixels to compute, and their maps enlarged again."""
    max_pixels: int = 100_000_000
    """Images whose header announces more pixels are refused before decoding."""

    temperature: float = 2.0
    """Of the softmax that turns class scores into semantic vectors; above 0."""
    semantic_unary: Literal["max_class", "border_contrast"] = "border_contrast"
    """S_s: the strongest class (published), or how unlike the image border the features are."""
    semantic_affinity: Literal["classes", "features"] = "features"
    """M_s: shared class probability (Eq. 1), or similarity of the encoder's features."""
    affinity_power: float = 4.0
    """Exponent of the feature similarity; larger spreads over fewer, more similar regions."""
    edge_scale: float = 3.5
    """w_E of Eq. 2."""

    background_below: float = 0.3
    """Superpixels whose evidence is below are background seeds; in [0, 1]."""
    foreground_above: float = 0.7
    """Superpixels whose evidence is above are foreground seeds; in [0, 1]."""
    seeds: Literal["agreement", "consensus"] = "consensus"
    """Evidence: sqrt(S_s S_a) (published), or the prior score spread over semantic neighbours."""
    balance: bool = True
    """Both classes of seeds weigh the same."""
    prior: tuple[float, float, float, float] = (0.4, 0.4, 0.1, 0.1)
    """Weights of S_s, S_s_con, S_a, S_a_con that hold for images in general."""
    prior_strength: float = 10.0
    """Pull of the fit towards the prior; 0 is the published least squares."""
    spread: bool = True
    """Spread the score over semantic neighbours, as Eq. 3 spreads saliency."""
    gamma: float = 1.6
    """Exponent of the stretched spread score: puts the best single threshold at 0.5."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work; whole numbers given for floats become floats."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _fits(value, field.type):
                raise SettingsError(f"{field.name} must be {_kind(field.type)}, got {value!r}")
            object.__setattr__(self, field.name, _settle(value, field.type))
        for name in ("encoder_side", "superpixel_count", "working_side", "max_pixels"):
            if not getattr(self, name) >= 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if self.superpixel_count > MOST_SUPERPIXELS:
            raise SettingsError(
                f"superpixel_count must be at most {MOST_SUPERPIXELS}, got {self.superpixel_count}"
            )
        for name in ("temperature", "affinity_power", "gamma"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} must be above 0, got {getattr(self, name)!r}")
        for name in ("edge_scale", "prior_strength"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name} must be at least 0, got {getattr(self, name)!r}")
        if not 0 <= self.background_below <= self.foreground_above <= 1:
            raise SettingsError(
                "expected 0 <= background_below <= foreground_above <= 1, got "
                f"{self.background_below} and {self.foreground_above}"
            )

    def to_json(self) -> str:
        """Write as JSON, one field a line."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def digest(self) -> str:
        """SHA-256 of the settings, in hexadecimal; equal for equal settings only."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def default() -> Config:
    """Recommended settings; no download, about a quarter of a second an image on one core.

    They differ from :func:`paper` in the semantic feature (features instead of class scores), in
    the seeds (from a consensus instead of the product of two cues), in the fit (pulled towards a
    prior) and in the last step (the score is spread once more); ``docs/method.md`` says why and
    ``docs/results.md`` by how much.
    """
    return Config()


def paper() -> Config:
    """Published procedure (arXiv 2005.10513, sections 3 and 4.1), equation by equation.

    Its encoder (GoogLeNet), saliency (DRFI) and edges (structured) are back ends to be named;
    those here are what an installation without the internet has.  On a connected machine:
    ``dataclasses.replace(paper(), encoder="googlenet", encoder_side=224)``.
    """
    return Config(
        encoder_side=448,
        semantic_unary="max_class",
        semantic_affinity="classes",
        background_below=0.2,
        foreground_above=0.6,
        seeds="agreement",
        prior=(0.25, 0.25, 0.25, 0.25),
        prior_strength=0.0,
        spread=False,
        gamma=1.0,
    )


NAMED = {"default": default, "paper": paper}


def from_json(text: str) -> Config:
    """Read settings; fields that are left out keep the values of :func:`default`.

    Parameters
    ----------
    text : str
        A JSON object.

    Returns
    -------
    config : Config
        Checked.

    Raises
    ------
    SettingsError
        If the text is no JSON object, a field is unknown, or a value has the wrong type.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"the configuration is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"the configuration must be a JSON object, got {type(values).__name__}")
    known = sorted(field.name for field in dataclasses.fields(Config))
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise SettingsError(f"unknown settings {', '.join(unknown)}; known: {', '.join(known)}")
    return Config(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; a whole number is a float, a bool is not."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return isinstance(value, str) and value in options
    if typing.get_origin(hint) is tuple:
        right_length = isinstance(value, list | tuple) and len(value) == len(options)
        return right_length and all(_fits(v, float) for v in value)
    if options:  # a union
        return any(_fits(value, option) for option in options)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:  # no comparison holds for NaN, and infinity is above the largest
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, hint)


def _settle(value: Any, hint: Any) -> Any:
    """One spelling for equal values, so that equal settings have equal digests."""
    if hint is float:
        return float(value) + 0.0  # which makes -0.0 a 0.0
    if typing.get_origin(hint) is tuple:
        return tuple(_settle(v, float) for v in value)
    return value


def _kind(hint: Any) -> str:
    """Name a field's type for a reader of JSON."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(option) for option in options)
    if typing.get_origin(hint) is tuple:
        return f"{len(options)} finite numbers"
    if options:  # a union
        return " or ".join(_kind(option) for option in options)
    kinds: dict[Any, str] = {bool: "true or false", float: "a finite number", str: "text"}
    return (kinds | {int: "a whole number", type(None): "null"})[hint]
