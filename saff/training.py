"""Training on pseudo labels: network, batches and settings in, weights out; paper, section 4.2.

It runs without Ray, on one process or as one of several that ``torch.distributed`` joins: the loss
is divided by what the batch holds over all workers, so the same batch gives the same step however
it is split.
"""

import contextlib
import io
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from saff.backbones.inputs import to_input
from saff.config import Training
from saff.errors import TrainingError
from saff.metrics import HALF
from saff.network import Network
from saff.network.dropout import set_keys
from saff.samples import Batch
from saff.training_loop import Loop, Metrics, Schedule, State, ema_keep, poly_learning_rate

MOST_EMPTY = 10  # steps
MIXED = 0.5  # of a cell's pixels that must be valid and sure for the cell to count


def train(
    network: nn.Module,
    batches: Iterable[Batch],
    training: Training,
    *,
    state: State | None = None,
    device: torch.device | str = "cpu",
    on_step: Callable[[Metrics], None] | None = None,
    on_checkpoint: Callable[[State], None] | None = None,
) -> State:
    """Train a network to its last step.

    Parameters
    ----------
    network : torch.nn.Module
        Float (N, 3, H, W), normalised, to logits (N, 2, h, w); see :class:`saff.network.Network`.
        May be wrapped in DistributedDataParallel.
    batches : iterable of Batch
        This process's share of the batch of every step from ``state.step`` on.
    training : Training
        Settings.
    state : State, optional
        Continue from there.
    device : torch.device or str
        Where the network is.
    on_step : callable, optional
        Called after each step with ``step`` (from 1), ``loss``, ``accuracy`` (share of the counted
        cells on whose label the network agrees), ``learning_rate`` (the trunk's),
        ``gradient_norm``, ``samples`` (of all workers, without photographs that are missing) and
        ``seconds``.
    on_checkpoint : callable, optional
        Called every ``training.checkpoint_interval`` steps and after the last, with the state.

    Returns
    -------
    state : State
        After the last step, on the CPU.

    Raises
    ------
    TrainingError
        If the loss is not finite or no pixel of a batch has a label.
    """
    device = torch.device(device)
    bare = cast(Network, getattr(network, "module", network))
    low_precision = training.bfloat16 and device.type == "cuda" and torch.cuda.is_bf16_supported()
    empty = 0  # steps in a row in which no pixel counted

    def step_gradients(batch: Batch) -> Metrics:
        nonlocal empty
        with torch.autocast(device.type, torch.bfloat16, enabled=low_precision):
            figures = gradients(network, bare, batch, training, device)
        empty = 0 if figures.cells else empty + 1
        if empty == MOST_EMPTY:
            raise TrainingError(
                f"no pixel had a label in the {empty} steps before step {loop.step + 1}: the "
                "images are gone or have changed since they were labelled, or "
                "training.ignore_margin is too large"
            )
        return {
            "loss": figures.loss,
            "accuracy": figures.accuracy,
            "samples": figures.samples,
        }

    schedule = make_schedule(training)
    optimiser = make_optimiser(bare, training)
    loop = Loop(bare, optimiser, step_gradients, schedule, state)
    network.train()
    for metrics in loop.steps(batches):
        step = loop.step
        if on_step:
            rate = training.learning_rate * schedule.rate_factor(step - 1)
            on_step({**metrics, "learning_rate": rate})
        due = step % training.checkpoint_interval == 0 or step == training.steps
        if on_checkpoint and due:
            on_checkpoint(loop.state())
    return loop.state()


# One step


class Figures(NamedTuple):
    """What is known of a step, over all workers: means over the counted cells, and counts."""

    loss: float
    accuracy: float
    cells: int
    samples: int


def gradients(
    network: nn.Module, bare: Network, batch: Batch, training: Training, device: torch.device
) -> Figures:
    """Set the gradients to those of the mean loss over the whole batch, on every worker."""
    sums = torch.zeros(4, dtype=torch.float64)  # loss, cells agreed on, cells counted, samples
    shares = np.array_split(
        np.arange(len(batch.keys)), min(training.gradient_accumulation_steps, len(batch.keys))
    )
    for number, share in enumerate(shares):
        last = number == len(shares) - 1
        apart = contextlib.nullcontext() if last else _without_sync(network)
        set_keys(bare, [batch.keys[index] for index in share])
        with apart:
            images = to_input(batch.image[share], bare, device)
            logits = network(images).float()
            target, counted = reduce_labels(
                torch.from_numpy(batch.confidence[share]).to(device, non_blocking=True),
                torch.from_numpy(batch.valid[share]).to(device, non_blocking=True),
                (logits.shape[2], logits.shape[3]),
                training,
            )
            loss = summed_loss(logits, target, counted)
            loss.backward()  # type: ignore[no-untyped-call]
        agreed = ((logits[:, 1] > logits[:, 0]) == (target >= 0.5)) & counted
        learnt = torch.tensor(batch.valid[share].any(axis=(1, 2)).sum())  # not those missing
        part = [loss.detach(), agreed.sum(), counted.sum(), learnt]
        sums += torch.stack([value.double().cpu() for value in part])
    workers = 1
    if dist.is_initialized():
        workers = dist.get_world_size()
        total = sums.to(device)
        dist.all_reduce(total)
        sums = total.cpu()
    loss_sum, agreed_cells, cells, samples = sums.tolist()
    divisor = max(cells, 1.0)
    for parameter in bare.parameters():
        if parameter.grad is not None:  # of the sum, which several workers have averaged
            parameter.grad.mul_(workers / divisor)
    return Figures(loss_sum / divisor, agreed_cells / divisor, int(cells), int(samples))


