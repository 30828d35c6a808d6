"""Storage that fails, processes, nodes and heads that die: every image is there once, as ever."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import s3fs
import torch
from ray.cluster_utils import Cluster

import chaos
import fault_proxy
from clusters import ending, free_port, nodes, started, wait_for
from fault_proxy import KINDS, RESETS, FaultProxy
from saff import retries
from saff.cluster import label_corpus
from saff.cluster.pipeline import run_pipeline
from saff.cluster.training import train_network
from saff.config import Inference, Training
from saff.errors import SaffError
from saff.images import decode_png, encode_png
from saff.manifests import extend_manifest
from saff.plan import plan_stage
from saff.sources import list_images
from saff.storage import UPLOAD_BYTES, Folder
from saff.verification import verify

pytestmark = [pytest.mark.s3, pytest.mark.slow]

FIRST_SEED, SEEDS = 301329, 2  # schedules with few restarts that hold every kind of fault
NOTHING_WRONG = {"lost": 0, "doubled": 0, "different": 0}
TINY = dataclasses.replace(
    chaos.SMALL,
    training=Training(
        crop_size=64, max_side=96, batch_size=4, steps=4, checkpoint_interval=2, warmup_steps=1
    ),
    inference=Inference(input_sides=(96,), pseudo_label_share=0.0),
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
    door.kinds = KINDS
    door.begin(seed=0, rate=0.0)  # faults go by the request's number
    yield door
    door.rate = door.stale = 0.0


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


@pytest.mark.parametrize("body", [0, 3_000_000])
@pytest.mark.parametrize("kind", ["request_cut", "slow_request"])
def test_a_fault_of_a_request_strikes_while_the_server_reads_it(kind, body, monkeypatch):
    monkeypatch.setattr(fault_proxy, "SLOW_SECONDS", 0.4)
    request = b"PUT /a HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % body + b"x" * body
    whole = len(request) + len("Connection: close\r\n")
    half = whole - body + body // 2 if body else whole // 2
    got, began = 0, time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "http://{}:{}".format(*server.getsockname())
        with FaultProxy(address, rate=1, kinds=(kind,)) as proxy:
            client = socket.create_connection(proxy.url.removeprefix("http://").split(":"))
            sender = threading.Thread(target=send, args=(client, request))
            sender.start()
            with server.accept()[0] as connection, client:
                connection.settimeout(20)
                with pytest.raises(ConnectionResetError) if kind == "request_cut" else NOTHING:
                    while got < whole and (piece := connection.recv(2**20)):
                        got += len(piece)
                sender.join()
                if kind == "request_cut":
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)
    assert got == (half if kind == "request_cut" else whole)
    if kind == "slow_request":
        assert time.monotonic() - began > 0.3


NOTHING = contextlib.nullcontext()


def send(client, request):
    with contextlib.suppress(ConnectionError):
        client.sendall(request)


def test_a_listing_that_lags_behind_loses_and_doubles_no_image(proxy):
    output = Folder.at(f"s3://{chaos.BUCKET}/lagging")
    rows = list(list_images(f"s3://{chaos.BUCKET}/photos"))
    proxy.begin(0, rate=0)
    assert plan_stage(output).images == 0  # answers that come again
    proxy.stale = 1.0
    assert extend_manifest(output, rows).added == chaos.IMAGES
    assert (output / "manifest").names(".parquet") == []
    assert plan_stage(output).images == chaos.IMAGES
    assert extend_manifest(output, rows).added == 0
    assert proxy.faults.total() == proxy.faults[fault_proxy.STALE_LISTING] > 3
    proxy.stale = 0
    assert len((output / "manifest").names(".parquet")) == chaos.PARTS


def test_a_listing_of_many_pages_is_whole(world, proxy):
    many, flat = world.bucket / "many", world.bucket / "flat"
    flat.mkdir()
    for number in range(1100):
        (flat / f"{number:04}").touch()
    for number in range(2300):
        path = many / f"{number % 7}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    time.sleep(1.5)  # the server looks at its folders once a second
    proxy.rate = 0.4
    rows = list(list_images(f"s3://{chaos.BUCKET}/many"))
    requests = proxy.requests
    assert [row["image_id"] for row in rows] == sorted(f"{n % 7}/{n:04}.png" for n in range(2300))
    served = ("slow", "slow_request")
    refused = sum(count for kind, count in proxy.faults.items() if kind not in served)
    assert requests - refused == 4  # a look, then a thousand a page
    assert proxy.faults.total() > 1
    proxy.rate, proxy.requests = 0, 0
    assert len(list(list_images(f"s3://{chaos.BUCKET}/flat"))) == 1100
    assert proxy.requests == 3  # s3fs's own look at a folder would list all of it
    folder = Folder.at(f"s3://{chaos.BUCKET}/flat")
    assert folder.names("") == [f"{number:04}" for number in range(1100)]
    assert not folder.fs.dircache  # nothing of it is kept


CONTENTS = {"old": b"old", "new": os.urandom(2 * UPLOAD_BYTES + 1)}  # in three pieces
UPLOAD = (
    "import os, sys\n"
    "from saff.storage import UPLOAD_BYTES, Folder\n"
    "Folder.at(sys.argv[1]).write(sys.argv[2], os.urandom(2 * UPLOAD_BYTES + 1))\n"
)
BEFORE = pytest.mark.parametrize(("name", "before"), [("a", "old"), ("b", "absent")])
STEPS = pytest.mark.parametrize("step", ["partNumber=2", "complete"])  # of an upload


@pytest.fixture
def large(proxy, monkeypatch):
    """A folder with ``a``, whose content is old, and without ``b``; the client asks but once."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(retries, "LONGEST_PAUSE", 0.5)
    s3fs.S3FileSystem.clear_instance_cache()
    folder = Folder.at(f"s3://{chaos.BUCKET}/large")
    folder.write("a", CONTENTS["old"])
    folder.remove("b")
    proxy.requests = 0
    yield folder
    proxy.strike = None
    s3fs.S3FileSystem.clear_instance_cache()


