"""A job that makes no progress ends, and says what it waits for."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from typing import Any, TypeVar

import ray

from saff.errors import StalledError
from saff.log import ERROR, line_of
from saff.progress import duration

Item = TypeVar("Item")
END = object()
KILLER = """
import os, select, signal, sys

seconds, parent, line = sys.argv[1:]
if not select.select([sys.stdin], [], [], float(seconds))[0] and os.getppid() == int(parent):
    print(line, file=sys.stderr, flush=True)
    os.kill(int(parent), signal.SIGKILL)
"""


@contextmanager
def ending_after(seconds: float) -> Iterator[None]:
    """Kill this process, with a line, if the block takes longer: for what holds Python itself.

    ``ray.init`` (2.60) waits without limit, and lets no other thread run, if one of its first
    workers is killed while it connects.  So the watch is a process of its own.
    """
    line = (
        f"saff: Ray did not start within {duration(seconds)}, and was given up; the same command "
        "continues"
    )
    line = line_of(line, "error", ERROR)
    command = [sys.executable, "-ISc", KILLER, f"{seconds}", f"{os.getpid()}", line]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        yield  # the end of its input, at the end of this block or of this process, ends it too


def watched(items: Iterable[Item], patience: float) -> Iterator[Item]:
    """Give items as they come from a cluster; raise if none comes for too long.

    Parameters
    ----------
    items : iterable
        Read in a thread of its own, so that waiting for them can end.
    patience : float
        Seconds between two of them, or before the first and the last.

    Raises
    ------
    StalledError
        If no item came for ``patience`` seconds.
    """
    found: Queue[Any] = Queue()
    ended = threading.Event()

    def pull() -> None:
        try:
            for item in items:
                if ended.is_set():
                    return  # nobody waits: what is left of the work ends with its iterator
                found.put((item, None))
        except BaseException as error:  # raised again where it is waited for
            found.put((END, error))
        else:
            found.put((END, None))

    threading.Thread(target=pull, daemon=True).start()
    try:
        while True:
            try:
                item, error = found.get(timeout=patience)
            except Empty:
                raise stalled(patience) from None
            if error is not None:
                raise error
            if item is END:
                return
            yield item
    finally:
        ended.set()


def stalled(patience: float) -> StalledError:
    """Say for how long nothing was done, what the cluster has, and where to look."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    nodes = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    return StalledError(
        f"nothing was done for {duration(patience)}: {waiting_for(there, free, nodes)}; the same "
        "command continues, --patience MINUTES waits longer"
    )


def waiting_for(there: dict[str, float], free: dict[str, float], nodes: int) -> str:
    """Say what a cluster that does nothing probably waits for.

    >>> waiting_for({}, {}, 1)
    'it waits for nodes, as the 1 there have no CPU for work; `ray status` says why none comes ...'
    """
    cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
    if not cpus:
        return (
            f"it waits for nodes, as the {nodes} there have no CPU for work; `ray status` says why "
            'none comes (a pod of less than one CPU counts as none: num-cpus: "1" among its '
            "rayStartParams)"
        )
    has = f"{free.get('CPU', 0.0):g} of {cpus:g} CPUs"
    if gpus:
        has += f" and {free.get('GPU', 0.0):g} of {gpus:g} GPUs"
    if free.get("CPU", 0.0) < 1:
        return (
            f"{has} on {nodes} nodes are free, so tasks run and do not end; `ray stack` on a node "
            "says where they are, and the storage may hang"
        )
    return (
        f"{has} on {nodes} nodes are free, yet no task of this job ends; `ray status` shows what "
        "is asked for and not there"
    )
