"""Fitting the edge network to boundaries that people drew."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
import torch
from scipy.io import loadmat
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from saff.arrays import AnyArray, Image
from saff.backbones import efficientnet_lite
from saff.backbones.inputs import to_input
from saff.edges.network import NAME, EdgeNetwork
from saff.errors import SettingsError
from saff.images import ImageError, decode
from saff.training_loop import Loop, Metrics, Schedule, ema_keep, poly_learning_rate


@dataclass(frozen=True, slots=True)
class EdgeFitting:
    """How the network is fitted."""

    steps: int = 900
    batch_size: int = 8
    crop_size: int = 320
    """Side of the square that the network sees, in pixels."""
    scale: tuple[float, float] = (0.7, 1.5)
    """Each sample is scaled by a factor between these (log-uniform)."""
    head_learning_rate: float = 2e-3
    """Learning rate of the layers that start from random numbers."""
    trunk_learning_rate: float = 3e-4
    weight_decay: float = 1e-2
    warmup_steps: int = 30
    """Steps in which the learning rates rise from 0 to their values."""
    ema_decay: float = 0.99
    """Decay of the running average of the weights, which becomes the result."""
    agreed: float = 0.3
    """Share of the annotators above which a pixel is an edge; between it and none, ignored."""
    seed: int = 0


Sample: TypeAlias = tuple[Image, AnyArray, AnyArray]
"""What :func:`draw` gives."""


class Drawn(NamedTuple):
    """An image and what people drew on it.

    Attributes
    ----------
    image : uint8 array of shape (H, W, 3)
        RGB.
    people : float32 array of shape (A, H, W)
        Boundaries of each annotator, 0 or 1.
    """

    image: Image
    people: AnyArray


def read_boundaries(data: bytes) -> AnyArray:
    """Read boundaries: a BSDS500 ``.mat`` file, or a grey PNG, to float32 (A, H, W) of 0 and 1.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if data.startswith(b"\x89PNG"):
        try:
            decode(data)  # neither damaged nor too large
        except ImageError as error:
            raise ValueError(f"the boundaries are a PNG that cannot be read: {error}") from error
        drawn = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        if drawn is None:
            raise ValueError("the boundaries are a PNG of a kind that is not read")
        return (np.asarray(drawn)[None] > 127).astype(np.float32)
    try:
        cells = loadmat(io.BytesIO(data))["groundTruth"].ravel()
        people = [cell["Boundaries"][0, 0] for cell in cells]
        return np.stack([np.asarray(p, dtype=np.float32) > 0 for p in people]).astype(np.float32)
    except Exception as error:  # SciPy raises a dozen kinds
        raise ValueError(
            "the boundaries are neither a PNG nor a .mat file with groundTruth, as BSDS500 has them"
        ) from error


def fit_edges(
    examples: Sequence[Drawn],
    settings: EdgeFitting,
    *,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Tensor]:
    """Fit the network, from ImageNet weights, to its last step.

    Parameters
    ----------
    examples : sequence of Drawn
        To learn from.
    settings : EdgeFitting
        Steps, learning rates, augmentation.
    on_step : callable, optional
        Called after each step with its number (from 1) and its loss.

    Returns
    -------
    state : dict of str to Tensor
        State dict of :class:`saff.edges.network.EdgeNetwork`.

    Raises
    ------
    SettingsError
        If there is nothing to learn from.
    TrainingError
        If the loss is not finite.
    """
    if not examples:
        raise SettingsError("no image with boundaries to learn from")
    network, optimiser = _start(settings)

    def gradients(drawn: list[Sample]) -> Metrics:
        images, shares, valid = (np.stack(column) for column in zip(*drawn, strict=True))
        logits = network(to_input(images, network))
        loss = edge_loss(
            interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)[:, 0],
            torch.from_numpy(shares),
            torch.from_numpy(valid),
            settings.agreed,
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": float(loss.detach())}

    schedule = Schedule(
        lambda done: (
            poly_learning_rate(done, settings.steps, 1.0)
            * min(1.0, (done + 1) / settings.warmup_steps)
        ),
        lambda step: ema_keep(settings.ema_decay, step - 1),  # the first forgets where it started
        "set lower learning rates",
    )
    loop = Loop(network, optimiser, gradients, schedule)
    for metrics in loop.steps(draw_batch(examples, settings, n) for n in range(settings.steps)):
        if on_step:
            on_step(loop.step, metrics["loss"])
    return loop.state().weights()


