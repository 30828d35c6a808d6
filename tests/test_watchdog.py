"""A job that makes no progress ends and says what it waits for."""

import contextlib
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from saff.cluster import watchdog
from saff.cluster.watchdog import StalledError, waiting_for, watched


@pytest.fixture
def cluster(monkeypatch):
    """What a cluster would say of itself: one node of 4 CPUs, all busy."""
    monkeypatch.setattr(watchdog.ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(watchdog.ray, "available_resources", dict)
    monkeypatch.setattr(watchdog.ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])


def test_items_come_in_their_order():
    assert list(watched(iter(range(100)), 5)) == list(range(100))
    assert list(watched([], 5)) == []
    assert list(watched([None, 0], 5)) == [None, 0]


def test_an_error_is_raised_where_it_is_waited_for():
    def items():
        yield 1
        raise ConnectionError("lost")

    found = watched(items(), 5)
    assert next(found) == 1
    with pytest.raises(ConnectionError, match="lost"):
        next(found)


def test_nothing_for_too_long_is_told(cluster):
    release = threading.Event()

    def items():
        yield 1
        release.wait(30)

    found = watched(items(), 0.1)
    assert next(found) == 1
    start = time.monotonic()
    with pytest.raises(StalledError, match=r"nothing was done for 0 s: 0 of 4 CPUs on 1 nodes"):
        next(found)
    assert time.monotonic() - start < 10
    release.set()


def test_slow_progress_is_progress():
    def items():
        for number in range(5):
            time.sleep(0.15)
            yield number

    assert list(watched(items(), 0.6)) == list(range(5))  # 0.75 s in all


@pytest.mark.parametrize(
    ("there", "free", "said"),
    [
        ({}, {}, "it waits for nodes"),
        ({"CPU": 0.0, "memory": 1e9}, {}, "it waits for nodes"),
        ({"CPU": 8.0}, {}, r"0 of 8 CPUs on 3 nodes are free, so tasks run and do not end"),
        ({"CPU": 8.0}, {"CPU": 5.0}, r"5 of 8 CPUs on 3 nodes are free, yet no task"),
        ({"CPU": 8.0, "GPU": 2.0}, {"CPU": 5.0}, r"5 of 8 CPUs and 0 of 2 GPUs on 3 nodes"),
    ],
)
def test_what_it_waits_for(there, free, said):
    assert said in waiting_for(there, free, 3)


def test_what_holds_python_itself_is_ended():
    program = (
        "import re\n"
        "from saff.cluster.watchdog import ending_after\n"
        "with ending_after(30):\n"
        "    pass\n"
        "with ending_after(1):\n"
        "    re.match('(a*)*b', 'a' * 40)  # lets no other thread run, for years\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stderr.startswith("saff: Ray did not start within 1 s, and was given up; the same")


def test_a_watch_ends_with_whom_it_watches():
    program = (
        "import os, psutil, sys\n"
        "from saff.cluster.watchdog import ending_after\n"
        "with ending_after(30):\n"
        "    print(psutil.Process().children()[0].pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(timeout=5)
