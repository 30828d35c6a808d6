"""Settings of a run: published and recommended values, JSON in and out, digest."""

import dataclasses
import hashlib
import json
import sys
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from saff.errors import SettingsError

MOST_SPREAD_STEPS = 100
MOST_SUPERPIXELS = 4096  # similarities are (R, R): 128 MiB each at this number


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How a network learns from labels."""

    network: str = "efficientnet_lite0"
    """A name that ``saff.network.load`` knows, or ``package.module:factory``."""
    network_weights: str | None = None
    """File or URI of the trunk's weights; none: the published ones."""
    frozen_stages: int = 3
    """First stages of the trunk that stay as they are: edges and colours, known from ImageNet."""
    max_side: int = 512
    """Longer images are shrunk to this many pixels before anything else."""
    scale_range: tuple[float, float] = (0.6, 1.2)
    """Each sample is scaled by a factor between these, as likely small as large (log-uniform)."""
    crop_size: int = 320
    """Side of the square that the network sees, in pixels."""
    batch_size: int = 8
    """Samples a step, over all workers."""
    gradient_accumulation_steps: int = 1
    """Parts that a worker's share of a batch is computed in, one after the other; saves memory."""
    steps: int = 600
    """Steps of the optimiser."""
    targets: Literal["hard", "soft"] = "hard"
    """Targets: the confidence binarised at 0.5 (published), or the confidence itself."""
    ignore_margin: float = 0.1
    """Pixels with a confidence nearer to 0.5 than this are ignored; in [0, 0.5]."""

    optimiser: Literal["sgd", "adamw"] = "adamw"
    """SGD with momentum (published), or AdamW, which needs fewer steps."""
    learning_rate: float = 1e-4
    """Learning rate of the trunk's weights at the start."""
    head_learning_rate_factor: float = 10.0
    """Factor on ``learning_rate`` for the layers that start from random numbers."""
    bias_learning_rate_factor: float = 1.0
    """Times the rate of the weights for biases, which never decay."""
    poly_power: float = 0.9
    """Of the poly schedule: ``rate (1 - step / steps) ** power``."""
    warmup_steps: int = 30
    """Steps in which the rate rises to its place."""
    momentum: float = 0.9
    """Of SGD; the first moment of AdamW."""
    weight_decay: float = 0.01
    """Of weights."""
    ema_decay: float = 0.99
    """Decay of the running average of the weights that becomes the result; 0: the last ones."""
    bfloat16: bool = True
    """Compute in bfloat16 on a GPU that has it."""

    seed: int = 0
    """Of the new layers, of the order of the images and of what is drawn for each."""
    checkpoint_interval: int = 100
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Older ones are removed."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        _check_types(self, "training.")
        whole = (
            "max_side",
            "crop_size",
            "batch_size",
            "gradient_accumulation_steps",
            "steps",
            "checkpoint_interval",
        )
        for name in (*whole, "keep_checkpoints"):
            _at_least(self, "training.", name, 1)
        for name in (
            "frozen_stages",
            "warmup_steps",
            "seed",
            "head_learning_rate_factor",
            "bias_learning_rate_factor",
            "poly_power",
            "weight_decay",
        ):
            _at_least(self, "training.", name, 0)
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise SettingsError(
                f"training.scale_range must be 0 < low <= high, got {list(self.scale_range)}"
            )
        if not 0 <= self.ignore_margin <= 0.5:
            raise SettingsError(
                f"training.ignore_margin must be in [0, 0.5], got {self.ignore_margin}"
            )
        if not self.learning_rate > 0:
            raise SettingsError(f"training.learning_rate must be above 0, got {self.learning_rate}")
        for name in ("momentum", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingsError(f"training.{name} must be in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Inference:
    """How a trained network is asked."""

    input_sides: tuple[int, ...] = (384, 512)
    """Longer sides of the network's input in pixels; the answers are averaged."""
    horizontal_flip: bool = False
    """Ask for the mirrored image too."""
    refinement: Literal["none", "superpixels", "guided"] = "none"
    """Last step: nothing, the mean over superpixels, or a guided filter along the image's edges."""
    max_pixels: int = 100_000_000
    """Images whose header announces more pixels are refused before decoding."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        _check_types(self, "inference.")
        if not self.input_sides or min(self.input_sides) < 1:
            raise SettingsError(
                f"inference.input_sides must be at least 1, got {list(self.input_sides)}"
            )
        _at_least(self, "inference.", "max_pixels", 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything that decides what a mask looks like; equal settings give equal masks."""

    encoder: str = "efficientnet_lite0"
    """Semantic encoder, a name that ``saff.semantic.load`` knows."""
    encoder_weights: str | None = None
    """File or URI of the encoder's weights; none: the published ones."""
    encoder_side: int = 512
    """Longer side of the encoder's input, in pixels."""
    saliency: str = "drfi"
    """Saliency back end, a name that ``saff.saliency.load`` knows."""
    edges: str = "gradient"
    """Edge back end, a name that ``saff.edges.load`` knows."""
    superpixel_count: int = 450
    """Wanted number of superpixels per image."""
    extra_superpixel_counts: tuple[int, ...] = ()
    """Further cuts of the image, whose confidence is averaged with that of the first."""
    working_side: int = 1024
    """Longer images are shrunk to this many pixels to compute, and their maps enlarged again."""
    max_pixels: int = 100_000_000
    """Images whose header announces more pixels are refused before decoding."""

    temperature: float = 10.0
    """Of the exponential that turns class scores into semantic vectors; above 0."""
    semantic_unary: Literal["max_class", "border_contrast", "attention"] = "border_contrast"
    """S_s: the strongest class (published), how unlike the image border the features are, or a
    transformer's attention."""
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
    seeds: Literal["geometric_mean", "consensus"] = "consensus"
    """Evidence: sqrt(S_s S_a) (published), or the prior score spread over semantic neighbours."""
    balance: bool = True
    """Both classes of seeds weigh the same."""
    prior: tuple[float, float, float, float] = (0.4, 0.4, 0.1, 0.1)
    """Weights of S_s, S_s_con, S_a, S_a_con that hold for images in general."""
    prior_strength: float = 10.0
    """Pull of the fit towards the prior; 0 is the published least squares."""
    spread_steps: int = 2
    """Times the score is spread over semantic neighbours, as Eq. 3 spreads saliency."""
    gamma: float = 1.5
    """Exponent of the score, spread or not: puts the best single threshold at 0.5."""

    training: Training = field(default_factory=Training)
    """How the network learns; does not decide what pseudo labels look like."""
    inference: Inference = field(default_factory=Inference)
    """How the network is asked."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work; whole numbers given for floats become floats."""
        _check_types(self)
        for name in ("encoder_side", "working_side", "max_pixels"):
            _at_least(self, "", name, 1)
        for name, counts in (
            ("superpixel_count", (self.superpixel_count,)),
            ("extra_superpixel_counts", self.extra_superpixel_counts),
        ):
            for count in counts:
                if not 1 <= count <= MOST_SUPERPIXELS:
                    bound = "at most" if count > 1 else "at least"
                    limit = MOST_SUPERPIXELS if count > 1 else 1
                    raise SettingsError(f"{name} must be {bound} {limit}, got {count}")
        for name in ("temperature", "affinity_power", "gamma"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} must be above 0, got {getattr(self, name)!r}")
        for name in ("edge_scale", "prior_strength", "spread_steps"):
            _at_least(self, "", name, 0)
        if self.spread_steps > MOST_SPREAD_STEPS:
            raise SettingsError(
                f"spread_steps must be at most {MOST_SPREAD_STEPS}, got {self.spread_steps}"
            )
        if not 0 <= self.background_below <= self.foreground_above <= 1:
            raise SettingsError(
                "expected 0 <= background_below <= foreground_above <= 1, got "
                f"{self.background_below} and {self.foreground_above}"
            )

    def to_json(self) -> str:
        """Write as JSON, one field a line."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def labeling(self) -> dict[str, Any]:
        """Give the settings that pseudo labels depend on, as JSON holds them."""
        values = json.loads(self.to_json())
        return {name: v for name, v in values.items() if name not in SECTIONS}

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


def fast() -> Config:
    """Settings at about half the cost of :func:`default`: a smaller input, simpler saliency."""
    return Config(encoder_side=384, saliency="rbd", superpixel_count=300)


def best() -> Config:
    """Settings for masks that fit more closely, at twice the cost: the mean of three cuts."""
    return Config(superpixel_count=600, extra_superpixel_counts=(200, 350))


def paper() -> Config:
    """Published procedure (arXiv 2005.10513, sections 3 and 4.1), equation by equation.

    Saliency is DRFI as published, with a regressor of our own; edges are learnt from BSDS500 as the
    published ones are.  The encoder (GoogLeNet) is one to be named on a connected machine:
    ``dataclasses.replace(paper(), encoder="googlenet", encoder_side=224)``.
    """
    return Config(
        encoder_side=448,
        superpixel_count=300,
        edges="learned",
        semantic_unary="max_class",
        semantic_affinity="classes",
        background_below=0.2,
        foreground_above=0.6,
        seeds="geometric_mean",
        prior=(0.25, 0.25, 0.25, 0.25),
        prior_strength=0.0,
        spread_steps=0,
        gamma=1.0,
        training=Training(
            network="vgg16",
            frozen_stages=0,
            scale_range=(0.5, 1.5),
            crop_size=321,
            batch_size=10,
            steps=20_000,
            ignore_margin=0.0,
            optimiser="sgd",
            learning_rate=1e-3,
            bias_learning_rate_factor=2.0,
            warmup_steps=0,
            weight_decay=5e-4,
            ema_decay=0.0,
            checkpoint_interval=1000,
        ),
        inference=Inference(input_sides=(384, 512, 640)),
    )


SECTIONS = {"training": Training, "inference": Inference}
NAMED = {"default": default, "fast": fast, "best": best, "paper": paper}


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
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"the configuration is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"the configuration must be a JSON object, got {type(values).__name__}")
    for name, section in SECTIONS.items():
        if isinstance(values.get(name), dict):
            values[name] = _make(section, values[name], f"{name}.")
    config: Config = _make(Config, values)
    return config


def _make(kind: Any, values: dict[str, Any], prefix: str = "") -> Any:
    known = sorted(entry.name for entry in dataclasses.fields(kind))
    unknown = [prefix + name for name in sorted(set(values) - set(known))]
    if unknown:
        raise SettingsError(f"unknown settings {', '.join(unknown)}; known: {', '.join(known)}")
    return kind(**values)


def _check_types(settings: Any, prefix: str = "") -> None:
    for entry in dataclasses.fields(settings):
        name, value = entry.name, getattr(settings, entry.name)
        if not _fits(value, entry.type):
            raise SettingsError(f"{prefix}{name} must be {_kind(entry.type)}, got {value!r}")
        object.__setattr__(settings, name, _settle(value, entry.type))


def _at_least(settings: Any, prefix: str, name: str, least: int) -> None:
    value = getattr(settings, name)
    if not value >= least:
        raise SettingsError(f"{prefix}{name} must be at least {least}, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; a whole number is a float, a bool is not."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return isinstance(value, str) and value in options
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            return False
        right_length = options[-1] is Ellipsis or len(value) == len(options)
        return right_length and all(_fits(v, options[0]) for v in value)
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
        return tuple(_settle(v, typing.get_args(hint)[0]) for v in value)
    return value


def _kind(hint: Any) -> str:
    """Name a field's type for a reader of JSON."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(option) for option in options)
    if typing.get_origin(hint) is tuple:
        whole = options[-1] is Ellipsis
        return "a list of whole numbers" if whole else f"{len(options)} finite numbers"
    if options:  # a union
        return " or ".join(_kind(option) for option in options)
    kinds: dict[Any, str] = {bool: "true or false", float: "a finite number", str: "text"}
    kinds |= {section: "an object of settings" for section in SECTIONS.values()}
    return (kinds | {int: "a whole number", type(None): "null"})[hint]
