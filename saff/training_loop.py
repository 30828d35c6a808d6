"""The loop that every training runs: a step for each batch, and a running average of weights."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from saff.errors import TrainingError

Batch = TypeVar("Batch")
Metrics = dict[str, float]


class Schedule(NamedTuple):
    """What changes from step to step."""

    rate_factor: Callable[[int], float]
    """Factor on the learning rate of every parameter group, by the number of steps done."""
    ema_keep: Callable[[int], float] | None
    """Share of the running average that a step keeps, by its number from 1; None: no average."""
    advice: str
    """What to change if the loss is not finite, for the message."""


@dataclass(slots=True)
class State:
    """Everything that a training continues from.

    Attributes
    ----------
    step : int
        Steps done.
    network, optimiser, average : dict
        State dicts; ``average`` holds the running average of the floating-point entries.
    """

    step: int
    network: dict[str, Tensor]
    optimiser: dict[str, Any]
    average: dict[str, Tensor]

    def weights(self) -> dict[str, Tensor]:
        """State dict of the network that training is for: the averaged one, if it averages."""
        return {**self.network, **self.average}


class Loop(Generic[Batch]):
    """A training under way.

    Parameters
    ----------
    network, optimiser
        Changed in place; the learning rates are those before ``schedule.rate_factor``.
    gradients : callable
        Sets the gradients to those of a batch and returns its metrics, ``loss`` among them.
    schedule : Schedule
        Learning rates and average.
    state : State, optional
        Continue from there.
    """

    def __init__(
        self,
        network: nn.Module,
        optimiser: Optimizer,
        gradients: Callable[[Batch], Metrics],
        schedule: Schedule,
        state: State | None = None,
    ) -> None:
        self.network, self.optimiser = network, optimiser
        self.gradients, self.schedule = gradients, schedule
        self.step = 0
        if state is not None:
            self.step = state.step
            network.load_state_dict(state.network)
            optimiser.load_state_dict(state.optimiser)
        self.rates = LambdaLR(optimiser, schedule.rate_factor, last_epoch=self.step - 1)
        self.average = {}
        if schedule.ema_keep:
            self.average = {k: v.clone() for k, v in floats(network.state_dict()).items()}
            for name, value in state.average.items() if state else ():
                self.average[name].copy_(value)

    def steps(self, batches: Iterable[Batch]) -> Iterator[Metrics]:
        """Take a step for each batch.

        Yields ``step`` (from 1), what ``gradients`` returned, ``gradient_norm`` and ``seconds``.

        Raises
        ------
        TrainingError
            If the loss or its gradient is not finite; the network stays as it was.
        """
        began = time.perf_counter()
        for batch in batches:
            self.optimiser.zero_grad(set_to_none=True)
            metrics = self.gradients(batch)
            loss, norm = metrics["loss"], gradient_norm(self.network)
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise TrainingError(
                    f"the loss is {loss} and the gradient {norm} at step {self.step + 1}; "
                    f"{self.schedule.advice}"
                )
            self.optimiser.step()
            self.rates.step()
            self.step += 1
            if self.schedule.ema_keep:
                update_average(self.average, self.network, self.schedule.ema_keep(self.step))
            now = time.perf_counter()
            yield {"step": self.step, **metrics, "gradient_norm": norm, "seconds": now - began}
            began = now

    def state(self) -> State:
        """Copy everything that training continues from to the CPU."""
        return State(
            self.step,
            {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()},
            copy.deepcopy(self.optimiser.state_dict()),  # the next step changes its tensors
            {k: v.detach().cpu().clone() for k, v in self.average.items()},
        )


def poly_learning_rate(step: int, steps: int, base: float, power: float = 0.9) -> float:
    """Give the rate of a step: ``base * (1 - step / steps) ** power``.

    >>> poly_learning_rate(0, 100, 0.5), round(poly_learning_rate(50, 100, 1.0), 4)
    (0.5, 0.5359)
    """
    return float(base * (1 - step / steps) ** power)


def ema_keep(decay: float, count: int) -> float:
    """Give the share that a running average of ``count`` weights keeps: less while they are few.

    >>> ema_keep(0.99, 0), ema_keep(0.99, 1), ema_keep(0.99, 2000)
    (0.0, 0.1, 0.99)
    """
    return min(decay, count / (count + 9))


def gradient_norm(network: nn.Module) -> float:
    """Euclidean norm of all gradients together."""
    found = [p.grad for p in network.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(found))


def floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Entries of a state dict that can be averaged."""
    return {name: value for name, value in state.items() if value.is_floating_point()}


@torch.no_grad()
def update_average(average: dict[str, Tensor], network: nn.Module, keep: float) -> None:
    """Move a running average of weights towards those of a network."""
    for name, value in floats(network.state_dict()).items():
        average[name].lerp_(value, 1 - keep)
