"""Checks on every node: versions, token, clock, cores, GPUs, models, storage and memory.

An ``inspect_`` function gathers facts in the process of a task; ``find_..._fault`` compares them.
"""

import platform
import shutil
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import ray
import torch
from threadpoolctl import threadpool_info

import saff
from saff.cluster.ray_internals import object_store_folders, usable_cores, uses_token
from saff.config import Config, Training
from saff.doctor.cluster import ScalingLimit
from saff.doctor.driver import Times, existing_folder, time_storage
from saff.doctor.findings import Answer, Fault, Finding, Node, format_bytes, format_count
from saff.doctor.running import call_on_nodes, no_fault, report_nodes
from saff.errors import SettingsError
from saff.labeling import label_image
from saff.storage import Folder, with_brief_retries
from saff.threads import single_thread
from saff.trained import load_trained, start_network

WEIGHTS_TIMEOUT = 600.0  # seconds for every node to download weights; VGG-16's are 528 MB
LARGEST_SKEW = 60.0  # seconds between clocks; S3 refuses requests that are 15 minutes off
SPILL_RESERVE = 0.05  # share of a disk that Ray leaves free when it spills


class Versions(NamedTuple):
    """Versions that must be the same on the driver and on every node."""

    Python: str
    Ray: str
    saff: str

    def __str__(self) -> str:
        """Give them as a list."""
        return ", ".join(f"{name} {version}" for name, version in self._asdict().items())


def inspect_versions() -> Versions:
    """Find the versions in this process."""
    return Versions(platform.python_version(), ray.__version__, saff.__version__)


def find_version_fault(driver: Versions, node: Node, versions: Versions) -> Fault | None:
    """Compare a node's versions with the driver's."""
    if versions == driver:
        return None
    return Fault(
        f"{versions}, but {driver} on the driver",
        "install the same on the node, or send saff along with ray job submit --working-dir",
    )