def is_step(request, step):
    """Whether a request sends that piece of an object, or completes an object of several."""
    if step == "complete":
        return request.method == "POST" and "uploadId=" in request.query
    return request.method == "PUT" and step in request.query.split("&")


def past_the_proxy(world):
    return s3fs.S3FileSystem(
        endpoint_url=world.server, use_listings_cache=False, skip_instance_cache=True
    )


def uploads(world):
    """Ids of the uploads that have begun and not ended."""
    found = past_the_proxy(world).list_multipart_uploads(chaos.BUCKET)
    return {upload["UploadId"] for upload in found}


@contextlib.contextmanager
def reading(world, name):
    """Read an object again and again while the block runs; gives what it was, each change."""
    other, found, end = past_the_proxy(world), [], threading.Event()
    names = {data: what for what, data in CONTENTS.items()}

    def look():
        try:
            data = other.cat_file(f"s3://{chaos.BUCKET}/large/{name}")
            what = names.get(data, f"{len(data)} bytes")
        except FileNotFoundError:
            what = "absent"
        if found[-1:] != [what]:
            found.append(what)

    def keep_looking():
        while not end.wait(0.02):
            look()

    look()
    thread = threading.Thread(target=keep_looking)
    thread.start()
    try:
        yield found
    finally:
        end.set()
        thread.join()
        look()


@BEFORE
@pytest.mark.parametrize("kind", [*RESETS, "slow_request"])
def test_a_large_object_appears_whole_in_a_storage_that_fails(
    kind, name, before, world, proxy, large, monkeypatch
):
    monkeypatch.setattr(fault_proxy, "SLOW_SECONDS", 0.2)
    asked = []
    proxy.strike = lambda request: asked.append(request.query)  # None: it goes on
    proxy.kinds, proxy.rate = (kind,), 0.5
    with reading(world, name) as found:
        large.write(name, CONTENTS["new"])
    proxy.rate = 0
    assert found == [before, "new"]
    numbers = [n for query in asked for n in parse_qs(query).get("partNumber", [])]
    assert set(numbers) == {"1", "2", "3"}
    assert proxy.faults[kind] > 1
    assert large.names("") == sorted({"a", name})


