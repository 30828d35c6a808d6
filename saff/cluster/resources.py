"""What a job takes of a cluster: how Ray is started, CPUs, GPUs, workers and their threads."""

import logging
import os
from typing import Any

import ray
from ray.exceptions import RayError

from saff.cluster.starting import (
    check_environment,
    ending_at_interrupt,
    options_here,
    start_error,
)
from saff.cluster.watchdog import ending_after
from saff.errors import SettingsError
from saff.log import adopt, structured

# What a worker asks of its node, of this alone: encoding starts no GPU node, a GPU no CPU node.
ON_CPU = {"CPU": 1.0}
ON_GPU = {"CPU": 0.0, "GPU": 1.0}
START_SECONDS = 180.0  # for Ray to start, or to be joined


def start_ray(address: str | None = None) -> None:
    """Join the cluster that ``address`` or, as for a submitted job, ``RAY_ADDRESS`` names.

    Without either, start Ray on this machine for this process alone, without a dashboard.
    A cluster that merely runs, or ran, on this machine is not joined: Ray would wait for the
    processes of one that was killed.

    Raises
    ------
    SettingsError
        If there is no such cluster, or Ray cannot start here.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or (None if os.environ.get("RAY_ADDRESS") else "local")
    options: dict[str, Any] = {}
    if address is None:
        check_environment()
    elif address == "local":
        options = {"include_dashboard": False, **options_here()}  # 140 MiB, seconds of a core
    options |= {"logging_level": logging.WARNING, "log_to_driver": False}
    if structured():
        adopt("ray")
        options["configure_logging"] = False
    with ending_after(START_SECONDS), ending_at_interrupt():
        try:
            ray.init(address, **options)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise start_error(error) from error


def gpus_to_use(workers: int | None, gpus: int | None) -> int:
    """Choose the number of GPUs to use, one per worker; Ray has been started.

    Parameters
    ----------
    workers, gpus : int, optional
        As wanted; without ``gpus``, all that the cluster has, if they are enough for the workers.

    Raises
    ------
    SettingsError
        If more GPUs are wanted than exist, or the numbers do not fit each other.
    """
    there = int(_resources().get("GPU", 0))
    grows = bool(os.environ.get("RAY_ADDRESS"))  # a cluster may start the nodes that are needed
    if gpus is None:
        gpus = there if workers is None else min(there, workers) if there >= workers else 0
        if not there and workers is None and grows:
            raise SettingsError(
                "this cluster has no GPU now and may be able to start some; name --gpus N to use "
                "N of them, or --gpus 0 to use CPUs"
            )
    if gpus < 0:
        raise SettingsError(f"expected at least 0 GPUs, got {gpus}")
    if gpus > there and not grows:
        raise SettingsError(
            f"--gpus {gpus} is more than the {there} GPUs of this machine; leave --gpus out to use "
            "what it has"
        )
    if gpus and workers is not None and workers != gpus:
        raise SettingsError(f"a worker has one GPU: {workers} workers do not fit {gpus} GPUs")
    return gpus


def pool_size(workers: int | None, gpus: int | None) -> tuple[int, bool]:
    """Choose the number of workers of a pool, and whether each has a GPU.

    Raises
    ------
    SettingsError
        Also if a cluster has no nodes for work yet, so that a number must be named.
    """
    gpus = gpus_to_use(workers, gpus)
    count = gpus or workers or cpus_available()
    if not count:
        raise SettingsError(
            "the cluster has no node for work yet, so the number of workers is not known; name "
            "--gpus or --workers"
        )
    return count, gpus > 0


def cpus_available() -> int:
    """CPUs that Ray gives out on the nodes that the cluster has now."""
    return int(_resources().get("CPU", 0))


def _resources() -> dict[str, float]:
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return there


def training_workers(workers: int | None, gpus: int | None, batch: int) -> tuple[int, bool]:
    """Choose the number of workers of a training, and whether each has a GPU; Ray has been started.

    Raises
    ------
    SettingsError
        If more GPUs are wanted than exist, or the numbers do not fit each other.
    """
    gpus = gpus_to_use(workers, gpus)
    count = gpus or workers or 1
    if count < 1:
        raise SettingsError(f"expected at least 1 worker, got {workers}")
    if count > batch:
        raise SettingsError(
            f"{count} workers cannot share batches of {batch}; set a larger training.batch_size"
        )
    return count, gpus > 0


def threads_per_worker(workers: int) -> int:
    """Threads of one of several workers on this node, so that they share its cores."""
    limited = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if limited else os.cpu_count() or 1
    return max(1, cores // workers)