def _start(settings: EdgeFitting) -> tuple[EdgeNetwork, torch.optim.Optimizer]:
    trunk, _ = efficientnet_lite.load(NAME)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = EdgeNetwork(trunk)
    assert network.score.bias is not None
    torch.nn.init.constant_(network.score.bias, -2.0)  # most pixels are no edge
    network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    new = [*network.lateral.parameters(), *network.mix.parameters(), *network.score.parameters()]
    ids = {id(p) for p in new}
    old = [p for p in network.parameters() if id(p) not in ids]
    groups = [
        {"params": new, "lr": settings.head_learning_rate},
        {"params": old, "lr": settings.trunk_learning_rate},
    ]
    return network, torch.optim.AdamW(groups, weight_decay=settings.weight_decay)


def draw_batch(examples: Sequence[Drawn], settings: EdgeFitting, number: int) -> list[Sample]:
    """Draw the samples of a step; they depend on the seed and the number of the step alone."""
    rng = np.random.default_rng((settings.seed, number))
    chosen = [int(rng.integers(len(examples))) for _ in range(settings.batch_size)]
    return [draw(examples[index], settings, rng) for index in chosen]


def draw(example: Drawn, settings: EdgeFitting, rng: np.random.Generator) -> Sample:
    """Draw a sample: turned by any angle or by right angles, flipped, scaled, cropped.

    Returns
    -------
    image : uint8 array of shape (C, C, 3)
        Reflected at its borders.
    share : float32 array of shape (C, C)
        Share of the annotators who drew an edge at each pixel.
    valid : bool array of shape (C, C)
        Pixels of the image.
    """
    crop = settings.crop_size
    height, width = example.image.shape[:2]
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.5 else rng.integers(4) * np.pi / 2
    scale = np.exp(rng.uniform(*np.log(settings.scale)))
    flip = rng.integers(2) * 2 - 1
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.array([[cos * flip, -sin], [sin * flip, cos]])
    reach = crop / 2 / scale
    centre = [rng.uniform(min(reach, n / 2), max(n - reach, n / 2)) for n in (width, height)]
    shift = np.full(2, crop / 2) - turn @ centre
    matrix = np.column_stack([turn, shift])
    image = cv2.warpAffine(
        example.image, matrix, (crop, crop), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    inside = np.ones((height, width), np.uint8)
    valid = cv2.warpAffine(inside, matrix, (crop, crop), flags=cv2.INTER_NEAREST) > 0
    # One by one, so that a thin line is not averaged away.  Where it falls between two pixels of a
    # sample at a scale below .83 it may still vanish (one in ten at .7).
    lines = [cv2.warpAffine(p, matrix, (crop, crop)) >= 0.4 for p in example.people]
    share = np.asarray(np.mean(lines, axis=0), dtype=np.float32)
    return np.asarray(image, np.uint8), share, valid


def edge_loss(logits: Tensor, share: Tensor, valid: Tensor, agreed: float) -> Tensor:
    """Cross-entropy in which edges and the rest weigh about the same.

    Parameters
    ----------
    logits, share : float32 tensors of shape (N, H, W)
        What the network says; the share of the annotators who drew an edge.
    valid : bool tensor of shape (N, H, W)
        Pixels that count.
    agreed : float
        Above this share a pixel is an edge; pixels between it and 0 do not count.
    """
    edge, rest = (share > agreed) & valid, (share == 0) & valid
    edges, others = edge.sum(), rest.sum()
    total = (edges + others).clamp(min=1)
    each = binary_cross_entropy_with_logits(logits, edge.float(), reduction="none")
    balanced = (each * edge).sum() * others + 1.1 * (each * rest).sum() * edges
    return 4.0 * balanced / (total * total)