@BEFORE
@STEPS
def test_an_upload_that_fails_in_the_middle_changes_nothing(
    step, name, before, world, proxy, large, monkeypatch
):
    monkeypatch.setenv(retries.PATIENCE, "0")
    asked, others = [], uploads(world)  # begun by earlier tests, whose answers were lost

    def strike(request):
        asked.append(request.method)
        return is_step(request, step)

    proxy.strike = strike
    with reading(world, name) as found, pytest.raises(Exception, match="uploadId="):
        large.write(name, CONTENTS["new"])
    assert found == [before]
    assert "DELETE" in asked  # of the pieces; one may still come after it
    assert not uploads(world) - others
    proxy.strike = None
    large.write(name, CONTENTS["new"])
    assert large.read(name) == CONTENTS["new"]


@BEFORE
@STEPS
def test_an_upload_that_is_killed_in_the_middle_changes_nothing(
    step, name, before, world, proxy, large
):
    others = uploads(world)

    def strike(request):
        if is_step(request, step):
            uploader.kill()
            return True
        return False

    proxy.strike = strike
    with reading(world, name) as found:
        uploader = subprocess.Popen([sys.executable, "-c", UPLOAD, large.uri, name])
        assert uploader.wait(60) == -signal.SIGKILL
    assert found == [before]
    assert uploads(world) - others  # see docs/cluster.md
    proxy.strike = None
    large.write(name, CONTENTS["new"])
    assert large.read(name) == CONTENTS["new"]


def test_a_large_object_whose_completion_nobody_hears_of_is_sent_again(world, proxy, large):
    lost = []

    def strike(request):
        if is_step(request, "complete") and not lost:
            with socket.create_connection((proxy.server.hostname, proxy.server.port)) as server:
                server.sendall(request.raw)
                while server.recv(4096):
                    pass
            lost.append(request)
        return request in lost

    proxy.strike = strike
    with reading(world, "a") as found:
        large.write("a", CONTENTS["new"])
    assert len(lost) == 1
    assert found == ["old", "new"]


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.timeout(900)
def test_the_whole_pipeline_in_a_storage_that_fails_is_that_on_a_disk(world, proxy, tmp_path):
    source, output = f"s3://{chaos.BUCKET}/photos", Folder.at(f"s3://{chaos.BUCKET}/pipeline")
    home, photos = world.bucket / "pipeline", str(world.bucket / "photos")
    here, truth = Folder.at(str(tmp_path)), world.bucket / "truth"
    for row in world.expected.values():
        if row["confidence"]:  # its own label, a little larger, stands for the true mask
            path = (truth / row["image_id"]).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(np.uint8(decode_png(row["confidence"]) > 99) * 255))

    def pipeline(images, to):
        masks = images.replace("photos", "truth")
        return run_pipeline(
            images, list_images(images), to, TINY, rounds=1, truth=masks, say=lambda line: None
        )

    with nodes(4):  # its workers know the way to that storage
        pipeline(photos, here)
        proxy.rate = 0.05
        with watching(home / "pseudo_labels") as labels, watching(home / "predictions") as masks:
            page = pipeline(source, output)
        proxy.rate = 0
    assert page == f"{output.uri}/report/index.html"
    assert proxy.faults.total() > 10
    assert (labels.half_written, masks.half_written) == (0, 0)
    assert chaos.compare(home / "pseudo_labels", world.expected) == NOTHING_WRONG
    verdict = verify(output, here)
    assert verdict.whole, verdict.lines
    for name in ("evaluation/pseudo_labels", "evaluation/predictions"):
        assert (output / name).read("metrics.json") == (here / name).read("metrics.json")
    assert len((output / "report").read("index.html")) > 100_000


def test_a_storage_that_fails_later_on_is_one_line(
    call, corpus, settings_file, finished, world, proxy, monkeypatch, tmp_path
):
    """The first look at an output is well, and no shard of it can be read."""
    shutil.copytree(finished.path, world.bucket / "late")
    time.sleep(1.5)  # the server looks at its folders once a second
    output = f"s3://{chaos.BUCKET}/late"
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("SAFF_STORAGE_PATIENCE", "0.5")
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.strike = lambda request: request.method == "GET" and ".parquet" in request.path
    for words in (
        ("label", corpus, "--output", output, "--config", settings_file),
        ("report", output),
        ("export", output, "--to", tmp_path / "masks"),
        ("evaluate", output, "--truth", tmp_path),
    ):
        code, out, err = call(*words)
        assert (code, out) == (2, ""), words
        last = err.splitlines()[-1]
        assert last.startswith("saff: "), words
        assert "Traceback" not in err, words
    proxy.strike = None
    code, out, _ = call("report", output)
    assert (code, out) == (0, f"open {output}/report/index.html\n")


