"""Storage that fails, processes, nodes and heads that die: every image is there once, as ever."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import s3fs
from ray.cluster_utils import Cluster

import chaos
import fault_proxy
from fault_proxy import KINDS, FaultProxy
from saff import retries
from saff.cluster import label_corpus
from saff.cluster.pipeline import run_pipeline
from saff.config import Inference, Training
from saff.errors import SettingsError
from saff.storage import Folder, list_images
from test_job import free_port, started, wait_for

pytestmark = [pytest.mark.faults, pytest.mark.s3, pytest.mark.slow]

FIRST_SEED = 40  # of five that hold every kind of fault between them, and few restarts
NOTHING_WRONG = {"lost": 0, "doubled": 0, "different": 0}
TINY = dataclasses.replace(
    chaos.SMALL,
    training=Training(crop=64, side=96, batch=4, steps=4, checkpoint_every=2, warmup=1),
    inference=Inference(sides=(96,)),
)


@pytest.fixture(scope="module")
def world():
    """Thirty files, their rows without any cluster, and an S3 server that has the files too."""
    with chaos.world() as made:
        yield made


@pytest.fixture(scope="module")
def door(world):
    """The way to that server, for this process and those it starts: a proxy, without faults yet."""
    with FaultProxy(world.server, rate=0) as proxy, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in chaos.ENVIRONMENT.items():
            if not name.startswith("RAY_"):
                patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def proxy(door):
    """That proxy, to be made bad for one test."""
    door.kinds, door.rate, door.requests = KINDS, 0.0, 0  # faults go by the request's number
    door.faults.clear()
    yield door
    door.rate = 0.0


@contextlib.contextmanager
def watching(folder):
    """Look into a stage again and again while the block runs."""
    watch, end = chaos.Watch(folder), threading.Event()

    def look():
        while not end.wait(0.02):
            watch.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        end.set()
        thread.join()
        watch.look()


def label(source, output, settings=chaos.SMALL):
    return label_corpus(source, list_images(source), Folder.at(str(output)), settings)


# Storage


@pytest.mark.parametrize("kind", KINDS)
def test_a_storage_that_fails_for_a_moment_is_asked_again(kind, proxy, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the client itself does not ask again
    monkeypatch.setattr(retries, "LONGEST_PAUSE", 0.5)
    monkeypatch.setattr(fault_proxy, "SLOW_SECONDS", 0.2)
    s3fs.S3FileSystem.clear_instance_cache()
    folder = Folder.at(f"s3://{chaos.BUCKET}/storage/{kind}")
    proxy.kinds, proxy.rate = (kind,), 0.5
    for size in (0, 1, 300_000):
        folder.write("a", b"x" * size)
        assert folder.read("a") == b"x" * size
        assert folder.names("") == ["a"]
        assert folder.exists("a")
        folder.remove("a")
        assert not folder.exists("a")
    assert proxy.faults[kind] > 3
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_listing_of_many_pages_is_whole(world, proxy):
    many = world.bucket / "many"
    for number in range(2300):
        path = many / f"{number % 7}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    proxy.rate = 0.4
    rows = list(list_images(f"s3://{chaos.BUCKET}/many"))
    assert [row["image_id"] for row in rows] == sorted(f"{n % 7}/{n:04}.png" for n in range(2300))
    assert proxy.requests - proxy.faults.total() > 3  # a look, then a thousand a page
    assert proxy.faults.total() > 1


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_whole_pipeline_in_a_storage_that_fails(world, proxy):
    source, output = f"s3://{chaos.BUCKET}/photos", Folder.at(f"s3://{chaos.BUCKET}/pipeline")
    home = world.bucket / "pipeline"
    said = []
    proxy.rate = 0.05
    ray.init("local", num_cpus=4, log_to_driver=False, logging_level="ERROR")
    try:
        with watching(home / "pseudo_labels") as labels, watching(home / "predictions") as masks:
            page = run_pipeline(
                source, list_images(source), output, TINY, rounds=1, truth=source, say=said.append
            )
    finally:
        ray.shutdown()
    assert page == f"{output.uri}/report/index.html"
    assert proxy.faults.total() > 10
    assert (labels.half_written, masks.half_written) == (0, 0)
    assert chaos.compare(home / "pseudo_labels", world.expected) == NOTHING_WRONG


# Processes and nodes


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head without work, two nodes with a CPU each, and two back ends that fail."""
    folder = tmp_path_factory.mktemp("backends")
    (folder / "failing.py").write_text(
        "from saff.errors import StorageError\n"
        "class Failing:\n"
        "    error = None\n"
        "    def __call__(self, image):\n"
        "        if image.shape[0] > 32:  # no trial before the run\n"
        "            raise self.error\n"
        "        return image[..., 0] / 255\n"
        "class Hungry(Failing):\n"
        "    error = MemoryError('16 GiB for one array')\n"
        "class Full(Failing):\n"
        "    error = StorageError('no space left to write a draft')\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder))
        nodes = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        for _ in range(2):
            nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        yield nodes
        ray.shutdown()
        nodes.shutdown()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("backend", "said"),
    [("failing:Hungry", "16 GiB for one array"), ("failing:Full", "^no space left to write")],
)
def test_a_machine_at_its_end_ends_the_job_and_marks_no_image(
    backend, said, cluster, world, tmp_path
):
    settings = dataclasses.replace(chaos.SMALL, saliency=backend)
    with pytest.raises(SettingsError, match=said) as caught:
        label(str(world.bucket / "photos"), tmp_path, settings)
    assert "Failed to apply" not in str(caught.value)  # Ray's own advice helps nobody here
    shards = (tmp_path / "pseudo_labels").glob("part-*.parquet")
    rows = [row for path in shards for row in chaos.read(path)]
    assert {row["error_kind"] for row in rows} <= {"empty", "not_an_image", "truncated"}


