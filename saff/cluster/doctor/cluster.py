"""Joining a cluster; how far it grows, whether a stage has room, and starting nodes for it."""

import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray._private import services

from saff.cluster.doctor.findings import Finding, Node, amounts, ask, count
from saff.cluster.resources import pool_size, start_ray
from saff.errors import SettingsError

TO_CONNECT = 5.0  # seconds for a TCP connection
TO_GREET = 30.0  # seconds for Ray to answer the first request, and for a process to import it
TO_START = 900.0  # seconds for a cluster to start nodes; on AWS five minutes are usual
GREET = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
HEAD = "node:__internal_head__"  # a resource that Ray gives to the head node alone
# By these three in the head's environment Ray itself knows that KubeRay starts nodes for it.
KUBERAY = ("RAY_USAGE_STATS_KUBERAY_IN_USE", "RAY_CLOUD_INSTANCE_ID", "RAY_NODE_TYPE_NAME")


def join(address: str | None) -> Iterator[Finding]:
    """Join a cluster, or start a Ray here as every command does."""
    if address and address != "local":
        reach(address)
        start_ray(address)
        how = f"joined {address}"
    else:
        start_ray()
        how = "started Ray on this machine"
    yield Finding("cluster", True, f"{how}: {count(alive_nodes(), 'node')}")


def reach(address: str, seconds: float = TO_GREET) -> None:
    """Refuse an address where no Ray answers in time: ``ray.init`` would try for minutes."""
    if "://" in address:
        raise SettingsError(
            f"the address is {address}, expected HOST:PORT of the head node, as ray start --head "
            "prints it"
        )
    where = services.canonicalize_bootstrap_address(address) or address
    host, port = services.extract_ip_port(where)
    try:
        socket.create_connection((host, port), TO_CONNECT).close()
    except OSError as error:
        raise SettingsError(
            f"nothing answers at {address} ({error}); start Ray there (ray start --head), and let "
            f"this machine through to port {port}"
        ) from error
    command = [sys.executable, "-c", GREET, where]  # cannot be given up in a thread
    try:
        greeted = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise SettingsError(
            f"something answers at {address}, but not as Ray within {seconds:g} s; give the port "
            "of ray start --head, 6379 unless it says another"
        ) from error
    if greeted.returncode:
        raise SettingsError(f"{address} refuses: {greeted.stderr.strip().splitlines()[-1]}")


def alive_nodes() -> list[Node]:
    """Nodes of the cluster that are up."""
    return [
        Node(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            store=int(node["Resources"].get("object_store_memory", 0)),
            head=HEAD in node["Resources"],
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


# How it grows


class Growth(NamedTuple):
    """CPUs and GPUs that a cluster may have once it has grown; 0 where it starts no nodes."""

    cpus: float = 0
    gpus: float = 0

    def __bool__(self) -> bool:
        """Whether it starts nodes for work."""
        return self.cpus > 0 or self.gpus > 0


def find_growth(nodes: Sequence[Node]) -> Growth:
    """Whether the cluster starts nodes, as its head node tells; one that does not answer, no."""
    answers = ask([node for node in nodes if node.head], look_at_growth)
    return next((answer.seen for answer in answers if not answer.error), Growth())


def look_at_growth() -> Growth:
    """Read on the head node the settings of the cluster's autoscaler.

    Ray 2.60 keeps them to itself: its monitor is started with their file.  KubeRay runs it in
    another container, and does not tell how far the cluster may grow.
    """
    import psutil
    import yaml  # type: ignore[import-untyped]  # as Ray reads them

    port = ray.get_runtime_context().gcs_address.rpartition(":")[2]
    for process in psutil.process_iter(["cmdline"]):
        flags = dict(word.partition("=")[::2] for word in process.info["cmdline"] or ())
        path = flags.get("--autoscaling-config")
        if path and flags.get("--gcs-address", "").rpartition(":")[2] == port:
            settings = yaml.safe_load(Path(path).expanduser().read_text())
            return Growth(most(settings, "CPU"), most(settings, "GPU"))
    return Growth(math.inf, math.inf) if os.environ.keys() >= set(KUBERAY) else Growth()


def most(settings: dict[str, Any], kind: str) -> float:
    """How much of a resource an autoscaler may come to: first the nodes that have most of it."""
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
    address: str | None, workers: int | None, gpus: int | None, growth: Growth
) -> Iterator[Finding]:
    """Whether a stage finds place for its workers."""
    with as_a_stage(address):
        size, on_gpu = pool_size(workers, gpus)
    nodes = alive_nodes()
    there = sum(node.gpus if on_gpu else node.cpus for node in nodes)
    yield judge_workers(size, there, growth, on_gpu=on_gpu)


@contextmanager
def as_a_stage(address: str | None) -> Iterator[None]:
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


def judge_workers(size: int, there: float, growth: Growth, *, on_gpu: bool) -> Finding:
    """Compare the size of a pool with what is there, or may come."""
    kind, option = ("GPU", "--gpus") if on_gpu else ("CPU", "--workers")
    come = max(there, growth.gpus if on_gpu else growth.cpus)
    told = f"{size}, one a {kind}; {count(there, kind)} now"
    if come > there:
        told += ", nodes start for work" + (f", {come:g} at most" if come < math.inf else "")
    if size <= come:
        return Finding("workers", True, told)
    more = "raise max_workers of the cluster" if growth else "add nodes"
    remedy = f"name {option} {come:g} at most, or {more}" if come else f"{more}: none has a {kind}"
    return Finding("workers", False, f"{told}, so they would wait for ever", remedy)


# Starting nodes


def to_start(nodes: Sequence[Node], gpus: int, growth: Growth) -> tuple[list[str], Finding]:
    """Choose what to ask a cluster for, ``CPU`` or ``GPU`` for each worker, and tell it."""
    gpus = int(min(gpus, growth.gpus))  # that there cannot be more is told with the workers
    wanted = ["CPU"] if growth.cpus and not any(node.cpus for node in nodes) else []
    wanted += ["GPU"] * gpus if gpus > sum(node.gpus for node in nodes) else []
    if wanted:
        told = f"asks for {amounts(wanted)} and waits {TO_START / 60:g} min at most"
    elif growth:
        told = "nothing, such nodes are there"
    else:
        told = "nothing, this cluster starts no nodes"
    return wanted, Finding("start", True, told)


def check_start(wanted: Sequence[str], seconds: float = TO_START) -> Iterator[Finding]:
    """Ask for workers as a stage does, and see whether nodes come for them."""
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
    yield judge_start(wanted, late, time.monotonic() - begin)


class Worker:
    """Holds a CPU or a GPU, as a worker of a stage."""

    def answer(self) -> None:
        """Return, once there is a node for it."""


def judge_start(wanted: Sequence[str], late: Sequence[str], seconds: float) -> Finding:
    """Tell what has come, or what has not."""
    if not late:
        return Finding("start", True, f"{amounts(wanted)} after {seconds:.0f} s")
    remedy = (
        "ask ray status on the head node what it waits for: a quota of the cloud, a node whose "
        "setup fails, or work that holds all there is"
    )
    return Finding("start", False, f"no node for {amounts(late)} within {seconds:.0f} s", remedy)
