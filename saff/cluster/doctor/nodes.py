"""What is checked on every node: versions, token, clock, cores, GPUs, models, storage, memory."""

import platform
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import ray
import torch
from ray._private.authentication import authentication_utils
from ray._private.utils import get_num_cpus
from threadpoolctl import threadpool_info

import saff
from saff.cluster.doctor.cluster import Growth
from saff.cluster.doctor.driver import Times, nearest, touch
from saff.cluster.doctor.findings import (
    Answer,
    Fault,
    Finding,
    Node,
    ask,
    count,
    gather,
    no_fault,
    show,
)
from saff.config import Config, Training
from saff.errors import SettingsError
from saff.labeling import label_image
from saff.storage import Folder, with_brief_retries
from saff.threads import single_thread
from saff.trained import load_trained, start_network

TO_FETCH = 600.0  # seconds for every node to have weights; VGG-16's are 528 MB
SKEW = 60.0  # seconds between clocks; S3 refuses requests that are 15 minutes off
KEPT_FREE = 0.05  # part of a disk on which Ray spills nothing


class Versions(NamedTuple):
    """What must be the same everywhere."""

    Python: str
    Ray: str
    saff: str

    def __str__(self) -> str:
        """As a list for a person."""
        return ", ".join(f"{name} {version}" for name, version in self._asdict().items())


def look_at_versions() -> Versions:
    """Versions in this process."""
    return Versions(platform.python_version(), ray.__version__, saff.__version__)


def judge_versions(driver: Versions, node: Node, seen: Versions) -> Fault | None:
    """Compare a node's versions with the driver's."""
    if seen == driver:
        return None
    return Fault(
        f"{seen}, but {driver} on the driver",
        "install the same there, or send saff along with ray job submit --working-dir",
    )