@pytest.mark.ray
def test_a_worker_killed_for_memory_and_a_lost_node_cost_nothing(cluster, world, tmp_path):
    stage, found = tmp_path / "pseudo_labels", []

    def strike():
        wait_for_shards(stage, 1)
        busy = [p for p in chaos.workers() if chaos.has_open(p, str(stage))]
        (busy or chaos.workers())[0].send_signal(signal.SIGKILL)  # as the kernel does
        wait_for_shards(stage, 4)
        cluster.remove_node(max(cluster.worker_nodes, key=lambda n: n.unique_id), False)
        found.append(len(list(stage.glob("part-*.parquet"))))

    thread = threading.Thread(target=strike)
    with watching(stage) as watch:
        thread.start()
        label(str(world.bucket / "photos"), tmp_path)
        thread.join()
    assert found[0] < chaos.PARTS, "the node was to be lost in mid-run"
    assert len(cluster.worker_nodes) == 1
    assert watch.half_written == 0
    assert chaos.compare(stage, world.expected) == NOTHING_WRONG


def wait_for_shards(stage, count):
    end = time.monotonic() + 200
    while len(list(stage.glob("part-*.parquet"))) < count:
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


# From nothing and back


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_cluster_grows_from_nothing_by_cpus_alone_and_shrinks_again(world, tmp_path):
    port, settings = free_port(), tmp_path / "autoscaler.json"
    settings.write_text(json.dumps(autoscaler(port)))
    environment = os.environ | chaos.ENVIRONMENT | FAKE_NODES
    head = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
    head += [f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
    head += ["--min-worker-port=0", "--max-worker-port=0", f"--autoscaling-config={settings}"]
    job = [sys.executable, "jobs/pseudo_labels.py", "--images", str(world.bucket / "photos")]
    job += ["--output", str(tmp_path / "out"), "--config", str(world.folder / "small.json")]
    sizes = []
    with started(head, env=environment) as cluster, ending(cluster):
        wait_for(lambda: nodes_of(cluster) == ["head"], cluster)
        with started(job, env=environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}) as driver:
            while driver.poll() is None:
                sizes.append(nodes_of(cluster))
                time.sleep(0.2)
            assert driver.returncode == 0
        wait_for(lambda: nodes_of(cluster) == ["head"], cluster)
    assert {name for names in sizes for name in names} == {"head", "cpu"}
    assert chaos.compare(tmp_path / "out" / "pseudo_labels", world.expected) == NOTHING_WRONG


