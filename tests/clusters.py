"""Ray clusters of several processes for tests, and processes that end with all they started."""

import atexit
import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import time
from unittest import mock

import psutil
import ray
from ray.cluster_utils import Cluster

from warm_python import WarmPython


@functools.cache
def warm_python():
    """The Python from which the workers of this process's clusters are forked, until it ends."""
    warm = WarmPython().__enter__()
    atexit.register(warm.__exit__)
    return warm


class WarmCluster(Cluster):
    """A cluster whose workers are forked, as a worker of a test imports for longer than it works.

    Its nodes are processes like any other; a worker's parent is not its raylet.
    """

    def add_node(self, wait=True, **settings):
        with mock.patch.object(sys, "executable", warm_python().python):
            return super().add_node(wait, **settings)


def ray_command(*words):
    """Words of a shell that call Ray's command line; its workers are forked."""
    program = "import sys; from ray.scripts.scripts import main; "
    program += f"sys.executable = {warm_python().python!r}; main()"
    return [sys.executable, "-c", program, *words]


def join(address):
    """Be a driver of the cluster at this address and of no other."""
    if ray.is_initialized() and ray.get_runtime_context().gcs_address != address:
        ray.shutdown()
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")


@contextlib.contextmanager
def nodes(*cpus, kind=WarmCluster, **settings):
    """A cluster of its own whose head and nodes have so many CPUs; this process joins it."""
    head, *others = cpus
    ray.shutdown()
    with cluster_of(head, kind=kind, **settings) as cluster:
        for count in others:
            cluster.add_node(num_cpus=count, **settings)
        join(cluster.address)
        yield cluster


@contextlib.contextmanager
def cluster_of(cpus, kind=WarmCluster, **settings):
    """A cluster whose head has so many CPUs and no dashboard."""
    head = {"num_cpus": cpus, "include_dashboard": False, **settings}
    cluster = kind(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def is_worker(process):
    """Whether a process is Ray's for tasks or an actor, and not one that makes up a node."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        title = " ".join(process.cmdline())
        return title.startswith("ray::") and "Agent" not in title
    return False


@contextlib.contextmanager
def started(command, env=None, log=subprocess.DEVNULL):
    """A process in a group of its own, all of which is dead afterwards."""
    process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@contextlib.contextmanager
def ending(process):
    """Everything that a process has started is dead afterwards."""
    try:
        yield
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def wait_for(condition, process=None, seconds=150, log=None):
    """Wait until a condition holds; fails at once if a process that it needs has ended."""
    end = time.monotonic() + seconds
    while not condition():
        if process and process.poll() is not None:
            raise AssertionError(f"the process ended early: {log.read_text() if log else ''}")
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