# Processes and nodes


@pytest.fixture(scope="module")
def cluster():
    """A head without work and two nodes with a CPU each."""
    with nodes(0, 1, 1) as made:
        yield made


@pytest.mark.ray
@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("failing_back_ends:NoMemory", "16 GiB for one array"),
        ("failing_back_ends:NoSpace", "^no space left to write"),
    ],
)
def test_a_machine_at_its_end_ends_the_job_and_marks_no_image(
    backend, said, cluster, world, tmp_path
):
    settings = dataclasses.replace(chaos.SMALL, saliency=backend)
    with pytest.raises(SaffError, match=said) as caught:
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


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_training_whose_node_is_lost_goes_on_at_its_checkpoint(finished, tmp_path):
    training = dataclasses.replace(TINY.training, steps=12)
    lost, whole = (
        Folder.at(str(shutil.copytree(finished.path, tmp_path / name)))
        for name in ("lost", "whole")
    )
    checkpoints, found = tmp_path / "lost/network/checkpoints", []

    def strike(cluster):
        wait_for_shards(checkpoints, 1, "step-*.pt")
        (worker,) = (p for p in chaos.workers() if "TrainWorker" in " ".join(p.cmdline()))
        raylets = {n.all_processes["raylet"][0].process.pid: n for n in cluster.worker_nodes}
        cluster.remove_node(raylets[worker.ppid()], False)
        found.append(not (lost / "network").exists("weights.pt"))

    with nodes(0, 1, 1, kind=Cluster) as cluster:  # a worker's parent is its raylet
        thread = threading.Thread(target=strike, args=(cluster,))
        thread.start()
        train_network(lost, training, workers=1)
        thread.join()
        train_network(whole, training, workers=1)
    assert found == [True], "the node was to be lost in mid-training"
    one, other = (
        torch.load(f"{o.path}/network/weights.pt", weights_only=True) for o in (lost, whole)
    )
    assert all(torch.equal(one[name], other[name]) for name in other)


def wait_for_shards(stage, count, pattern="part-*.parquet"):
    end = time.monotonic() + 200
    while len(list(stage.glob(pattern))) < count:
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


# Everything at once


@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_no_schedule_of_faults_loses_or_changes_a_row(tmp_path):
    found = tmp_path / "found.jsonl"
    command = [sys.executable, str(Path(chaos.__file__)), "--first-seed", str(FIRST_SEED)]
    command += ["--schedules", str(SEEDS), "--json", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1400)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = chaos.read_lines(found)
    assert [row["seed"] for row in rows] == list(range(FIRST_SEED, FIRST_SEED + SEEDS))
    summary = chaos.summary(rows)
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
    patient = chaos.Watch(tmp_path, patience=0.3)
    assert (watch.look(), watch.half_written) == (2, 1)
    assert (patient.look(), patient.half_written) == (2, 1)  # it stays as it is
    timer = threading.Timer(0.1, path.rename, [tmp_path / "gone"])
    timer.start()
    again = chaos.Watch(tmp_path, patience=0.3)
    assert (again.look(), again.half_written) == (2, 0)
    timer.join()
    (tmp_path / "gone").rename(path)
    assert chaos.compare(tmp_path, expected) == {"lost": 2, "doubled": 0, "different": 0}


def test_a_seed_is_a_plan():
    plans = [chaos.draw(seed) for seed in range(200)]
    assert plans == [chaos.draw(seed) for seed in range(200)]
    assert {plan.where for plan in plans} == set(chaos.KINDS)
    for plan in plans:
        kinds = [fault.kind for fault in plan.faults] + ["storage"] * (plan.rate > 0)
        assert 1 <= len(kinds) <= chaos.MOST_FAULTS
        assert set(kinds) <= set(chaos.KINDS[plan.where])