HEAD_ID = "f" * 51 + "00000"
FAKE_NODES = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
}


def autoscaler(port):
    """Settings of Ray's autoscaler: nodes that are processes of this machine, none to begin with.

    A head without work, up to three nodes with a CPU, and one with what Ray takes for a GPU.
    """
    kinds = {
        "ray.head.default": {"resources": {"CPU": 0}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 1}, "min_workers": 0, "max_workers": 3},
        "gpu": {"resources": {"CPU": 1, "GPU": 1}, "min_workers": 0, "max_workers": 1},
    }
    unused = ("initialization", "setup", "head_setup", "worker_setup")
    return {
        "cluster_name": "faults",
        "max_workers": 4,
        "idle_timeout_minutes": 0.05,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",  # as "fake_multinode", whose defaults Ray's wheel lacks
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": f"{ray.util.get_node_ip_address()}:{port}",
        },
        "available_node_types": {k: v | {"node_config": {}} for k, v in kinds.items()},
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        **{f"{name}_commands": [] for name in unused},
    }


def nodes_of(head):
    """Kinds of the nodes that are alive, sorted, by the resources their raylets announce."""
    found = []
    for process in psutil.Process(head.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            words = process.cmdline()
            if words and words[0].endswith("raylet/raylet"):
                (has,) = (w for w in words if w.startswith("--static_resource_list="))
                found.append("gpu" if "GPU,1" in has else "cpu" if "CPU,1" in has else "head")
    return sorted(found, reverse=True)


@contextlib.contextmanager
def ending(process):
    """Everything that a process has started is dead afterwards."""
    try:
        yield
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


# Everything at once


@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_no_schedule_of_faults_loses_or_changes_a_row(tmp_path):
    found = tmp_path / "found.json"
    command = [sys.executable, str(Path(chaos.__file__)), "--first-seed", str(FIRST_SEED)]
    command += ["--schedules", "5", "--json", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1400)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(found.read_text())["summary"]
    assert {name: summary[name] for name in chaos.BAD} == dict.fromkeys(chaos.BAD, 0)
    assert set(summary["struck"]) == {kind for kinds in chaos.KINDS.values() for kind in kinds}


def test_what_is_wrong_is_counted(tmp_path):
    rows = [{"image_id": name, "uri": name, "error": None} for name in "abcd"]
    expected = {row["image_id"]: chaos.comparable(row) for row in rows}
    watch = chaos.Watch(tmp_path)

    def write(number, *found):
        path = tmp_path / f"part-{number}.parquet"
        pq.write_table(pa.Table.from_pylist(list(found)), path)
        return path

    write(0, *rows[:2])
    write(1, *rows[2:])
    assert (watch.look(), watch.half_written) == (2, 0)
    assert chaos.compare(tmp_path, expected) == NOTHING_WRONG
    path = write(1, rows[0], rows[2] | {"error": "other"})
    assert chaos.compare(tmp_path, expected) == {"lost": 1, "doubled": 1, "different": 1}
    path.write_bytes(path.read_bytes()[:-5])
    assert (watch.look(), watch.half_written) == (2, 1)
    assert chaos.compare(tmp_path, expected) == {"lost": 2, "doubled": 0, "different": 0}


def test_a_seed_is_a_plan():
    plans = [chaos.draw(seed) for seed in range(200)]
    assert plans == [chaos.draw(seed) for seed in range(200)]
    assert {plan.where for plan in plans} == set(chaos.KINDS)
    for plan in plans:
        kinds = [fault.kind for fault in plan.faults] + ["storage"] * (plan.rate > 0)
        assert 1 <= len(kinds) <= chaos.MOST_FAULTS
        assert set(kinds) <= set(chaos.KINDS[plan.where])
