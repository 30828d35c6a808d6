"""Training: Ray Train runs the loop on workers, Ray Data makes their batches.

What a training needs to go on lies in the output: rank 0 writes checkpoints there, and every start
of the workers, the first or after a fault, begins at the newest one.
"""

import _thread
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from saff import layout
from saff.access import ANYTHING, Access
from saff.cluster.faults import fault_message, is_system_fault
from saff.cluster.resources import (
    ON_CPU,
    ON_GPU,
    start_ray,
    threads_per_worker,
    training_workers,
)
from saff.cluster.watchdog import stalled
from saff.config import Training
from saff.errors import SaffError, StalledError, TrainingError
from saff.kept import require_columns
from saff.layout import Stage
from saff.lease import leased
from saff.marks import digest, read_marks, rejected
from saff.progress import PATIENCE, Progress
from saff.runs import stage_digest
from saff.samples import Batch, Cache, Corpus, Loader, image_ids, open_corpus, scratch
from saff.storage import Folder
from saff.tracking import connect
from saff.trained import NetworkFolder, describe, start_network
from saff.training import train
from saff.training_loop import Metrics, State

MOST_FAILURES = 3  # restarts of the workers, from the last checkpoint
STEPS_PER_TASK = 4  # of loading
LOADERS = 2  # per worker
POLL_SECONDS = 0.5
MOST_MISSING = 10_000  # photographs that a worker reports as gone or changed
MOST_NAMED = 3
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to know."""

    results: NetworkFolder
    corpus: Corpus
    training: Training
    identity: str
    board: Any
    """Actor handle of a :class:`Board`."""
    access: Access
    addresses: Folder
    """Where the run keeps addresses that images were given later."""


class Board:
    """Where rank 0 writes what the driver shows; an actor beside the driver."""

    def __init__(self) -> None:
        self.metrics: Metrics = {}
        self.fault = ""
        self.missing: set[str] = set()

    def post(self, metrics: Metrics) -> None:
        """Keep the last metrics."""
        self.metrics = metrics

    def fail(self, fault: str) -> None:
        """Keep the first fault that no repetition would mend."""
        self.fault = self.fault or fault

    def miss(self, places: list[str]) -> None:
        """Keep the places of photographs that are gone or have changed."""
        self.missing.update(places)

    def missed(self) -> list[str]:
        """Give those places in their order."""
        return sorted(self.missing)

    def read(self) -> tuple[Metrics, str]:
        """Give the last metrics and the fault."""
        return self.metrics, self.fault


def train_network(
    output: Folder,
    training: Training,
    *,
    workers: int | None = None,
    gpus: int | None = None,
    restart: bool = False,
    stage: str = Stage.PSEUDO_LABELS,
    round_folder: str = "",
    patience: float = PATIENCE,
    access: Access = ANYTHING,
    take_over: bool = False,
    track: bool = False,
) -> NetworkFolder:
    """Train a network on the labels of a run, from its last checkpoint on.

    It learns from the labels that exist when it begins; what is labelled later changes it only
    with ``restart``.

    Parameters
    ----------
    output : Folder
        A run whose images are labelled.
    training : Training
        Settings.
    workers : int, optional
        Processes that share each batch; default: one, or one a GPU.
    gpus : int, optional
        GPUs to train on, one per worker; default: all that the cluster has now, 0: none.
    restart : bool
        Forget an earlier training.
    stage : str
        Folder of labels to learn from.
    round_folder : str
        Folder within the output for ``network/``; default: the output itself.
    patience : float
        Seconds without any step after which the job ends.
    access : Access
        What the addresses of the images may name.
    take_over : bool
        Take the lease on the network from a job that is known to be dead.
    track : bool
        Log the training to MLflow; see :mod:`saff.tracking`.

    Returns
    -------
    results : NetworkFolder
        With weights.

    Raises
    ------
    SettingsError
        If the output is no run or has nothing to learn from, its network is of another training,
        or a setting cannot work.
    TrainingError, StorageError
        If training cannot go on.
    TrackingError
        If it is done, and MLflow did not take all of it.
    """
    tracker = connect() if track else None  # refused before anything is done
    home = output / round_folder if round_folder else output
    results = NetworkFolder(layout.network(home))
    require_columns(output, stage, ["confidence", "pseudo_label"], "a training")
    corpus = whole = open_corpus(output / stage)
    labels = {"stage": stage, "digest": stage_digest(output, stage)}
    begun = {} if restart else results.learns_from()
    left_out = rejected(read_marks(output))
    if left_out and not (begun and results.is_done()):
        corpus = whole = whole.without(left_out)
        labels |= {"rejected": digest(left_out)}
    if begun:
        corpus = whole.within(begun["parts"])
        labels |= begun if results.is_done() else {}
    run = describe(training, corpus, labels)
    if restart:
        start_ray()
        training_workers(workers, gpus, training.batch_size)  # refused before anything is forgotten
        results.clear()
    results.claim(run)
    learnt = run["labels"]["images"]
    if learnt < len(whole):
        LOG.warning(
            "%s learns from the %s images that were labelled when its training began, not from "
            "the %s labelled since; --restart trains anew, on all",
            results.folder.uri,
            f"{learnt:,}",
            f"{len(whole) - learnt:,}",
        )
    if results.is_done() and tracker is None:
        return results
    lease = leased(output, layout.within(round_folder, "network"), take_over=take_over)
    with lease, tracker.following(results, run) if tracker else nullcontext():
        if not results.is_done():
            start_ray()
            count, on_gpu = training_workers(workers, gpus, training.batch_size)
            here = NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            )
            board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
            where = layout.addresses(output)
            job = Job(results, corpus, training, run["digest"], board, access, where)
            _fit(job, count, on_gpu=on_gpu, patience=patience)
    return results


def _fit(job: Job, workers: int, *, on_gpu: bool, patience: float) -> None:
    """Let workers train; Ray has been started.

    Raises
    ------
    TrainingError, StalledError
        If training cannot go on, or does not.
    """
    name = uuid.uuid4().hex
    trainer = TorchTrainer(
        work,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=on_gpu,
            resources_per_worker=ON_GPU if on_gpu else ON_CPU,
        ),
        run_config=RunConfig(  # its own folder holds nothing that is needed afterwards
            name=name,
            storage_path=str(scratch("ray-train")),
            failure_config=FailureConfig(max_failures=MOST_FAILURES),
        ),
    )
    try:
        with showing(job.board, job.training.steps, patience):
            trainer.fit()
    finally:
        shutil.rmtree(scratch("ray-train") / name, ignore_errors=True)
    _, fault = ray.get(job.board.read.remote())
    if fault:
        raise TrainingError(fault)
    _warn_of_missing(job.corpus, ray.get(job.board.missed.remote()))


def _warn_of_missing(corpus: Corpus, places: list[str]) -> None:
    """Say which photographs a training could not learn from."""
    if not places:
        return
    first = ", ".join(image_ids(corpus, places[:MOST_NAMED]))
    LOG.warning(
        "not learnt from, because gone or changed since they were labelled: %s%s of %s "
        "photographs: %s%s",
        "at least " if len(places) >= MOST_MISSING else "",
        f"{len(places):,}",
        f"{len(corpus):,}",
        first,
        ", ..." if len(places) > MOST_NAMED else "",
    )


@contextmanager
def showing(board: Any, steps: int, patience: float) -> Iterator[None]:
    """Show the board's metrics while the block runs; interrupt it if they stay the same too long.

    Raises
    ------
    StalledError
        If no step was done for ``patience`` seconds.
    """
    ended = threading.Event()
    faults: list[StalledError] = []

    def watch(progress: Progress) -> None:
        moved, last = time.monotonic(), -1
        while not ended.wait(POLL_SECONDS):
            metrics, _ = ray.get(board.read.remote())
            step = int(metrics["step"]) if metrics else -1
            if step != last:
                if last < 0:
                    progress.resume(step)
                moved, last = time.monotonic(), step
                figures = {name: metrics[name] for name in ("loss", "learning_rate", "accuracy")}
                note = "loss {loss:.4f}, learning rate {learning_rate:.2g}".format(**figures)
                progress.reach(step, note, **figures)
            elif time.monotonic() - moved > patience:
                faults.append(stalled(patience))
                _thread.interrupt_main()  # as Ctrl-C does: Ray Train then stops its workers
                return

    with Progress("train", steps, unit="steps") as progress:
        thread = threading.Thread(target=watch, args=(progress,), daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            if faults:
                raise faults[0] from None
            raise
        finally:
            ended.set()
            thread.join()


# In a worker


def work(config: dict[str, Any]) -> None:
    """Train as one of the workers; what no repetition would mend goes to the board."""
    job: Job = config["job"]
    if ray.get(job.board.read.remote())[1]:
        return  # a restart after a fault of that kind
    try:
        _work(job)
    except (SaffError, OSError) as error:
        if not isinstance(error, RayError):
            ray.get(job.board.fail.remote(fault_message(error, "training")))
        raise


def _work(job: Job) -> None:
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(threads_per_worker(context.get_local_world_size()))
    training, results = job.training, job.results
    state = results.latest(job.identity)
    start = state.step if state else 0
    rows = results.read_metrics(start) if rank == 0 else []

    def on_step(metrics: Metrics) -> None:
        if rank == 0:
            rows.append(metrics)
            job.board.post.remote(metrics)

    def on_checkpoint(state: State) -> None:
        if rank == 0:
            results.write_metrics(rows)
            results.save(state, job.identity, training.keep_checkpoints)

    cache = Cache(job.corpus.labels, training.max_side, access=job.access, addresses=job.addresses)
    loader = Loader(job.corpus, training, cache, rank, workers)
    device = get_device()
    network = prepare_model(start_network(training).to(device), move_to_device=False)
    final = train(
        network,
        report_missing(stream(loader, start), job.board),
        training,
        state=state,
        device=device,
        on_step=on_step,
        on_checkpoint=on_checkpoint,
    )
    if rank == 0:
        results.finish(final.weights())


def report_missing(batches: Iterable[Batch], board: Any) -> Iterator[Batch]:
    """Hand batches on; report photographs that are gone or have changed, each once."""
    known: set[str] = set()
    for batch in batches:
        fresh = {*batch.missing} - known
        if fresh and len(known) < MOST_MISSING:
            known |= fresh
            board.miss.remote(sorted(fresh))
        yield batch


@dataclass(frozen=True, slots=True)
class Feed:
    """Make the batch of a step as a row, with a fault of the machine; a callable that Ray maps."""

    loader: Loader
    start: int

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """From ``id``, the steps since the start."""
        step = self.start + int(row["id"])
        try:
            batch, fault = self.loader(step), ""
        except Exception as error:
            if not is_system_fault(error):
                raise
            batch, fault = self.loader.blank(), fault_message(error, f"step {step + 1}")
        missing = " ".join(batch.missing)  # text: Ray keeps it as it is
        return {
            **batch._asdict(),
            "keys": np.asarray(batch.keys),
            "missing": missing,
            "fault": fault,
        }


def stream(loader: Loader, start: int) -> Iterator[Batch]:
    """Batches of the steps from ``start`` on, made by Ray Data in their order."""
    steps = loader.training.steps - start
    if not steps:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    numbers = [{"id": number} for number in range(steps)]  # a range is read by tasks of its own
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # where the cache is
    rows = ray.data.from_items(numbers, override_num_blocks=-(-steps // STEPS_PER_TASK)).map(
        Feed(loader, start),
        num_cpus=0,  # of the worker's: asking for a CPU could start a node
        compute=ray.data.TaskPoolStrategy(size=LOADERS),
        label_selector=here,
    )
    for row in rows.iter_rows():
        if row["fault"]:
            raise TrainingError(row["fault"])
        keys, missing = row["keys"].tolist(), tuple(row["missing"].split())
        yield Batch(row["image"], row["confidence"], row["valid"], keys, missing)
