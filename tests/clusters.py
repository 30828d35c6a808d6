"""Ray clusters of several processes for tests, and processes that end with all they started."""

import contextlib
import os
import signal
import socket
import subprocess
import time

import psutil
import ray
from ray.cluster_utils import Cluster


def join(address):
    """Be a driver of the cluster at this address and of no other."""
    if ray.is_initialized() and ray.get_runtime_context().gcs_address != address:
        ray.shutdown()
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")


@contextlib.contextmanager
def nodes(*cpus, **settings):
    """A cluster of its own whose head and nodes have so many CPUs; this process joins it."""
    head, *others = cpus
    ray.shutdown()
    with cluster_of(head, **settings) as cluster:
        for count in others:
            cluster.add_node(num_cpus=count, **settings)
        join(cluster.address)
        yield cluster


@contextlib.contextmanager
def cluster_of(cpus, **settings):
    """A cluster whose head has so many CPUs and no dashboard."""
    head = {"num_cpus": cpus, "include_dashboard": False, **settings}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def workers_of(cluster):
    """Processes in which a cluster's nodes run tasks and actors, by their number."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes]
    found = []
    for raylet in raylets:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += psutil.Process(raylet).children()
    return sorted((p for p in found if is_worker(p)), key=lambda process: process.pid)


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


def wait_for(condition, process=None, seconds=150):
    """Wait until a condition holds; fails at once if a process that it needs has ended."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "the process ended early"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
