"""Clusters and images that kill, memory that ends, nodes that do not come, storage that hangs."""

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from clusters import nodes
from label_runs import SMALL, run, stored
from saff.cluster.training import train_network
from saff.cluster.watchdog import StalledError
from saff.config import Training
from saff.shards import read_rows
from saff.storage import Folder

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TRAINING = Training(
    crop_size=64, max_side=96, batch_size=4, steps=4, checkpoint_interval=2, warmup_steps=1
)
GIB = 2**30


# Images and memory


def test_an_image_that_always_kills_its_worker_is_a_row(crops, crop_rows, one_node, tmp_path):
    settings = dataclasses.replace(SMALL, saliency="failing_back_ends:KillsAlways")
    done = run(crops, tmp_path, settings)
    assert (done.images, done.done, done.failed, done.left) == (26, 26, 3, 0)
    rows = stored(tmp_path)
    (killed,) = (i for i, row in rows.items() if row["error_kind"] == "process_killed")
    assert crop_rows[killed]["height"] == 127
    assert {i: row for i, row in rows.items() if i != killed} == {
        i: row for i, row in crop_rows.items() if i != killed
    }


@pytest.mark.faults
def test_a_worker_that_takes_all_memory_is_ended_and_the_image_done(
    crops, crop_rows, marks, tmp_path, monkeypatch
):
    memory = psutil.virtual_memory()
    if memory.available < 8 * GIB:
        pytest.skip("less than 8 GiB of memory are free")
    used = 1 - memory.available / memory.total
    # Ray's monitor ends a worker where 3 GiB more are used than now
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{used + 3 * GIB / memory.total:.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    settings = dataclasses.replace(SMALL, saliency="failing_back_ends:TakesMemory")
    with nodes(0, 2):
        run(crops, tmp_path / "out", settings)
    assert (marks / "hunger").exists()
    assert not (marks / "hunger.survived").exists()
    assert stored(tmp_path / "out") == crop_rows


# Stalls


def test_a_job_on_a_cluster_without_cpus_says_what_it_waits_for(crops, settings_file, tmp_path):
    """As a process of its own: Ray's threads still wait for nodes when the job gives up."""
    command = [sys.executable, str(Path(__file__).parent.parent / "jobs" / "pseudo_labels.py")]
    command += ["--images", str(crops), "--output", str(tmp_path / "out")]
    command += ["--config", str(settings_file), "--patience", "0.1"]
    with nodes(0) as cluster:
        done = subprocess.run(
            command,
            env=os.environ | {"RAY_ADDRESS": cluster.address},
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("saff: nothing was done for 6 s: it waits for nodes, as the 1 there")


def test_a_training_whose_storage_hangs_is_ended_and_goes_on(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "run")
    output = Folder.at(str(tmp_path / "run"))
    held = {}
    for name in (output / "manifest").names(""):
        for row in read_rows(output / "manifest", name):
            path = Path(row["uri"])
            held[path] = path.read_bytes()
    with nodes(0, 1):  # the training's worker holds the only CPU: it needs no other
        try:
            for path in held:  # whoever reads them waits for ever
                path.unlink()
                os.mkfifo(path)
            start = time.monotonic()
            with pytest.raises(StalledError, match=r"^nothing was done for 12 s: 0 of 1 CPUs"):
                train_network(output, TRAINING, patience=12)
            assert time.monotonic() - start < 120
        finally:
            for path, content in held.items():
                path.unlink()
                path.write_bytes(content)
        train_network(output, TRAINING)
    assert (output / "network").exists("weights.pt")
