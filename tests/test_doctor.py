"""saff doctor: every comparison of facts, every fault that can be made real, a real cluster."""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray
import torch
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.autoscaler._private.monitor import BASE_READONLY_CONFIG
from ray.cluster_utils import Cluster

import saff
from saff import config
from saff.cluster import ray_internals
from saff.doctor import (
    cluster as of_cluster,
    driver as on_driver,
    findings,
    nodes as on_nodes,
    running,
)
from saff.doctor.cluster import ScalingLimit
from saff.doctor.driver import Times
from saff.doctor.findings import Answer, Finding, Node
from saff.doctor.nodes import Gpus, Store, Threads, Versions
from saff.errors import SettingsError
from saff.shards import PREDICTIONS, read_rows, write_rows
from saff.storage import Folder

GIB = 2**30
NODE = Node("0123456789", "192.0.2.7", cpus=4.0, gpus=0.0, store=GIB)
HERE = Versions("3.11.7", "2.60.0", "0.1.0")


# Lines


def test_a_finding_is_one_line_with_its_remedy():
    assert str(Finding("space", True, "3.0 GiB free")) == "ok    space: 3.0 GiB free"
    wrong = Finding("space", False, "none\n  left", "free some")
    assert str(wrong) == "WRONG space: none left; free some"


def test_no_line_holds_a_secret(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abc/def+ghi")
    line = str(Finding("storage", False, "s3://user:pass@word@host/x refuses abc/def+ghi", "a@b"))
    assert line == "WRONG storage: s3://***@host/x refuses ***; a@b"


def test_nodes_at_fault_are_reported_one_by_one_and_the_others_together():
    answers = [Answer(NODE, 1), Answer(NODE, 5), Answer(NODE, 2), Answer(NODE, error="it died")]
    found = running.report_nodes(
        "CPUs", answers, on_nodes.find_cpu_fault, lambda fine: f"{[a.value for a in fine]}"
    )
    assert [str(finding) for finding in found] == [
        "WRONG CPUs: node 192.0.2.7 (012345): 4 CPU slots on 1 core; ray start with --num-cpus=1",
        "WRONG CPUs: node 192.0.2.7 (012345): 4 CPU slots on 2 cores; ray start with --num-cpus=2",
        "WRONG CPUs: node 192.0.2.7 (012345): it died",
        "ok    CPUs: [5]",
    ]


def test_a_check_that_raises_is_a_finding_after_what_it_had_found():
    def check():
        yield Finding("a", True, "well")
        raise KeyError("gone")

    found = running.run_check_with_timeout("a", check)
    assert [str(finding) for finding in found] == ["ok    a: well", "WRONG a: KeyError: 'gone'"]


def test_a_check_that_ends_its_thread_is_no_silence():
    (finding,) = running.run_check_with_timeout("a", sys.exit)
    assert (finding.ok, finding.message) == (False, "SystemExit: ")


def test_a_check_that_hangs_is_a_finding():
    freed = threading.Event()

    def check():
        freed.wait(30)
        yield Finding("a", True, "late")

    begin = time.monotonic()
    (finding,) = running.run_check_with_timeout("a", check, seconds=0.1)
    freed.set()
    assert (finding.ok, finding.message) == (False, "no answer within 0.1 s")
    assert time.monotonic() - begin < 10


def test_a_long_error_is_cut():
    assert len(findings.describe_error(OSError("x" * 10_000))) < 600


# Facts and faults


@pytest.mark.parametrize(
    "other",
    [("3.11.8", "2.60.0", "0.1.0"), ("3.11.7", "2.59.0", "0.1.0"), ("3.11.7", "2.60.0", "0.2.0")],
)
def test_versions_are_the_same_everywhere(other):
    assert on_nodes.find_version_fault(HERE, NODE, HERE) is None
    fault = on_nodes.find_version_fault(HERE, NODE, Versions(*other))
    assert fault.message == (
        f"Python {other[0]}, Ray {other[1]}, saff {other[2]}, "
        "but Python 3.11.7, Ray 2.60.0, saff 0.1.0 on the driver"
    )


def test_what_other_machines_reach_needs_a_token():
    assert on_nodes.find_authentication_fault(NODE, True) is None
    assert "RAY_AUTH_MODE=token" in on_nodes.find_authentication_fault(NODE, False).remedy
    for address in ("127.0.0.1", "localhost", "::1"):
        alone = dataclasses.replace(NODE, address=address)
        assert on_nodes.find_authentication_fault(alone, False) is None


def test_a_clock_is_off_only_beyond_the_time_of_the_answer():
    for seen in (100.0, 107.0, 130.0, 100.0 - on_nodes.LARGEST_SKEW, 130.0 + on_nodes.LARGEST_SKEW):
        assert on_nodes.find_clock_fault(100.0, 130.0, NODE, seen) is None
    assert "its clock is 100 s off" in on_nodes.find_clock_fault(100.0, 130.0, NODE, 230.0).message
    assert "its clock is 90 s off" in on_nodes.find_clock_fault(100.0, 130.0, NODE, 10.0).message


def test_no_more_slots_than_cores():
    assert on_nodes.find_cpu_fault(NODE, 4) is None
    assert on_nodes.find_cpu_fault(NODE, 3).remedy == "ray start with --num-cpus=3"


def test_a_cluster_without_slots_cannot_work():
    idle = dataclasses.replace(NODE, cpus=0.0)
    for growth in (ScalingLimit(), ScalingLimit(cpus=0, gpus=4)):
        (finding,) = on_nodes.check_cpus([idle], growth)
        assert (finding.ok, finding.message) == (False, "no slots, so no task can run")
        assert "--num-cpus above 0" in finding.remedy
    (finding,) = on_nodes.check_cpus([idle], ScalingLimit(cpus=16))
    assert finding.ok
    assert finding.message.startswith("none now; nodes start for work")


def totals(settings):
    return tuple(of_cluster.largest_total(settings, kind) for kind in ("CPU", "GPU"))


def test_a_cluster_grows_to_what_its_groups_may_have():
    ours = yaml.safe_load(Path(__file__).parents[1].joinpath("cluster.yaml").read_text())
    assert (of_cluster.largest_total(ours, "CPU"), of_cluster.largest_total(ours, "GPU")) == (
        160,
        4,
    )
    few = ours | {"max_workers": 3}  # nodes in all
    assert (of_cluster.largest_total(few, "CPU"), of_cluster.largest_total(few, "GPU")) == (48, 3)
    mixed = {
        "max_workers": 5,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 2}},
            "small": {"resources": {"CPU": 4}, "max_workers": 9},
            "large": {"resources": {"CPU": 64, "GPU": 8}, "max_workers": 2},
            "any": {},
        },
    }
    assert totals(mixed) == (2 + 2 * 64 + 3 * 4, 16)
    assert not ScalingLimit()


