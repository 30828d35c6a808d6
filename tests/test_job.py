"""The job on a real Ray cluster: every image once, the same bytes, whatever is killed."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from saff import config
from saff.cluster import label_corpus, plan_stage
from saff.shards import read_rows
from saff.sources import list_images
from saff.storage import Folder
from tests.conftest import comparable

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parent.parent
JOB = [sys.executable, str(ROOT / "jobs" / "pseudo_labels.py")]
SMALL = dataclasses.replace(config.default(), encoder_side=64, superpixel_count=60)
SETTINGS = """{"encoder_side": 64, "superpixel_count": 60}"""


def stored(output):
    stage = Folder.at(str(output)) / "pseudo_labels"
    return comparable(r for name in stage.names(".parquet") for r in read_rows(stage, name))


def run(crops, output, settings=SMALL, **options):
    return label_corpus(
        str(crops), list_images(str(crops)), Folder.at(str(output)), settings, **options
    )


@contextlib.contextmanager
def nodes(*cpus, **settings):
    """A cluster whose head and nodes have so many CPUs; the driver joins it."""
    head, *others = cpus
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": head, "include_dashboard": False, **settings},
    )
    try:
        for count in others:
            cluster.add_node(num_cpus=count, **settings)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def one_node():
    """A local cluster of 4 CPUs."""
    if not ray.is_initialized():
        ray.init("local", num_cpus=4, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_every_image_once_and_as_without_a_cluster(crops, crop_rows, one_node, tmp_path):
    done = run(crops, tmp_path)
    assert (done.images, done.done, done.failed, done.left) == (26, 26, 2, 0)
    assert stored(tmp_path) == crop_rows
    assert crop_rows["empty.jpg"]["error_kind"] == "empty"
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "pseudo_labels").iterdir()}
    run(crops, tmp_path)  # the same command when done does nothing
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "pseudo_labels").iterdir()} == before


def test_resume_does_what_is_missing_and_takes_in_new_images(crops, crop_rows, one_node, tmp_path):
    images, output = tmp_path / "images", tmp_path / "out"
    subprocess.run(["cp", "-r", str(crops), str(images)], check=True)
    run(images, output)
    shards = sorted((output / "pseudo_labels").iterdir())
    kept = {p: p.stat().st_mtime_ns for p in shards[2:]}
    shards[0].unlink()
    shards[1].unlink()
    (images / "new.png").write_bytes((images / "0" / "photo 00 ü.png").read_bytes())
    assert plan_stage(Folder.at(str(output))).left == 4
    run(images, output)
    rows = stored(output)
    assert rows.pop("new.png")["confidence"] == rows["0/photo 00 ü.png"]["confidence"]
    unplaced = {i: {k: v for k, v in r.items() if k != "uri"} for i, r in crop_rows.items()}
    assert {i: {k: v for k, v in r.items() if k != "uri"} for i, r in rows.items()} == unplaced
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_retry_failed_redoes_only_what_failed(crops, one_node, tmp_path):
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    photo = (crops / "0" / "photo 00 ü.png").read_bytes()
    (images / "a.png").write_bytes(photo)
    (images / "b.png").write_bytes(photo[:100])
    assert run(images, output).failed == 1
    first = stored(output)
    (images / "b.png").write_bytes(photo)
    (images / "a.png").unlink()  # a second look at it would fail
    (images / "c.png").write_bytes(photo)
    assert run(images, output).failed == 1  # without the flag failures stay
    assert run(images, output, retry_failed=True).failed == 0
    rows = stored(output)
    assert rows["a.png"] == first["a.png"]
    assert rows["b.png"]["confidence"] == first["a.png"]["confidence"]


def test_a_killed_worker_costs_nothing(crops, crop_rows, tmp_path):
    (tmp_path / "deadly.py").write_text(
        "import os, signal\n"
        "from saff import saliency\n"
        f"marker = {str(tmp_path / 'died')!r}\n"
        "class Deadly:\n"
        "    def __init__(self):\n"
        "        self.alive = saliency.load('drfi')\n"
        "    def __call__(self, image):\n"
        "        if image.shape[0] == 127:  # the size of one of the photographs\n"
        "            try:\n"
        "                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))\n"
        "            except FileExistsError:\n"
        "                pass\n"
        "            else:\n"
        "                os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return self.alive(image)\n"
    )
    ray.init(
        "local",
        num_cpus=2,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(tmp_path)}},
    )
    sys.path.insert(0, str(tmp_path))
    try:
        run(crops, tmp_path / "out", dataclasses.replace(SMALL, saliency="deadly:Deadly"))
    finally:
        sys.path.remove(str(tmp_path))
        ray.shutdown()
    assert (tmp_path / "died").exists()
    assert stored(tmp_path / "out") == crop_rows


def test_three_nodes_give_the_rows_of_one(crops, crop_rows, tmp_path):
    with nodes(1, 1, 1):
        assert len(ray.nodes()) == 3
        run(crops, tmp_path)
    assert stored(tmp_path) == crop_rows


def test_a_killed_driver_is_resumed(crops, crop_rows, tmp_path):
    output, settings = tmp_path / "out", tmp_path / "small.json"
    settings.write_text(SETTINGS)
    command = [*JOB, "--images", str(crops), "--output", str(output), "--config", str(settings)]
    with started(command) as first:
        wait_for(lambda: len(shards_of(output)) >= 2, first)
        first.send_signal(signal.SIGKILL)
    assert 2 <= len(shards_of(output)) < 13, "the driver was to die in mid-run"
    early = {p: p.stat().st_mtime_ns for p in shards_of(output)}
    second = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert "done: 26 images: 24 labelled, 2 failed, 0 to do" in second.stderr
    assert stored(output) == crop_rows
    assert {p: p.stat().st_mtime_ns for p in early} == early
    assert not list((output / "pseudo_labels").glob(".*"))  # no drafts are left


@pytest.mark.slow
def test_ray_job_submit_with_token_authentication(crops, crop_rows, tmp_path):
    output, settings, manifest = (tmp_path / n for n in ("out", "small.json", "manifest.csv"))
    settings.write_text(SETTINGS)
    images = list(list_images(str(crops))) * 8  # stopping a job takes seconds: enough to be in
    rows = [(f"{n}.png", image["image_id"], image["uri"]) for n, image in enumerate(images)]
    manifest.write_text("image_id,uri\n" + "".join(f"{i},{u}\n" for i, _, u in rows))
    port, dashboard, agent = free_port(), free_port(), free_port()
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-32-characters-for-tests",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    ray_command = str(Path(sys.executable).parent / "ray")
    head = [ray_command, "start", "--head", "--block", "--num-cpus=2", f"--port={port}"]
    head += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    head += ["--min-worker-port=0", "--max-worker-port=0"]
    submit = [ray_command, "job", "submit", "--working-dir", str(ROOT)]
    job = ["--", sys.executable, "jobs/pseudo_labels.py", "--manifest", str(manifest)]
    job += ["--output", str(output), "--config", str(settings)]

    def call(*command, env=environment):
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)

    with started(head, env=environment) as process:
        wait_for(lambda: call(ray_command, "job", "list").returncode == 0, process)
        other = environment | {"RAY_AUTH_TOKEN": "another-token-of-32-characters-xx"}
        refused = call(*submit, *job, env=other)
        assert refused.returncode != 0
        assert not output.exists()
        wait_for(lambda: call(*submit, "--", "true").returncode == 0, process)  # agent is up
        relative = call(*submit, *job[:-3], "out", *job[-2:])
        assert relative.returncode != 0
        assert "saff: out is relative" in relative.stdout + relative.stderr
        call(*submit, "--no-wait", "--submission-id", "first", *job).check_returncode()
        wait_for(lambda: len(shards_of(output)) >= 2, process)
        call(ray_command, "job", "stop", "first").check_returncode()
        assert len(shards_of(output)) < 104, "the job was to stop in mid-run"
        second = call(*submit, *job)
        assert second.returncode == 0, second.stdout + second.stderr
        assert "done: 208 images: 192 labelled, 16 failed, 0 to do" in second.stdout
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert stored(output) == {i: crop_rows[source] | {"image_id": i} for i, source, _ in rows}


@contextlib.contextmanager
def started(command, env=None):
    """A process in a group of its own, all of which is dead afterwards."""
    process = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def wait_for(condition, process, seconds=150):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the process ended early"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def shards_of(output):
    return sorted((output / "pseudo_labels").glob("part-*.parquet"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
