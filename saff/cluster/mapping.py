"""Tasks mapped over parts with Ray Data, and what they report back."""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ray.data

from saff.cluster.faults import CatchFaults, CatchFaultsActor, raise_fault
from saff.cluster.ray_internals import quiet_data_logs
from saff.cluster.resources import ON_CPU
from saff.cluster.watchdog import watched
from saff.plan import Plan
from saff.progress import PATIENCE, Progress
from saff.shards import Row

MOST_BLOCKS = 10_000  # of Ray's plan; beyond, a task takes several parts one after the other


def map_parts(
    task: Any,
    names: Sequence[str | Row],
    *,
    compute: Any = None,
    patience: float = PATIENCE,
    worker: Mapping[str, float] = ON_CPU,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Run a task over parts with Ray Data, giving each one's result as it comes.

    Parameters
    ----------
    task : callable or class
        From ``{"part": name, "job": id}`` to a dict; a class is made once in each actor of
        ``compute``.
    names : sequence of str or dict
        Parts; a dict has the name as ``part``, and what else the task gets.
    compute : ray.data.ActorPoolStrategy, optional
        A pool of actors; without it, tasks.
    patience : float
        Seconds without any part done after which the job ends.
    worker : mapping of str to float
        What each task or actor asks of its node, :data:`ON_CPU` or :data:`ON_GPU`.
    **options
        What else Ray Data's ``map`` takes.

    Raises
    ------
    SaffError
        If a task met what is no image's fault, or nothing moves; a defect of ours comes as Ray
        gives it.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # they count blocks; ours counts images
    job = uuid.uuid4().hex
    parts = ray.data.from_items(
        [({"part": n} if isinstance(n, str) else n) | {"job": job} for n in names],
        override_num_blocks=min(len(names), MOST_BLOCKS),
    )
    asked_for = {"num_cpus": worker["CPU"], "num_gpus": worker.get("GPU", 0)}
    how: dict[str, Any] = {"compute": compute, **asked_for, **options}
    catching: Any = CatchFaults(task)
    if isinstance(task, type):
        catching, given = CatchFaultsActor, how.get("fn_constructor_args", ())
        how["fn_constructor_args"] = (task, *given)
    results = parts.map(catching, **how)
    quiet_data_logs()
    for result in watched(results.iter_rows(), patience * -(-len(names) // MOST_BLOCKS)):
        raise_fault(result)
        yield result


def count_done(what: str, todo: Plan, results: Iterable[dict[str, Any]], stage: str = "") -> None:
    """Wait for the results of parts, as :meth:`Stage.do_part` gives them, on a progress line."""
    with Progress(what, todo.left, stage=stage) as progress:
        for part in results:
            progress.advance(part["images"] - part["kept"], part["failed"])
