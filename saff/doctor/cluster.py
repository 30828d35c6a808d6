"""Joining a cluster; how far it can grow, whether a stage has room, and starting nodes for it."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray

from saff.cluster.ray_internals import (
    HEAD_RESOURCE,
    KUBERAY_VARIABLES,
    autoscaler_settings,
)
from saff.cluster.resources import pool_size, start_ray
from saff.cluster.starting import check_address
from saff.doctor.findings import Finding, Node, format_count, format_counts
from saff.doctor.running import call_on_nodes

PATIENT_TIMEOUT = 30.0  # seconds for a process to import Ray and to have a request answered
START_TIMEOUT = 900.0  # seconds for a cluster to start nodes; on AWS five minutes are usual


def check_cluster(address: str | None) -> Iterator[Finding]:
    """Join a cluster, or start Ray on this machine as every command does."""
    if address and address != "local":
        check_address(address, PATIENT_TIMEOUT)
        start_ray(address)
        how = f"joined {address}"
    else:
        start_ray()
        how = "started Ray on this machine"
    yield Finding("cluster", True, f"{how}: {format_count(alive_nodes(), 'node')}")


def alive_nodes() -> list[Node]:
    """Nodes of the cluster that are up."""
    return [
        Node(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            store=int(node["Resources"].get("object_store_memory", 0)),
            head=HEAD_RESOURCE in node["Resources"],
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


# How far it can grow


class ScalingLimit(NamedTuple):
    """CPUs and GPUs that an autoscaler may bring a cluster to; 0 where it starts no nodes."""

    cpus: float = 0
    gpus: float = 0

    def __bool__(self) -> bool:
        """Whether it starts nodes for work."""
        return self.cpus > 0 or self.gpus > 0


def find_scaling_limit(nodes: Sequence[Node]) -> ScalingLimit:
    """Ask the head node how far the cluster can grow; one that does not answer starts no nodes."""
    answers = call_on_nodes([node for node in nodes if node.head], inspect_autoscaler)
    return next((answer.value for answer in answers if not answer.error), ScalingLimit())


def inspect_autoscaler() -> ScalingLimit:
    """Read the settings of the cluster's autoscaler; runs on the head node.

    KubeRay runs it in another container, and does not say how far the cluster may grow.
    """
    port = ray.get_runtime_context().gcs_address.rpartition(":")[2]
    settings = autoscaler_settings(port)
    if settings is not None:
        return ScalingLimit(largest_total(settings, "CPU"), largest_total(settings, "GPU"))
    kuberay = os.environ.keys() >= set(KUBERAY_VARIABLES)
    return ScalingLimit(math.inf, math.inf) if kuberay else ScalingLimit()


def largest_total(settings: dict[str, Any], kind: str) -> float:
    """Amount of a resource if an autoscaler first starts the nodes that have most of it."""
    groups = dict(settings["available_node_types"])
    head = groups.pop(settings["head_node_type"])
    left = settings.get("max_workers", math.inf)
    each = [
        (float(group.get("resources", {}).get(kind, 0)), group.get("max_workers", left))
        for group in groups.values()
    ]
    total = float(head.get("resources", {}).get(kind, 0))
    for amount, nodes in sorted(each, reverse=True):
        if amount:
            total += amount * min(nodes, left)
            left -= min(nodes, left)
    return total


def check_workers(
    address: str | None, workers: int | None, gpus: int | None, limit: ScalingLimit
) -> Iterator[Finding]:
    """Check that a stage has room for its workers."""
    with ray_address(address):
        size, on_gpu = pool_size(workers, gpus)
    available = sum(node.gpus if on_gpu else node.cpus for node in alive_nodes())
    yield assess_workers(size, available, limit, on_gpu=on_gpu)


@contextmanager
def ray_address(address: str | None) -> Iterator[None]:
    """Name the cluster in the environment, where stages look for it."""
    before = os.environ.get("RAY_ADDRESS")
    if address:
        os.environ["RAY_ADDRESS"] = address
    try:
        yield
    finally:
        if address and before is None:
            del os.environ["RAY_ADDRESS"]
        elif before is not None:
            os.environ["RAY_ADDRESS"] = before


def assess_workers(size: int, available: float, limit: ScalingLimit, *, on_gpu: bool) -> Finding:
    """Compare the size of a pool with what the cluster has now and can grow to."""
    kind, option = ("GPU", "--gpus") if on_gpu else ("CPU", "--workers")
    most = max(available, limit.gpus if on_gpu else limit.cpus)
    message = f"{size}, one per {kind}; {format_count(available, kind)} now"
    if most > available:
        message += ", nodes start for work" + (f", {most:g} at most" if most < math.inf else "")
    if size <= most:
        return Finding("workers", True, message)
    more = "raise max_workers of the cluster" if limit else "add nodes"
    remedy = f"name {option} {most:g} at most, or {more}" if most else f"{more}: none has a {kind}"
    return Finding("workers", False, f"{message}, so some would never start", remedy)


# Starting nodes


def plan_start(nodes: Sequence[Node], gpus: int, limit: ScalingLimit) -> tuple[list[str], Finding]:
    """Choose what to start nodes for, ``CPU`` or ``GPU`` for each worker, and report it."""
    gpus = int(min(gpus, limit.gpus))  # the check of workers reports that there cannot be more
    wanted = ["CPU"] if limit.cpus and not any(node.cpus for node in nodes) else []
    wanted += ["GPU"] * gpus if gpus > sum(node.gpus for node in nodes) else []
    if wanted:
        minutes = START_TIMEOUT / 60
        message = f"asks for {format_counts(wanted)} and waits {minutes:g} min at most"
    elif limit:
        message = "nothing to start, such nodes are up"
    else:
        message = "nothing to start, this cluster starts no nodes"
    return wanted, Finding("start", True, message)


def check_start(wanted: Sequence[str], seconds: float = START_TIMEOUT) -> Iterator[Finding]:
    """Ask for workers as a stage does, and check that nodes start for them."""
    begin = time.monotonic()
    started: Any = ray.remote(Worker)
    workers = [
        started.options(num_cpus=int(kind == "CPU"), num_gpus=int(kind == "GPU")).remote()
        for kind in wanted
    ]
    tasks = [worker.answer.remote() for worker in workers]
    try:
        ready, _ = ray.wait(tasks, num_returns=len(tasks), timeout=seconds)
        ray.get(ready)
    finally:
        for worker in workers:
            ray.kill(worker)
    late = [kind for kind, task in zip(wanted, tasks, strict=True) if task not in ready]
    yield assess_start(wanted, late, time.monotonic() - begin)


class Worker:
    """An actor that holds a CPU or a GPU, as a worker of a stage does."""

    def answer(self) -> None:
        """Return, which the actor can do once a node has started it."""


def assess_start(wanted: Sequence[str], late: Sequence[str], seconds: float) -> Finding:
    """Report the workers that nodes have started for, or those that none has."""
    if not late:
        return Finding("start", True, f"{format_counts(wanted)} after {seconds:.0f} s")
    remedy = (
        "ray status on the head node says what it waits for: a quota of the cloud, a node whose "
        "setup fails, or other work that holds every slot"
    )
    message = f"no node for {format_counts(late)} within {seconds:.0f} s"
    return Finding("start", False, message, remedy)