def _without_sync(network: nn.Module) -> Any:
    no_sync = getattr(network, "no_sync", contextlib.nullcontext)
    return no_sync()


def reduce_labels(
    confidence: Tensor, valid: Tensor, size: tuple[int, int], training: Training
) -> tuple[Tensor, Tensor]:
    """Reduce labels to the cells of the network's map.

    Parameters
    ----------
    confidence : uint8 tensor of shape (N, C, C)
        0..255.
    valid : bool tensor of shape (N, C, C)
        Pixels of the image.
    size : tuple of int
        (h, w) of the map.
    training : Training
        ``targets`` and ``ignore_margin``.

    Returns
    -------
    target : float32 tensor of shape (N, h, w)
        Share of foreground in [0, 1]; 0 or 1 with hard labels.
    counted : bool tensor of shape (N, h, w)
        Cells of which at least half the pixels are valid and not in doubt.
    """
    level = confidence.float() / 255
    sure = valid & ((level - 0.5).abs() >= training.ignore_margin)
    if training.targets == "hard":
        level = (confidence >= HALF).float()
    share = functional.adaptive_avg_pool2d(sure.float(), size)
    target = functional.adaptive_avg_pool2d(level * sure, size) / share.clamp(min=1e-6)
    if training.targets == "hard":
        target = (target >= 0.5).float()
    return target, share >= MIXED


def summed_loss(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Softmax cross-entropy, summed over the counted cells.

    Parameters
    ----------
    logits : float32 tensor of shape (N, 2, h, w)
        Background and foreground.
    target : float32 tensor of shape (N, h, w)
        Probability of foreground.
    counted : bool tensor of shape (N, h, w)
        The others have no part in it.

    Returns
    -------
    loss : float32 tensor of shape ()
        At least 0; in nats.
    """
    log_p = functional.log_softmax(logits, dim=1)
    loss = -(target * log_p[:, 1] + (1 - target) * log_p[:, 0])
    return (loss * counted).sum()


# Optimiser


def make_schedule(training: Training) -> Schedule:
    """Rates that rise in the first steps and then fall as a polynomial; the average's decay."""

    def rate_factor(done: int) -> float:
        base = training.learning_rate
        rate = poly_learning_rate(done, training.steps, base, training.poly_power)
        return rate / base * min(1.0, (done + 1) / (training.warmup_steps + 1))

    return Schedule(
        rate_factor,
        partial(ema_keep, training.ema_decay) if training.ema_decay else None,
        f"set a lower training.learning_rate (it is {training.learning_rate:g}); the last "
        "checkpoint stays",
    )


def make_optimiser(network: Network, training: Training) -> torch.optim.Optimizer:
    """SGD or AdamW over the four groups of :func:`parameter_groups`."""
    groups = parameter_groups(network, training)
    if training.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=training.momentum)
    return torch.optim.AdamW(groups, betas=(training.momentum, 0.999))


def parameter_groups(network: Network, training: Training) -> list[dict[str, Any]]:
    """Split parameters by how fast they learn.

    Weights and biases of the trunk and of the layers that start from random numbers
    (``network.head``). Biases, to which the scale and shift of normalisations count, learn at
    ``bias_rate`` times the rate of the weights beside them and do not decay.
    """
    new = {id(p) for p in network.head.parameters()}
    groups = []
    for in_head in (False, True):
        for is_bias in (False, True):
            parameters = [
                p
                for p in network.parameters()
                if (id(p) in new) == in_head and (p.ndim == 1) == is_bias and p.requires_grad
            ]
            rate = training.learning_rate * (training.head_learning_rate_factor if in_head else 1.0)
            rate *= training.bias_learning_rate_factor if is_bias else 1.0
            decay = 0.0 if is_bias else training.weight_decay
            if parameters:
                groups.append({"params": parameters, "lr": rate, "weight_decay": decay})
    return groups


# Checkpoints


def to_bytes(state: State, identity: str) -> bytes:
    """Write a checkpoint: tensors, numbers and text only."""
    stream = io.BytesIO()
    content = {field.name: getattr(state, field.name) for field in fields(state)}
    torch.save({"identity": identity, **content}, stream)
    return stream.getvalue()


def from_bytes(data: bytes, identity: str, name: str) -> State:
    """Read a checkpoint without running anything it holds.

    Raises
    ------
    TrainingError
        If it is damaged, or belongs to another training.
    """
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        found = content.pop("identity")
        state = State(**content)
    except Exception as error:  # torch raises a dozen kinds
        raise TrainingError(
            f"the checkpoint {name} is damaged or holds other objects than tensors (none was run); "
            "remove it to continue from the one before"
        ) from error
    if found != identity:
        raise TrainingError(
            f"the checkpoint {name} is of another network, configuration or set of labels "
            f"({found[:12]}, expected {identity[:12]}); train with --restart, or into another "
            "output"
        )
    return state