def check_authentication(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Check that the cluster asks for a token."""
    alone = "none; no other machine reaches this cluster"
    yield from report_nodes(
        "authentication",
        call_on_nodes(nodes, uses_token),
        find_authentication_fault,
        lambda fine: "token" if all(answer.value for answer in fine) else alone,
    )


def find_authentication_fault(node: Node, protected: bool) -> Fault | None:
    """Check that a node which other machines reach has a token."""
    if protected or node.address in ("localhost", "::1") or node.address.startswith("127."):
        return None
    return Fault(
        "no token, so whoever reaches the node can run code on it",
        "stop Ray, then ray get-auth-token --generate and export RAY_AUTH_MODE=token on every "
        "node before ray start",
    )


def check_clocks(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Check that the nodes' clocks agree with the driver's."""
    sent = time.time()
    answers = call_on_nodes(nodes, time.time)
    find_fault = partial(find_clock_fault, sent, time.time())
    yield from report_nodes(
        "clocks", answers, find_fault, lambda fine: f"agree within {LARGEST_SKEW:g} s"
    )


def find_clock_fault(sent: float, received: float, node: Node, clock: float) -> Fault | None:
    """Find by how far a clock lies outside the time between the call and its answer."""
    off = max(sent - clock, clock - received, 0.0)
    if off <= LARGEST_SKEW:
        return None
    return Fault(f"its clock is {off:.0f} s off the driver's", "let NTP set the clocks")


def check_cpus(nodes: Sequence[Node], limit: ScalingLimit) -> Iterator[Finding]:
    """Check that there are CPU slots for tasks, and on no node more of them than cores."""
    if not any(node.cpus for node in nodes):
        if limit.cpus:
            yield Finding("CPUs", True, "none now; nodes start for work (check: --start-nodes)")
        else:
            remedy = "ray start another node, or this one with --num-cpus above 0"
            yield Finding("CPUs", False, "no slots, so no task can run", remedy)
        return
    answers = call_on_nodes(nodes, usable_cores)
    yield from report_nodes("CPUs", answers, find_cpu_fault, summarise_cpus)


def summarise_cpus(fine: list[Answer]) -> str:
    """Sum up the slots, and say whether a head beside other nodes has some."""
    working = [answer.node for answer in fine if answer.node.cpus]
    total = sum(node.cpus for node in working)
    slots = f"{format_count(total, 'slot')} on {format_count(working, 'node')}"
    if len(working) < 2 or not any(node.head for node in working):
        return slots
    return f"{slots}, the head among them (of a large cluster, start it with --num-cpus=0)"


def find_cpu_fault(node: Node, cores: int) -> Fault | None:
    """Check that a node has no more slots than cores, for which tasks would compete."""
    if node.cpus <= cores:
        return None
    return Fault(
        f"{node.cpus:g} CPU slots on {format_count(cores, 'core')}",
        f"ray start with --num-cpus={cores}",
    )


class Gpus(NamedTuple):
    """GPUs of a node: those that torch can use, and those that have a device file."""

    usable: int
    devices: int
    torch: str


def check_gpus(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Check that torch can use the GPUs that Ray assigns, and that Ray assigns all there are."""
    yield from report_nodes(
        "GPUs", call_on_nodes(nodes, inspect_gpus), find_gpu_fault, summarise_gpus
    )


def summarise_gpus(fine: list[Answer]) -> str:
    """Sum up the GPUs."""
    total = sum(answer.node.gpus for answer in fine)
    return f"{format_count(total, 'GPU')} on {format_count(fine, 'node')}"


def inspect_gpus() -> Gpus:
    """Count the GPUs that this process sees."""
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Gpus(usable, len(list(Path("/dev").glob("nvidia[0-9]*"))), torch.__version__)


def find_gpu_fault(node: Node, gpus: Gpus) -> Fault | None:
    """Compare the GPUs that a node declares with those that it has."""
    if node.gpus > gpus.usable:
        return Fault(
            f"declares {format_count(node.gpus, 'GPU')}, torch {gpus.torch} can use {gpus.usable}",
            "install a torch built for the CUDA of its driver (nvidia-smi), or declare fewer",
        )
    present = max(gpus.usable, gpus.devices)
    if not node.gpus and present:
        return Fault(
            f"has {format_count(present, 'GPU')} that Ray does not know of",
            f"ray start with --num-gpus={present}",
        )
    return None


class Threads(NamedTuple):
    """Threads that each library uses."""

    torch: int
    OpenCV: int
    BLAS: int


def check_threads(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Check that a task labels on one thread."""
    yield from report_nodes(
        "threads",
        call_on_nodes(nodes, inspect_threads),
        find_thread_fault,
        lambda fine: "torch 1, OpenCV 1, BLAS 1 in a task that labels",
    )


def inspect_threads() -> Threads:
    """Count the threads as they are set while an image is labelled."""
    with single_thread():
        blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        return Threads(torch.get_num_threads(), cv2.getNumThreads(), max(blas, default=1))


def find_thread_fault(node: Node, threads: Threads) -> Fault | None:
    """Check that each library uses one thread, or tasks would compete for the cores."""
    many = [f"{name} {count}" for name, count in threads._asdict().items() if count > 1]
    if not many:
        return None
    return Fault(f"threads in a task: {', '.join(many)}", "set OMP_NUM_THREADS=1 for ray start")


def check_models(
    nodes: Sequence[Node], config: Config, network: str | None, allow_code: Collection[str] = ()
) -> Iterator[Finding]:
    """Check that every node has the models, and a trained network if one is named."""
    names = f"{config.encoder}, {config.saliency}, {config.edges}"
    names += f", network of {network}" if network else ""
    yield from report_nodes(
        "models",
        call_on_nodes(nodes, try_models, config, network, allow_code),
        no_fault,
        lambda fine: f"{names}: loaded and tried in at most {max(a.value for a in fine):.1f} s",
    )


def try_models(config: Config, network: str | None, allow_code: Collection[str] = ()) -> float:
    """Load the models and label a small image with them; return the seconds it took."""
    start = time.perf_counter()
    label_image(np.zeros((32, 32, 3), np.uint8), config)
    if network:
        load_trained(Folder.at(network), allow_code)
    return time.perf_counter() - start


def check_network(nodes: Sequence[Node], training: Training) -> Iterator[Finding]:
    """Check that every node can make the network that training starts from."""
    remedy = (
        "put its weights on storage that every node shares, and name them with "
        "training.network_weights in the configuration"
    )
    answers = call_on_nodes(
        nodes, try_network, training, seconds=WEIGHTS_TIMEOUT, timeout_remedy=remedy
    )
    yield from report_nodes(
        "training network",
        answers,
        no_fault,
        lambda fine: f"{training.network}: made in at most {max(a.value for a in fine):.1f} s",
    )


def try_network(training: Training) -> float:
    """Make the network that training starts from; return the seconds it took."""
    start = time.perf_counter()
    start_network(training)
    return time.perf_counter() - start


def check_shared_storage(nodes: Sequence[Node], output: str | None) -> Iterator[Finding]:
    """Check that every node sees the same output as the driver, and can write to it."""
    if output is None:
        return
    place = existing_folder(Folder.at(output))
    marker = f".saff-doctor-{uuid.uuid4().hex}"
    with with_brief_retries(output):
        place.write(marker, marker.encode())
        try:
            answers = call_on_nodes(nodes, try_storage, place, marker)
        finally:
            place.remove(marker)
    find_fault = partial(find_storage_fault, place.uri)
    yield from report_nodes("storage of nodes", answers, find_fault, summarise_storage)


def summarise_storage(fine: list[Answer]) -> str:
    """Give the longest time of each operation."""
    times = Times(*map(max, zip(*(answer.value for answer in fine), strict=True)))
    return f"{times} at most on {format_count(fine, 'node')}"


def try_storage(place: Folder, marker: str) -> Times | None:
    """Read what the driver wrote, then write; None where the driver's file is not found."""
    with with_brief_retries(place.uri):
        try:
            same = place.read(marker) == marker.encode()
        except (FileNotFoundError, NotADirectoryError):
            same = False
        return time_storage(place) if same else None


def find_storage_fault(uri: str, node: Node, times: Times | None) -> Fault | None:
    """Check that a node has seen what the driver wrote."""
    if times is not None:
        return None
    return Fault(
        f"it does not see what the driver wrote at {uri}",
        "use storage that every node shares under the same name: NFS, or s3://",
    )


class Store(NamedTuple):
    """Where a node keeps Ray's objects, where it spills them, and the bytes of that disk."""

    memory: str
    spill: str
    free: int
    disk: int


def check_store(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Check that Ray's objects lie in memory, and that the disk has room for spilled ones."""
    answers = call_on_nodes(nodes, inspect_store)
    yield from report_nodes("object store", answers, find_store_fault, summarise_store)
    yield from report_nodes("spilling", answers, find_spill_fault, summarise_spill)


def summarise_store(fine: list[Answer]) -> str:
    """Give the smallest object store."""
    return f"{format_bytes(min(a.node.store for a in fine))} or more per node, in memory"


def summarise_spill(fine: list[Answer]) -> str:
    """Give the least room for spilling."""
    room = format_bytes(min(answer.value.free for answer in fine))
    return f"{room} or more free at {fine[0].value.spill}"


def inspect_store() -> Store:
    """Find where the node of this process keeps and spills objects."""
    folders = object_store_folders()
    if folders is None:
        raise SettingsError("no raylet of Ray has started this process, so its disk is not known")
    memory, spill = folders
    usage = shutil.disk_usage(spill)
    return Store(memory, spill, usage.free, usage.total)


def find_store_fault(node: Node, store: Store) -> Fault | None:
    """Check that objects lie in shared memory; Ray takes a disk where that is too small."""
    if store.memory == "/dev/shm" or not Path("/dev/shm").is_dir():
        return None
    return Fault(
        f"its object store of {format_bytes(node.store)} is not in memory but at {store.memory}",
        "give it more shared memory (docker run --shm-size), or ray start with a smaller "
        "--object-store-memory",
    )


def find_spill_fault(node: Node, store: Store) -> Fault | None:
    """Check that the disk can hold as much as the object store."""
    room = store.free - SPILL_RESERVE * store.disk
    if room >= node.store:
        return None
    sizes = f"{format_bytes(max(room, 0))} for spilling at {store.spill}"
    return Fault(
        f"{sizes}, object store {format_bytes(node.store)}",
        "free some space, or ray start with --object-spilling-directory on a larger disk",
    )
