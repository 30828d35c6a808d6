"""``saff doctor``: what a run needs, tried out where it will be needed.

A check gathers facts, on the driver or by a task on every node, and judges them; the judgements are
functions of the facts alone.  Whatever a check raises is a finding as well.
"""

import logging
import math
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import ray
import torch
from ray._private import ray_constants, services
from ray._private.authentication import authentication_utils
from ray._private.runtime_env import packaging
from ray._private.utils import get_num_cpus
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from threadpoolctl import threadpool_info

import saff
from saff.cluster.parts import START_SECONDS, plan, pool_size, start_ray
from saff.cluster.watchdog import ending_after
from saff.config import Config, Training
from saff.errors import SettingsError
from saff.labeling import label_image
from saff.retries import BRIEF, patience_of
from saff.runs import read_run
from saff.storage import Folder, is_local, reaching
from saff.threads import single_thread
from saff.trained import load_trained, start_network

TO_CONNECT = 5.0  # seconds for a TCP connection
TO_GREET = 30.0  # seconds for Ray to answer the first request, and for a process to import it
TO_ANSWER = 60.0  # seconds for every node to answer one question; a first one starts processes
LONGEST = 120.0  # seconds for a whole check; starting Ray is one
TO_FETCH = 600.0  # seconds for every node to have weights; VGG-16's are 528 MB
TO_START = 900.0  # seconds for a cluster to start nodes; on AWS five minutes are usual
SKEW = 60.0  # seconds between clocks; S3 refuses requests that are 15 minutes off
LEAST_SPACE = 2**30  # bytes, of a local output
BYTES_PER_IMAGE = 100_000  # of a shard, roughly
KEPT_FREE = 0.05  # part of a disk on which Ray spills nothing
ZIP_PER_FILE, ZIP_END = 76, 22  # bytes of a zip's headers, beside a file's name that comes twice
# What `ray job submit` may send: the dashboard's limit on a request comes before Ray's own.
MOST_UPLOAD = min(ray_constants.DASHBOARD_CLIENT_MAX_SIZE, packaging.GCS_STORAGE_MAX_SIZE)
GREET = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
HEAD = "node:__internal_head__"  # a resource that Ray gives to the head node alone
# By these three in the head's environment Ray itself knows that KubeRay starts nodes for it.
KUBERAY = ("RAY_USAGE_STATS_KUBERAY_IN_USE", "RAY_CLOUD_INSTANCE_ID", "RAY_NODE_TYPE_NAME")
SECRET = re.compile(r"key|token|secret|password|credential", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found.

    Attributes
    ----------
    check : str
        Its name.
    ok : bool
        Whether all is well.
    told : str
        What was found.
    remedy : str
        What to do, where something is wrong and ``told`` does not say it.
    """

    check: str
    ok: bool
    told: str
    remedy: str = ""

    def __str__(self) -> str:
        """One line for a person, without any password."""
        text = "; ".join(filter(None, (f"{self.check}: {self.told}", self.remedy)))
        return f"{'ok' if self.ok else 'WRONG':5} {hide(' '.join(text.split()))}"


class Fault(NamedTuple):
    """What is wrong with a node, and what to do."""

    told: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster as Ray knows it; ``store`` is its object store in bytes."""

    id: str
    address: str
    cpus: float
    gpus: float
    store: int
    head: bool = False

    def __str__(self) -> str:
        """Address and, as a machine may hold several nodes, the start of its id."""
        return f"{self.address} ({self.id[:6]}{', head' if self.head else ''})"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node has seen, or in ``error`` why it did not answer."""

    node: Node
    seen: Any = None
    error: str = ""


def examine(
    output: str | None,
    *,
    address: str | None,
    config: Config,
    network: str | None,
    workers: int | None = None,
    gpus: int | None = None,
    start_nodes: bool = False,
) -> Iterator[Finding]:
    """Check everything that a run needs, telling each finding as it comes.

    Parameters
    ----------
    output : str, optional
        Folder or prefix that runs write to.
    address : str, optional
        ``HOST:PORT`` of a cluster; otherwise that of ``RAY_ADDRESS``, or a Ray started here.
    config : Config
        Whose models are loaded on every node.
    network : str, optional
        Run whose trained network is loaded on every node.
    workers, gpus : int, optional
        As a stage is to be asked for; compared with the cluster if any is named.
    start_nodes : bool
        On a cluster that grows, ask for a CPU and for ``gpus`` GPUs, so that there are such nodes.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address or os.environ.get("RAY_API_SERVER_ADDRESS"):  # jobs may be submitted from here
        yield from tried("upload", partial(check_upload, Path.cwd()))
    if output:
        storage = tried("storage", partial(check_storage, output))
        yield from storage
        if all(finding.ok for finding in storage):
            yield from tried("space", partial(check_space, output))
            yield from tried("run", partial(check_run, output))
        else:
            output = None  # what it holds, and how nodes reach it, would be the same again
    joined = caught(
        "cluster", partial(join, address)
    )  # here: Ray dies with the thread it is born in
    yield from joined
    if not all(finding.ok for finding in joined):
        return
    growth = find_growth(alive_nodes())
    if workers is not None or gpus is not None:
        yield from tried("workers", partial(check_workers, address, workers, gpus, growth))
    if start_nodes:
        wanted, told = to_start(alive_nodes(), gpus or 0, growth)
        yield told  # before the wait
        if wanted:
            yield from tried("start", partial(check_start, wanted), TO_START + LONGEST)
    answers = ask(alive_nodes(), look_at_versions)
    yield from gather(
        "versions",
        answers,
        partial(judge_versions, look_at_versions()),
        lambda fine: f"{fine[0].seen} on the driver and {count(fine, 'node')}",
    )
    nodes = [answer.node for answer in answers if not answer.error]  # the others are told
    for check, of_nodes in (
        ("authentication", check_authentication),
        ("clocks", check_clocks),
        ("CPUs", partial(check_cpus, growth=growth)),
        ("GPUs", check_gpus),
        ("threads", check_threads),
        ("models", partial(check_models, config=config, network=network)),
        ("storage of nodes", partial(check_shared, output=output)),
        ("object store", check_store),
    ):
        yield from tried(check, partial(of_nodes, nodes))
    made = partial(check_network, nodes, config.training)
    yield from tried("training network", made, TO_FETCH + TO_ANSWER)


# How checks run


def caught(check: str, work: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Run a check; one that raises is a finding."""
    found = []
    try:
        with patience_of(BRIEF):
            for finding in work():
                found.append(finding)
    except (Exception, SystemExit) as error:  # a thread would swallow the second
        found.append(Finding(check, False, reason(error)))
    return found


def tried(
    check: str, work: Callable[[], Iterable[Finding]], seconds: float = LONGEST
) -> list[Finding]:
    """Run a check beside this thread; one that takes too long is a finding, too."""
    ended: list[list[Finding]] = []
    thread = threading.Thread(target=lambda: ended.append(caught(check, work)), daemon=True)
    thread.start()
    thread.join(seconds)
    if ended:
        return ended[0]
    remedy = "try to reach it by hand from this machine"
    return [Finding(check, False, f"no answer within {seconds:g} s", remedy)]


def reason(error: BaseException) -> str:
    """Say what was raised: the words alone where they are meant for people."""
    words = hide(" ".join(str(error).split()))
    words = words if len(words) <= 500 else words[:500] + "..."
    return words if isinstance(error, SettingsError) else f"{type(error).__name__}: {words}"


def hide(text: str) -> str:
    """Take out passwords of URIs and what the environment holds under names of secrets."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 8 and not os.path.exists(value):
            text = text.replace(value, "***")
    return re.sub(r"://[^/\s]*@", "://***@", text)


def ask(
    nodes: Sequence[Node],
    question: Callable[..., Any],
    *arguments: Any,
    seconds: float = TO_ANSWER,
    late: str = "",
) -> list[Answer]:
    """Call a function once on every node, whatever else is running there.

    ``late`` says what to do about one that takes longer than ``seconds``.
    """
    tasks = [
        ray.remote(_answer)
        .options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )
        .remote(question, arguments)
        for node in nodes
    ]
    ready, _ = ray.wait(tasks, num_returns=len(tasks), timeout=seconds)
    answers = []
    for node, task in zip(nodes, tasks, strict=True):
        if task not in ready:
            ray.cancel(task, force=True)
            error = "; ".join(filter(None, (f"no answer within {seconds:g} s", late)))
            answers.append(Answer(node, error=error))
            continue
        try:
            answers.append(Answer(node, *ray.get(task)))
        except Exception as error:  # it died, or does not know this module
            answers.append(Answer(node, error=reason(getattr(error, "cause", None) or error)))
    return answers


def _answer(question: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, str]:
    try:
        with patience_of(BRIEF):
            return question(*arguments), ""
    except Exception as error:
        return None, reason(error)  # here, where the node's own secrets are known


def gather(
    check: str,
    answers: Sequence[Answer],
    judge: Callable[[Node, Any], Fault | None],
    well: Callable[[list[Answer]], str],
) -> Iterator[Finding]:
    """Tell each node with which something is wrong, and the others in one line."""
    fine = []
    for answer in answers:
        fault = Fault(answer.error, "") if answer.error else judge(answer.node, answer.seen)
        if fault is None:
            fine.append(answer)
        else:
            yield Finding(check, False, f"node {answer.node}: {fault.told}", fault.remedy)
    if fine:
        yield Finding(check, True, well(fine))


def no_fault(node: Node, seen: Any) -> None:
    """Judge what is wrong only when it raises."""


# On the driver


def check_upload(folder: Path) -> Iterator[Finding]:
    """Whether ``ray job submit --working-dir .`` can send this folder."""
    yield judge_upload(folder, upload_size(folder))


def upload_size(folder: Path) -> int:
    """Size in bytes of the zip file that Ray would make of a folder, which it does not compress."""
    size = ZIP_END

    def add(path: Path) -> None:
        nonlocal size
        empty = path.is_dir() and not any(path.iterdir())
        if path.is_file() or empty:
            name = f"{path.relative_to(folder)}{'/' if empty else ''}"
            size += ZIP_PER_FILE + 2 * len(name.encode()) + (0 if empty else path.stat().st_size)

    ignored = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    quiet = logging.Logger("saff.doctor", logging.CRITICAL)
    packaging._dir_travel(folder, [], add, include_gitignore=ignored, logger=quiet)
    return size


def judge_upload(folder: Path, size: int, most: int = MOST_UPLOAD) -> Finding:
    """Compare what a job would send with what Ray takes."""
    told = f"ray job submit --working-dir . would send {show(size)} from {folder}"
    if size < most:
        return Finding("upload", True, told)
    remedy = "submit from the clone, or name in .rayignore what no job needs"
    return Finding("upload", False, f"{told}, Ray takes {show(most)}", remedy)


def check_storage(output: str) -> Iterator[Finding]:
    """List, write, read and remove at an output from the driver."""
    place = nearest(Folder.at(output))
    with reaching(output):
        times = touch(place)
    yield Finding("storage", True, f"{times} at {place.uri}")


class Times(NamedTuple):
    """Seconds that a storage took."""

    list: float
    write: float
    read: float
    remove: float

    def __str__(self) -> str:
        """In milliseconds."""
        return ", ".join(f"{name} {1000 * t:.1f} ms" for name, t in self._asdict().items())


def touch(place: Folder) -> Times:
    """Do with a small file what a run does with its own."""
    name, data = f".saff-doctor-{uuid.uuid4().hex}", uuid.uuid4().bytes
    clock = [time.perf_counter()]

    def lap() -> None:
        clock.append(time.perf_counter())

    place.names("")
    lap()
    place.write(name, data)
    lap()
    try:
        back = place.read(name)
        lap()
    finally:
        place.remove(name)
        lap()
    if back != data:
        raise SettingsError(f"{place.uri} gives back other bytes than were written")
    return Times(*np.diff(clock).tolist())


def nearest(folder: Folder) -> Folder:
    """Where an output would be made: itself, or of a local one the first folder that is there."""
    if not is_local(folder.fs):
        return folder
    path = Path(folder.path)
    while not path.is_dir():
        if os.path.lexists(path):
            raise SettingsError(f"{path} is no folder; choose another output")
        path = path.parent
    return Folder(folder.fs, str(path))


def check_space(output: str) -> Iterator[Finding]:
    """Whether a local output has space; an object store does not tell."""
    place = nearest(Folder.at(output))
    if is_local(place.fs):
        yield judge_space(place.uri, shutil.disk_usage(place.path).free)


def judge_space(uri: str, free: int) -> Finding:
    """Compare the free bytes of an output with what a run needs."""
    told = f"{show(free)} free at {uri}, for about {round(free / BYTES_PER_IMAGE, -3):,.0f} images"
    remedy = f"free some: a run should begin with {show(LEAST_SPACE)}"
    return Finding("space", free >= LEAST_SPACE, told, "" if free >= LEAST_SPACE else remedy)


def check_run(output: str) -> Iterator[Finding]:
    """What an output holds, and whether this saff can continue it."""
    folder = nearest(Folder.at(output))
    with reaching(output):
        begun = folder.uri == Folder.at(output).uri and folder.exists("run.json")
    if not begun:
        yield Finding("run", True, f"{output} holds none yet")
        return
    made_by = str(read_run(folder).get("saff"))
    yield judge_run(made_by, saff.__version__, str(plan(folder)))


def judge_run(made_by: str, here: str, counts: str) -> Finding:
    """Compare the version that a run was begun with and the one here."""
    told = f"begun with saff {made_by}; {counts}"
    if made_by == here:
        return Finding("run", True, told)
    remedy = f"this is saff {here}: continue with saff {made_by}, or choose another output"
    return Finding("run", False, told, remedy)


# The cluster


def join(address: str | None) -> Iterator[Finding]:
    """Join a cluster, or start a Ray here as every command does."""
    if address and address != "local":
        reach(address)
        if not ray.is_initialized():
            with ending_after(START_SECONDS):
                ray.init(address, logging_level=logging.WARNING, log_to_driver=False)
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
    with reaching(output):
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
    with reaching(place.uri):
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


# Words


def show(size: float) -> str:
    """Bytes for a person."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def amounts(kinds: Sequence[str]) -> str:
    """``1 CPU and 2 GPUs``, each kind counted."""
    return " and ".join(count(kinds.count(kind), kind) for kind in dict.fromkeys(kinds))


def count(things: Sequence[Any] | float, name: str) -> str:
    """``2 nodes``, ``1 node``."""
    number = things if isinstance(things, (int, float)) else len(things)
    return f"{number:g} {name}{'' if number == 1 else 's'}"