def test_a_pool_has_place_now_or_once_the_cluster_has_grown():
    def assessed(size, available, limit, *, on_gpu=True):
        return str(of_cluster.assess_workers(size, available, limit, on_gpu=on_gpu))

    assert assessed(2, 2, ScalingLimit()) == "ok    workers: 2, one per GPU; 2 GPUs now"
    assert assessed(3, 2, ScalingLimit()) == (
        "WRONG workers: 3, one per GPU; 2 GPUs now, so some would never start; "
        "name --gpus 2 at most, or add nodes"
    )
    assert assessed(1, 0, ScalingLimit()).endswith("; add nodes: none has a GPU")
    assert assessed(4, 0, ScalingLimit(cpus=1, gpus=4)) == (
        "ok    workers: 4, one per GPU; 0 GPUs now, nodes start for work, 4 at most"
    )
    assert assessed(5, 0, ScalingLimit(cpus=9, gpus=4)).endswith(
        "; name --gpus 4 at most, or raise max_workers of the cluster"
    )
    assert assessed(9, 8, ScalingLimit(cpus=9), on_gpu=False).startswith(
        "ok    workers: 9, one per CPU; 8 "
    )
    assert assessed(9, 8, ScalingLimit(cpus=8), on_gpu=False).endswith(
        "; name --workers 8 at most, or raise max_workers of the cluster"
    )
    assert assessed(99, 0, ScalingLimit(math.inf, math.inf)) == (
        "ok    workers: 99, one per GPU; 0 GPUs now, nodes start for work"
    )


