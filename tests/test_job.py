"""The job on a real Ray cluster: every image once, the same bytes, whatever is killed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
import ray

from clusters import ending, free_port, nodes, ray_command, started, wait_for
from label_runs import JOB, ROOT, SMALL, parts_of, run, stored, write_settings
from saff.plan import plan_stage
from saff.sources import list_images
from saff.storage import Folder

pytestmark = pytest.mark.ray


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


def test_a_killed_worker_costs_nothing(crops, crop_rows, one_node, marks, tmp_path):
    run(crops, tmp_path, dataclasses.replace(SMALL, saliency="failing_back_ends:KillsOnce"))
    assert (marks / "killed").exists()
    assert stored(tmp_path) == crop_rows


def test_three_nodes_give_the_rows_of_one(crops, crop_rows, tmp_path):
    with nodes(1, 1, 1):
        assert len(ray.nodes()) == 3
        run(crops, tmp_path)
    assert stored(tmp_path) == crop_rows


def test_a_killed_driver_is_resumed(crops, crop_rows, tmp_path):
    """Each run of the job starts a Ray of its own, as on a laptop."""
    output, settings = tmp_path / "out", write_settings(tmp_path)
    manifest, rows = write_copies(crops, 4, tmp_path)  # so many that it takes seconds
    command = [*JOB, "--manifest", manifest, "--output", str(output), "--config", str(settings)]
    log = tmp_path / "log"
    with open(log, "wb") as stream, started(command, log=stream) as first:
        wait_for(lambda: len(parts_of(output)) >= 2, first, log=log)
        first.send_signal(signal.SIGKILL)
    assert 2 <= len(parts_of(output)) < 52, "the driver was to die in mid-run"
    early = {p: p.stat().st_mtime_ns for p in parts_of(output)}
    objects = os.environ | {"SAFF_LOG_FORMAT": "json"}
    second = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=200, env=objects
    )
    log = [json.loads(line) for line in second.stderr.splitlines()]  # Ray's own lines as well
    assert {entry["output"] for entry in log} == {str(output)}
    assert {entry["stage"] for entry in log if entry["event"] == "progress"} == {"pseudo_labels"}
    counts = {"images": 104, "done": 96, "failed": 8, "left": 0}
    assert log[-1]["message"] == "done: 104 images: 96 labelled, 8 failed, 0 to do in 0 parts"
    assert {name: log[-1][name] for name in counts} == counts
    assert stored(output) == rows_of_copies(rows, crop_rows)
    assert {p: p.stat().st_mtime_ns for p in early} == early
    assert not list((output / "pseudo_labels").glob(".*"))  # no drafts are left


def write_copies(crops, times, folder):
    """Write a list that names each crop so many times; gives its path and rows."""
    images = list(list_images(str(crops))) * times
    rows = [(f"{n}.png", image["image_id"], image["uri"]) for n, image in enumerate(images)]
    (folder / "many.csv").write_text("image_id,uri\n" + "".join(f"{i},{u}\n" for i, _, u in rows))
    return str(folder / "many.csv"), rows


def rows_of_copies(rows, crop_rows):
    return {i: crop_rows[source] | {"image_id": i} for i, source, _ in rows}


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_paused_driver_that_wakes_beside_a_second_one_changes_nothing(
    crops, crop_rows, ray_address, tmp_path
):
    """It sleeps for longer than its lease lives, as in a laptop that was closed."""
    output, settings = tmp_path / "out", write_settings(tmp_path)
    manifest, rows = write_copies(crops, 40, tmp_path)
    command = [*JOB, "--manifest", manifest, "--output", str(output), "--config", str(settings)]
    environment = os.environ | {"RAY_ADDRESS": ray_address}
    logs = [tmp_path / "first", tmp_path / "second"]
    with (
        open(logs[0], "wb") as one,
        open(logs[1], "wb") as other,
        started(command, environment, one) as first,
    ):
        wait_for(lambda: len(parts_of(output)) >= 2, first, log=logs[0])
        first.send_signal(signal.SIGSTOP)
        with started(command, environment, other) as second:
            assert second.wait(300) == 0, logs[1].read_text()
        files = {path: path.read_bytes() for path in parts_of(output)}
        first.send_signal(signal.SIGCONT)
        assert first.wait(100) in (0, 2), logs[0].read_text()
    said = logs[0].read_text()
    assert "Traceback" not in said
    taken = "was taken over by another job (a job that has just ended); this one ends, what is done"
    assert taken in said or "0 to do" in said
    assert stored(output) == rows_of_copies(rows, crop_rows)
    assert {path: path.read_bytes() for path in parts_of(output)} == files
    assert not list((output / "pseudo_labels").glob(".part-*"))  # no drafts are left


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("jump", ["+2d", "-2d"])
def test_a_clock_that_jumps_in_mid_run_changes_nothing(crops, crop_rows, tmp_path, jump):
    """The clock of the driver, of its Ray and of all workers, by a library under theirs."""
    libfaketime = pytest.importorskip("libfaketime")
    output, settings = tmp_path / "out", write_settings(tmp_path)
    manifest, rows = write_copies(crops, 8, tmp_path)
    command = [*JOB, "--manifest", manifest, "--output", str(output), "--config", str(settings)]
    clock, log = tmp_path / "clock", tmp_path / "log"
    clock.write_text("+0d")
    environment = os.environ | dict(libfaketime.get_reload_information()[1])
    environment |= {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    look = [sys.executable, "-c", "import time; print(int(time.time()))"]

    def seconds():
        return int(subprocess.run(look, env=environment, capture_output=True, check=True).stdout)

    before = seconds()
    with open(log, "wb") as stream, started(command, environment, stream) as process:
        wait_for(lambda: len(parts_of(output)) >= 2, process, log=log)
        clock.write_text(jump)
        assert len(parts_of(output)) < 104, "the clock was to jump in mid-run"
        assert process.wait(200) == 0, log.read_text()
    assert abs(seconds() - before) > 86_400
    assert stored(output) == rows_of_copies(rows, crop_rows)


@pytest.mark.slow
def test_ray_job_submit_with_token_authentication(crops, crop_rows, tmp_path):
    output, settings = tmp_path / "out", write_settings(tmp_path)
    manifest, rows = write_copies(crops, 8, tmp_path)  # stopping a job takes seconds
    port, dashboard, agent = free_port(), free_port(), free_port()
    address = f"http://127.0.0.1:{dashboard}"
    environment = os.environ | {"RAY_API_SERVER_ADDRESS": address}
    head = ray_command("start", "--head", "--block", "--num-cpus=2", f"--port={port}")
    head += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    head += ["--min-worker-port=0", "--max-worker-port=0"]
    submit = ray_command("job", "submit", "--working-dir", str(ROOT))
    job = ["--", sys.executable, "jobs/pseudo_labels.py", "--manifest", manifest]
    job += ["--output", str(output), "--config", str(settings)]

    def call(*command, env=environment):
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)

    def relative_is_refused():
        done = call(*submit, *job[:-3], "out", *job[-2:])
        assert done.returncode != 0
        return "saff: out is relative" in done.stdout + done.stderr

    with started(head) as process, ending(process):
        wait_for(lambda: answers(address), process)
        other = environment | {"RAY_AUTH_TOKEN": "another-token-of-32-characters-xx"}
        assert call(*submit, *job, env=other).returncode != 0
        wait_for(relative_is_refused, process)  # without an agent, jobs are refused before they run
        assert not output.exists()
        call(*submit, "--no-wait", "--submission-id", "first", *job).check_returncode()
        wait_for(lambda: len(parts_of(output)) >= 2, process)
        call(*ray_command("job", "stop", "first")).check_returncode()
        assert len(parts_of(output)) < 104, "the job was to stop in mid-run"
        second = call(*submit, *job)
        assert second.returncode == 0, second.stdout + second.stderr
        assert "done: 208 images: 192 labelled, 16 failed, 0 to do" in second.stdout
    assert stored(output) == rows_of_copies(rows, crop_rows)


def answers(address):
    """Whether a server answers there; Ray's asks for a token."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code == 401
    except OSError:
        return False
    return True