def check_authentication(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Whether the cluster asks for a token."""
    yield from gather(
        "authentication",
        ask(nodes, look_at_authentication),
        judge_authentication,
        lambda fine: (
            "token" if all(a.seen for a in fine) else "none; no other machine reaches this cluster"
        ),
    )


def look_at_authentication() -> bool:
    """Whether this process, and so the node that started it, uses a token."""
    return bool(authentication_utils.is_token_auth_enabled())


def judge_authentication(node: Node, protected: bool) -> Fault | None:
    """A node that other machines reach needs a token."""
    if protected or node.address in ("localhost", "::1") or node.address.startswith("127."):
        return None
    return Fault(
        "no token, so whoever reaches it can run code there",
        "stop Ray, then ray get-auth-token --generate and export RAY_AUTH_MODE=token on every "
        "node before ray start",
    )


def check_clocks(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Whether the nodes' clocks agree with the driver's."""
    sent = time.time()
    answers = ask(nodes, time.time)
    judge = partial(judge_clock, sent, time.time())
    yield from gather("clocks", answers, judge, lambda fine: f"agree within {SKEW:g} s")


def judge_clock(sent: float, received: float, node: Node, seen: float) -> Fault | None:
    """A clock is off by how far it lies outside the time between question and answer."""
    off = max(sent - seen, seen - received, 0.0)
    if off <= SKEW:
        return None
    return Fault(f"its clock is {off:.0f} s off the driver's", "let NTP set the clocks")


def check_cpus(nodes: Sequence[Node], growth: Growth) -> Iterator[Finding]:
    """CPU slots: one image each."""
    if not any(node.cpus for node in nodes):
        if growth.cpus:
            yield Finding("CPUs", True, "none now; nodes start for work (check: --start-nodes)")
        else:
            remedy = "ray start another node, or this one with --num-cpus above 0"
            yield Finding("CPUs", False, "no slots, so no task can run", remedy)
        return
    yield from gather("CPUs", ask(nodes, cores), judge_cpus, tell_cpus)


def tell_cpus(fine: list[Answer]) -> str:
    """Sum up the slots, and tell whether a head among others has some."""
    working = [answer.node for answer in fine if answer.node.cpus]
    slots = f"{count(sum(node.cpus for node in working), 'slot')} on {count(working, 'node')}"
    if len(working) < 2 or not any(node.head for node in working):
        return slots
    return f"{slots}, the head among them (of a large cluster, start it with --num-cpus=0)"


def cores() -> int:
    """Cores that this process may use, as Ray counts them."""
    return int(get_num_cpus())


def judge_cpus(node: Node, cores: int) -> Fault | None:
    """More slots than cores make tasks fight."""
    if node.cpus <= cores:
        return None
    return Fault(
        f"{node.cpus:g} CPU slots on {count(cores, 'core')}", f"ray start with --num-cpus={cores}"
    )


class Gpus(NamedTuple):
    """GPUs of a node: those that torch can use, and those whose devices are there."""

    usable: int
    there: int
    torch: str


def check_gpus(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Whether torch can use the GPUs that Ray gives out, and Ray gives out those that are there."""
    yield from gather(
        "GPUs",
        ask(nodes, look_at_gpus),
        judge_gpus,
        lambda fine: f"{count(sum(a.node.gpus for a in fine), 'GPU')} on {count(fine, 'node')}",
    )


def look_at_gpus() -> Gpus:
    """GPUs that this process sees."""
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Gpus(usable, len(list(Path("/dev").glob("nvidia[0-9]*"))), torch.__version__)


def judge_gpus(node: Node, seen: Gpus) -> Fault | None:
    """Compare what Ray was told with what is there."""
    if node.gpus > seen.usable:
        return Fault(
            f"declares {count(node.gpus, 'GPU')}, torch {seen.torch} can use {seen.usable}",
            "install a torch built for the CUDA of its driver (nvidia-smi), or declare fewer",
        )
    there = max(seen.usable, seen.there)
    if not node.gpus and there:
        return Fault(
            f"has {count(there, 'GPU')} that Ray does not know of",
            f"ray start with --num-gpus={there}",
        )
    return None


class Threads(NamedTuple):
    """Threads of each library."""

    torch: int
    OpenCV: int
    BLAS: int


def check_threads(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Whether a task labels on one thread."""
    yield from gather(
        "threads",
        ask(nodes, look_at_threads),
        judge_threads,
        lambda fine: "torch 1, OpenCV 1, BLAS 1 in a task that labels",
    )


def look_at_threads() -> Threads:
    """Threads as they are set around the labelling of an image."""
    with single_thread():
        blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        return Threads(torch.get_num_threads(), cv2.getNumThreads(), max(blas, default=1))


def judge_threads(node: Node, seen: Threads) -> Fault | None:
    """One thread each, or tasks fight for the cores."""
    many = [f"{name} {threads}" for name, threads in seen._asdict().items() if threads > 1]
    if not many:
        return None
    return Fault(f"threads in a task: {', '.join(many)}", "set OMP_NUM_THREADS=1 for ray start")


def check_models(nodes: Sequence[Node], config: Config, network: str | None) -> Iterator[Finding]:
    """Whether every node has the models, and a trained network if one is named."""
    names = f"{config.encoder}, {config.saliency}, {config.edges}"
    names += f", network of {network}" if network else ""
    yield from gather(
        "models",
        ask(nodes, use_models, config, network),
        no_fault,
        lambda fine: f"{names}: loaded and tried in at most {max(a.seen for a in fine):.1f} s",
    )


def use_models(config: Config, network: str | None) -> float:
    """Load the models and label a small image with them; gives the seconds it took."""
    start = time.perf_counter()
    label_image(np.zeros((32, 32, 3), np.uint8), config)
    if network:
        load_trained(Folder.at(network))
    return time.perf_counter() - start


def check_network(nodes: Sequence[Node], training: Training) -> Iterator[Finding]:
    """Whether every node can make the network that training starts from."""
    late = (
        "put its weights on storage that every node shares, and name them with "
        "training.network_weights in the configuration"
    )
    yield from gather(
        "training network",
        ask(nodes, make_network, training, seconds=TO_FETCH, late=late),
        no_fault,
        lambda fine: f"{training.network}: made in at most {max(a.seen for a in fine):.1f} s",
    )


def make_network(training: Training) -> float:
    """Make the network that training starts from; gives the seconds it took."""
    start = time.perf_counter()
    start_network(training)
    return time.perf_counter() - start


def check_shared(nodes: Sequence[Node], output: str | None) -> Iterator[Finding]:
    """Whether every node reaches the same storage as the driver, and may write there."""
    if output is None:
        return
    place = nearest(Folder.at(output))
    marker = f".saff-doctor-{uuid.uuid4().hex}"
    with with_brief_retries(output):
        place.write(marker, marker.encode())
        try:
            answers = ask(nodes, use_storage, place, marker)
        finally:
            place.remove(marker)
    yield from gather(
        "storage of nodes",
        answers,
        partial(judge_storage, place.uri),
        _slowest,
    )


def _slowest(fine: list[Answer]) -> str:
    times = Times(*map(max, zip(*(answer.seen for answer in fine), strict=True)))
    return f"{times} at most on {count(fine, 'node')}"


def use_storage(place: Folder, marker: str) -> Times | None:
    """Read what the driver wrote and write on its own; None where the driver's is not there."""
    with with_brief_retries(place.uri):
        try:
            same = place.read(marker) == marker.encode()
        except (FileNotFoundError, NotADirectoryError):
            same = False
        return touch(place) if same else None


def judge_storage(uri: str, node: Node, times: Times | None) -> Fault | None:
    """A node must see what the driver has written."""
    if times is not None:
        return None
    return Fault(
        f"what the driver wrote at {uri} is not there",
        "use storage that every node shares under the same name: NFS, or s3://",
    )


class Store(NamedTuple):
    """Where a node keeps Ray's objects, and where it puts those that do not fit."""

    plasma: str
    spill: str
    free: int
    disk: int


def check_store(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Memory for Ray's objects, and disk for those that do not fit."""
    answers = ask(nodes, look_at_store)
    yield from gather(
        "object store",
        answers,
        judge_store,
        lambda fine: f"{show(min(a.node.store for a in fine))} or more a node, in memory",
    )
    yield from gather(
        "spilling",
        answers,
        judge_spill,
        lambda fine: f"{show(min(a.seen.free for a in fine))} or more free at {fine[0].seen.spill}",
    )


def look_at_store() -> Store:
    """Read how the node's raylet, which has started this process, was itself started."""
    import psutil  # Ray brings its own

    lines = (process.cmdline() for process in psutil.Process().parents())
    flags = (dict(word.partition("=")[::2] for word in line) for line in lines)
    raylet = next((found for found in flags if "--plasma_directory" in found), None)
    if raylet is None:
        raise SettingsError("no raylet of Ray has started this process, so its disk is not known")
    spill = raylet["--fallback_directory"]
    usage = shutil.disk_usage(spill)
    return Store(raylet["--plasma_directory"], spill, usage.free, usage.total)


def judge_store(node: Node, seen: Store) -> Fault | None:
    """Linux has shared memory for it; Ray falls back to a disk where that is too small."""
    if seen.plasma == "/dev/shm" or not Path("/dev/shm").is_dir():
        return None
    return Fault(
        f"its object store of {show(node.store)} is not in memory but at {seen.plasma}",
        "give it more shared memory (docker run --shm-size), or ray start with a smaller "
        "--object-store-memory",
    )


def judge_spill(node: Node, seen: Store) -> Fault | None:
    """The disk should hold once more what the memory holds."""
    room = seen.free - KEPT_FREE * seen.disk
    if room >= node.store:
        return None
    return Fault(
        f"{show(max(room, 0))} for spilling at {seen.spill}, object store {show(node.store)}",
        "free some, or ray start with --object-spilling-directory on a larger disk",
    )