def test_only_what_is_lacking_and_may_come_is_started():
    def planned(nodes, gpus, limit):
        wanted, finding = of_cluster.plan_start(nodes, gpus, limit)
        assert finding.ok
        return wanted, finding.message

    idle, gpu = dataclasses.replace(NODE, cpus=0.0), dataclasses.replace(NODE, gpus=1.0)
    assert planned([idle], 2, ScalingLimit(math.inf, math.inf)) == (
        ["CPU", "GPU", "GPU"],
        "asks for 1 CPU and 2 GPUs and waits 15 min at most",
    )
    assert planned([idle], 2, ScalingLimit(cpus=8, gpus=1))[0] == ["CPU", "GPU"]
    assert planned([gpu], 2, ScalingLimit(cpus=8, gpus=4))[0] == ["GPU", "GPU"]
    assert planned([gpu], 1, ScalingLimit(cpus=8, gpus=4)) == (
        [],
        "nothing to start, such nodes are up",
    )
    assert planned([idle], 1, ScalingLimit()) == (
        [],
        "nothing to start, this cluster starts no nodes",
    )


def test_nodes_that_do_not_start_are_reported():
    assert of_cluster.assess_start(["CPU"], [], 61.4).message == "1 CPU after 61 s"
    finding = of_cluster.assess_start(["CPU", "GPU", "GPU"], ["GPU", "GPU"], 900.2)
    assert (finding.ok, finding.message) == (False, "no node for 2 GPUs within 900 s")
    assert "ray status" in finding.remedy


def test_a_stage_finds_the_cluster_in_the_environment(monkeypatch):
    for before in (None, "192.0.2.1:6379"):
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        if before:
            monkeypatch.setenv("RAY_ADDRESS", before)
        for address in (None, "192.0.2.2:6379"):
            with of_cluster.ray_address(address):
                assert os.environ.get("RAY_ADDRESS") == (address or before)
            assert os.environ.get("RAY_ADDRESS") == before


def test_a_head_with_slots_is_mentioned_only_beside_other_nodes():
    head = dataclasses.replace(NODE, head=True)
    resting = dataclasses.replace(head, cpus=0.0)
    assert on_nodes.summarise_cpus([Answer(head), Answer(NODE)]).startswith(
        "8 slots on 2 nodes, the head"
    )
    assert on_nodes.summarise_cpus([Answer(resting), Answer(NODE)]) == "4 slots on 1 node"
    assert on_nodes.summarise_cpus([Answer(head)]) == "4 slots on 1 node"


def test_gpus_are_declared_and_usable():
    two = dataclasses.replace(NODE, gpus=2.0)
    assert on_nodes.find_gpu_fault(two, Gpus(2, 2, "2.9")) is None
    assert on_nodes.find_gpu_fault(NODE, Gpus(0, 0, "2.9")) is None
    message = on_nodes.find_gpu_fault(two, Gpus(0, 2, "2.9+cpu")).message
    assert message == "declares 2 GPUs, torch 2.9+cpu can use 0"
    assert on_nodes.find_gpu_fault(two, Gpus(1, 2, "2.9")) is not None
    for seen in (Gpus(0, 3, "2.9+cpu"), Gpus(3, 0, "2.9")):
        assert on_nodes.find_gpu_fault(NODE, seen).remedy == "ray start with --num-gpus=3"


def test_tasks_label_on_one_thread():
    assert on_nodes.find_thread_fault(NODE, Threads(1, 1, 1)) is None
    assert on_nodes.find_thread_fault(NODE, Threads(1, 8, 4)).message == (
        "threads in a task: OpenCV 8, BLAS 4"
    )


def test_threads_are_looked_at_where_images_are_labelled():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert on_nodes.inspect_threads() == (1, 1, 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_objects_lie_in_memory(tmp_path):
    assert on_nodes.find_store_fault(NODE, Store("/dev/shm", "/tmp", GIB, GIB)) is None
    if Path("/dev/shm").is_dir():
        message = on_nodes.find_store_fault(NODE, Store("/tmp", "/tmp", GIB, GIB)).message
        assert message == "its object store of 1.0 GiB is not in memory but at /tmp"


def test_a_disk_holds_what_the_memory_holds():
    assert on_nodes.find_spill_fault(NODE, Store("/dev/shm", "/x", 6 * GIB, 100 * GIB)) is None
    fault = on_nodes.find_spill_fault(NODE, Store("/dev/shm", "/x", 6 * GIB - 1, 100 * GIB))
    assert fault.message == "1024.0 MiB for spilling at /x, object store 1.0 GiB"
    assert on_nodes.find_spill_fault(
        NODE, Store("/dev/shm", "/x", 0, 100 * GIB)
    ).message.startswith("0.0 ")


def test_only_a_process_of_ray_knows_where_objects_lie():
    with pytest.raises(SettingsError, match="no raylet of Ray has started this process"):
        on_nodes.inspect_store()


def test_space_for_a_run():
    assert (
        on_driver.assess_space("/x", GIB).message == "1.0 GiB free at /x, for about 11,000 images"
    )
    assert on_driver.assess_space("/x", GIB).ok
    assert not on_driver.assess_space("/x", GIB - 1).ok


# What a job would send


def test_the_upload_is_as_large_as_rays_own_package(tmp_path):
    folder = tmp_path / "clone"
    for name, content in {
        "a.py": b"x" * 1000,
        "données/é.txt": b"y" * 300,
        "left_out/big.bin": b"z" * 5000,
        ".hidden": b"h",
        "nested/keep.log": b"k" * 10,
        "nested/gone.tmp": b"g" * 10,
        ".gitignore": b"left_out/\n",
        "nested/.rayignore": b"*.tmp\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "empty").mkdir()
    package = tmp_path / "package.zip"
    create_package(str(folder), package, include_gitignore=True)
    assert on_driver.upload_size(folder) == package.stat().st_size


def test_too_large_an_upload_is_reported_with_the_limit():
    assert on_driver.assess_upload(Path("/x"), 99, limit=100).ok
    finding = on_driver.assess_upload(Path("/x"), 300 * 2**20)
    assert not finding.ok
    assert finding.message.endswith("would send 300.0 MiB from /x, Ray takes 100.0 MiB")


# Storage


def only(check, *arguments):
    (finding,) = running.run_check_with_timeout("x", lambda: check(*arguments))
    return finding


def test_an_output_is_tried_and_left_as_it_was(tmp_path):
    finding = only(on_driver.check_storage, str(tmp_path))
    assert finding.ok, finding
    assert finding.message.endswith(f" ms at {tmp_path}")
    assert list(tmp_path.iterdir()) == []
    new = only(on_driver.check_storage, str(tmp_path / "not" / "there"))
    assert new.ok
    assert new.message.endswith(f" ms at {tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    finding = only(on_driver.check_storage, str(tmp_path / "file" / "run"))
    assert finding.message == f"{tmp_path}/file is not a folder; choose another output"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that root cannot write to")
def test_an_output_that_cannot_be_written_is_a_finding():
    finding = only(on_driver.check_storage, "/proc/run")
    assert not finding.ok
    assert finding.message.startswith("no access to /proc/run: ")


def test_bytes_that_come_back_changed_are_refused(tmp_path):
    class Forgetful(Folder):
        def read(self, name):
            return super().read(name)[1:]

    with pytest.raises(SettingsError, match="gives back other bytes than were written"):
        on_driver.time_storage(Forgetful.at(str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_a_node_must_see_what_the_driver_wrote(tmp_path):
    place = Folder.at(str(tmp_path))
    assert on_nodes.try_storage(place, "mark") is None
    assert on_nodes.try_storage(place / "nowhere", "mark") is None
    place.write("mark", b"another")
    assert on_nodes.try_storage(place, "mark") is None
    place.write("mark", b"mark")
    times = on_nodes.try_storage(place, "mark")
    assert on_nodes.find_storage_fault("/x", NODE, times) is None
    assert min(times) > 0
    assert "every node shares" in on_nodes.find_storage_fault("/x", NODE, None).remedy
    assert str(Times(0.001, 0.25, 0.0, 1.0)) == (
        "list 1.0 ms, write 250.0 ms, read 0.0 ms, remove 1000.0 ms"
    )


@pytest.mark.s3
def test_a_bucket_is_tried_and_wrong_credentials_are_reported(bucket, s3_user, s3_other):
    finding = only(on_driver.check_storage, f"{bucket}/run")
    assert finding.ok, finding
    assert s3_other.find(bucket) == []
    s3_user(AWS_SECRET_ACCESS_KEY="not-the-secret-of-the-tests")
    finding = only(on_driver.check_storage, f"{bucket}/run")
    assert not finding.ok
    assert "check the credentials" in finding.message
    assert "not-the-secret" not in str(finding)
    assert list(on_driver.check_space(f"{bucket}/run")) == []  # an object store does not tell


# Runs


def test_a_run_is_reported_with_its_version_and_counts(finished, run_copy, tmp_path):
    finding = only(on_driver.check_run, finished.uri)
    counts = "pseudo_labels: 7 images: 4 labelled, 3 failed, 0 to do in 0 parts"
    assert (finding.ok, finding.message) == (True, f"begun with saff {saff.__version__}; {counts}")
    assert only(on_driver.check_run, str(tmp_path / "new")).message.endswith("holds no run yet")
    file = Path(run_copy.path) / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"saff": "0.2.9"}))
    finding = only(on_driver.check_run, run_copy.uri)
    assert not finding.ok
    assert finding.remedy.endswith("continue with saff 0.2.9, or choose another output")
    file.write_text("{")
    assert "run.json is damaged" in only(on_driver.check_run, run_copy.uri).message


def test_every_stage_of_an_output_is_counted(finished, run_copy, tmp_path):
    labels, predictions = run_copy / "pseudo_labels", run_copy / "predictions"
    first, *others = labels.names(".parquet")
    predicted = [dict.fromkeys(PREDICTIONS.names) | row for row in read_rows(labels, first)]
    columns = [{name: row[name] for name in PREDICTIONS.names} for row in predicted]
    write_rows(predictions, first, columns, PREDICTIONS)
    left = f"{7 - len(columns)} to do in {len(others)} parts"
    labelled, predicted = only(on_driver.check_run, run_copy.uri).message.split("; ")[1:]
    assert labelled == "pseudo_labels: 7 images: 4 labelled, 3 failed, 0 to do in 0 parts"
    done = sum(row["error"] is None for row in columns)
    counts = f"{done} predicted, {len(columns) - done} failed, {left}"
    assert predicted == f"predictions: 7 images: {counts}"
    shutil.rmtree(labels.path)  # an output of new images holds predictions alone
    run_copy.write("run.json", json.dumps({"saff": saff.__version__}).encode())
    assert only(on_driver.check_run, run_copy.uri).message.split("; ")[1:] == [predicted]


def test_private_names_of_ray_stand_in_one_file():
    own = Path(ray_internals.__file__)
    sources = [p for p in Path(saff.__file__).parent.rglob("*.py") if p != own]
    private = re.compile(r"ray[\w.]*\._[a-z]|_raylet|__internal_|--plasma|--gcs-address")
    assert private.search(own.read_text())
    assert [p for p in sources if private.search(p.read_text())] == []


# Models


def test_models_are_loaded_and_damaged_weights_are_refused(small, tmp_path):
    assert on_nodes.try_models(small, None) > 0
    (tmp_path / "weights.pt").write_bytes(b"none")
    broken = dataclasses.replace(small, encoder_weights=str(tmp_path / "weights.pt"))
    with pytest.raises(SettingsError, match="is not a state dict"):
        on_nodes.try_models(broken, None)
    with pytest.raises(SettingsError, match="there is no trained network"):
        on_nodes.try_models(small, str(tmp_path))


def test_the_network_of_a_training_is_made_and_weights_that_cannot_be_read_are_refused(
    small, monkeypatch, tmp_path
):
    assert on_nodes.try_network(small.training) > 0
    named = dataclasses.replace(
        small.training, network="vgg16", network_weights=str(tmp_path / "weights.pt")
    )
    with pytest.raises(SettingsError, match="cannot read the weights"):
        on_nodes.try_network(named)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for proxy in ("http_proxy", "https_proxy"):  # nothing listens there
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(SettingsError, match=r"put the file there, or name one with training\.netw"):
        on_nodes.try_network(config.paper().training)


# Addresses


@pytest.fixture
def port():
    """A port where something listens that is not Ray."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("ray://127.0.0.1:10001", "expected HOST:PORT of the head node"),
        ("http://127.0.0.1:8265", "expected HOST:PORT of the head node"),
        ("127.0.0.1", "Invalid address format"),
        ("127.0.0.1:70000", "Invalid address port"),
    ],
)
def test_an_address_of_another_kind_is_refused(address, why):
    with pytest.raises(ValueError, match=why):
        of_cluster.check_address(address)


def test_something_that_is_not_ray_is_given_up(port):
    with pytest.raises(SettingsError, match=r"but not as Ray within 2 s"):
        of_cluster.check_address(f"127.0.0.1:{port}", seconds=2)


def test_the_command_says_what_is_wrong_and_exits_1(call, monkeypatch, tmp_path, port):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with socket.create_server(("0.0.0.0", 0)) as closed:
        free = closed.getsockname()[1]
    code, out, _ = call("doctor", tmp_path / "file", "--address", f"127.0.0.1:{free}")
    assert code == 1
    upload, storage, cluster = out.splitlines()
    assert upload.startswith("ok    upload: ray job submit --working-dir . would send ")
    assert storage == f"WRONG storage: {tmp_path}/file is not a folder; choose another output"
    assert cluster.startswith(f"WRONG cluster: nothing answers at 127.0.0.1:{free} (")


def test_the_address_may_be_in_the_environment(call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    code, out, _ = call("doctor")
    assert code == 1
    assert "WRONG cluster: the address is ray://127.0.0.1:10001" in out


# A cluster


def test_without_a_token_a_process_says_so():
    look = "from saff.cluster.ray_internals import uses_token as f; print(f())"
    shown = subprocess.run(
        [sys.executable, "-c", look],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
    )
    assert shown.stdout == "False\n"


@pytest.fixture(scope="module")
def cluster():
    """A head and another node, one CPU each, that ask for a token."""
    ray.shutdown()
    gpus = torch.cuda.device_count()
    settings = {"num_cpus": 1, "num_gpus": gpus, "object_store_memory": 78 * 2**20}
    head = {"include_dashboard": False, **settings}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(**settings)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
def test_a_cluster_of_two_nodes(call, cluster, small, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.json").write_text('{"encoder_side": 64, "superpixel_count": 60}')
    output = tmp_path / "run"
    words = (output, "--address", cluster.address, "--config", "small.json")

    code, out, _ = call("doctor", *words)
    lines = out.splitlines()
    assert all(line.startswith("ok    ") for line in lines), out
    assert code == 0
    checks = [line[6:].partition(":")[0] for line in lines]
    assert checks == [
        "upload",
        "storage",
        "space",
        "run",
        "cluster",
        "versions",
        "authentication",
        "clocks",
        "CPUs",
        "GPUs",
        "threads",
        "models",
        "storage of nodes",
        "object store",
        "spilling",
        "training network",
    ]
    assert lines[4] == f"ok    cluster: joined {cluster.address}: 2 nodes"
    assert lines[5].endswith(f"saff {saff.__version__} on the driver and 2 nodes")
    assert "2 slots on 2 nodes, the head among them" in lines[8]
    assert sorted(os.listdir(tmp_path)) == ["small.json"]

    nodes = of_cluster.alive_nodes()
    assert [node.head for node in nodes].count(True) == 1
    late = running.call_on_nodes(nodes, time.sleep, 60, seconds=1, timeout_remedy="wait")
    died = running.call_on_nodes(nodes, os._exit, 3)
    assert [answer.error for answer in late] == ["no answer within 1 s; wait"] * 2
    assert all("died unexpectedly" in answer.error for answer in died)
    (tmp_path / "weights.pt").write_bytes(b"none")
    broken = dataclasses.replace(small, encoder_weights=str(tmp_path / "weights.pt"))
    models = [str(finding) for finding in on_nodes.check_models(nodes, broken, None)]
    assert len(models) == 2
    assert all("weights.pt is not a state dict" in line for line in models)
    training = dataclasses.replace(small.training, network="vgg16", network_weights="/no/file")
    made = [str(finding) for finding in on_nodes.check_network(nodes, training)]
    assert len(made) == 2
    assert all("cannot read the weights /no/file" in line for line in made)

    assert of_cluster.find_scaling_limit(nodes) == ScalingLimit()
    assert of_cluster.inspect_autoscaler() == ScalingLimit()
    with monkeypatch.context() as pod:
        for name in ray_internals.KUBERAY_VARIABLES:
            assert of_cluster.inspect_autoscaler() == ScalingLimit()
            pod.setenv(name, "1")
        assert of_cluster.inspect_autoscaler() == ScalingLimit(math.inf, math.inf)
    (finding,) = of_cluster.check_start(["CPU"])
    assert finding.ok
    too_many = 2 * torch.cuda.device_count() + 1
    (finding,) = of_cluster.check_start(["GPU"] * too_many, seconds=1)
    assert not finding.ok
    assert finding.message.startswith("no node for ")
    (finding,) = of_cluster.check_workers(cluster.address, 2, 0, ScalingLimit())
    assert (finding.ok, finding.message) == (True, "2, one per CPU; 2 CPUs now")
    (finding,) = of_cluster.check_workers(cluster.address, None, 99, ScalingLimit())
    assert not finding.ok

    with monkeypatch.context() as shell:
        shell.setenv("RAY_AUTH_MODE", "disabled")
        with pytest.raises(SettingsError, match=r"refuses: .*InvalidAuthToken"):
            of_cluster.check_address(cluster.address)

    cores = ray_internals.usable_cores()
    cluster.add_node(num_cpus=cores + 1, num_gpus=torch.cuda.device_count() + 1)
    cluster.wait_for_nodes()
    code, out, _ = call("doctor", *words)
    wrong = [line for line in out.splitlines() if line.startswith("WRONG ")]
    assert code == 1
    assert [line.partition(": node ")[0] for line in wrong] == ["WRONG CPUs", "WRONG GPUs"]
    assert wrong[0].endswith(f"ray start with --num-cpus={cores}")
    assert f"ok    GPUs: {2 * torch.cuda.device_count()} GPUs on 2 nodes\n" in out
    ray.shutdown()


@pytest.fixture
def growing(monkeypatch, tmp_path):
    """A head without slots and Ray's autoscaler, which starts nodes here; gives the address."""
    ray.shutdown()
    with socket.create_server(("0.0.0.0", 0)) as free:
        port = free.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    store = {"object_store_memory": 78 * 2**20}
    group = {"node_config": {}, "min_workers": 0}
    settings = BASE_READONLY_CONFIG | {
        "max_workers": 2,
        "idle_timeout_minutes": 10,
        "provider": {
            "type": "external",  # its own name wants a file that the wheel lacks
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": {"resources": {"CPU": 1, **store}, "max_workers": 1, **group},
            "gpu": {"resources": {"CPU": 0, "GPU": 1, **store}, "max_workers": 1, **group},
        },
    }
    (tmp_path / "cluster.json").write_text(json.dumps(settings))
    with monkeypatch.context() as shell:  # as `ray up` starts a head
        shell.setenv("RAY_FAKE_CLUSTER", "1")
        shell.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")
        shell.setenv("RAY_enable_autoscaler_v2", "1")
        shell.setenv("RAY_CLOUD_INSTANCE_ID", FAKE_HEAD_NODE_ID)
        shell.setenv("RAY_NODE_TYPE_NAME", "ray.head.default")
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "gcs_server_port": port,
                "autoscaling_config": str(tmp_path / "cluster.json"),
                "env_vars": {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID},
                **store,
            },
        )
    yield address
    ray.shutdown()
    nodes = [p for p in psutil.process_iter(["cmdline"]) if address in str(p.info["cmdline"])]
    cluster.shutdown()
    for process in nodes:  # those that the autoscaler has started
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.ray
def test_a_cluster_that_grows(call, growing, monkeypatch, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "small.json").write_text('{"encoder_side": 64, "superpixel_count": 60}')
    words = ("--address", growing, "--config", "small.json")

    code, out, _ = call("doctor", *words)
    assert code == 0, out
    assert "ok    CPUs: none now; nodes start for work" in out
    assert "joined" in out.splitlines()[1]

    code, out, _ = call("doctor", *words, "--gpus", 2)
    assert code == 1, out
    (wrong,) = (line for line in out.splitlines() if line.startswith("WRONG "))
    assert wrong.startswith("WRONG workers: 2, one per GPU; 0 GPUs now, nodes start for work, 1 at")

    code, out, _ = call("doctor", *words, "--gpus", 1, "--start-nodes")
    lines = out.splitlines()
    assert "ok    workers: 1, one per GPU; 0 GPUs now, nodes start for work, 1 at most" in lines
    assert "ok    start: asks for 1 CPU and 1 GPU and waits 15 min at most" in lines
    assert any(line.startswith("ok    start: 1 CPU and 1 GPU after ") for line in lines), out
    assert any(line.endswith("on the driver and 3 nodes") for line in lines)
    assert "ok    CPUs: 1 slot on 1 node" in lines
    if not torch.cuda.device_count():
        assert any(line.startswith("WRONG GPUs: ") and "declares 1 GPU" in line for line in lines)
    ray.shutdown()


def test_the_configuration_is_read_first(call):
    code, out, error = call("doctor", "--config", "nonsense")
    assert (code, out) == (2, "")
    assert error.startswith("saff: no configuration 'nonsense'; known: ")
    assert "default" in config.NAMED
