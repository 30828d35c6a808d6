"""A Python that has imported everything once and forks for each program that is to run.

Where processes are killed by the hundred, most of the time goes into importing torch and Ray again.
``WarmPython`` starts one process that has both in memory and a program that stands for ``python``:
it asks that process to fork a child with its own arguments, environment, folder and streams.  The
child is a process like any other: it has its own id, can be killed alone, and shares nothing that
it changes.  Who kills the asking program kills the child, and the other way round.
"""

import array
import contextlib
import ctypes
import json
import os
import runpy
import selectors
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import ray.actor
from ray._raylet import ActorClassID, Config

PRELOADED = (  # what drivers and workers import, those of trainings too
    "pyarrow.dataset",
    "ray.data._internal.execution.streaming_executor",
    "ray.train",
    "saff.cli",
    "saff.cluster",
    "saff.cluster.labels",
    "saff.cluster.pipeline",
    "saff.cluster.serving",
    "s3fs",
    "aiobotocore.session",
    "torch._dynamo",
)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # none beside the one that forks
# What Ray reads when it is imported: a worker that any job may be the first to use.  It watches for
# the end of a process, which is that of its raylet otherwise; the asking program sees to it here.
FOR_RAY = {"RAY_JOB_ID": "f" * 8}
SETUP = "/setup_worker.py"  # starts the program that it is given, without these arguments
OF_SETUP = ("--serialized-runtime-env-context", "--language")
PROGRAM = """#!{python} -SIE
import array, ctypes, json, os, signal, socket, sys
arguments = sys.argv[1:]
if not any(word.endswith("/default_worker.py") for word in arguments):
    os.execv({python!r}, [{python!r}, *arguments])  # Ray's agents look for their parent
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # die with whoever started this
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = {{"argv": arguments, "env": dict(os.environ), "cwd": os.getcwd()}}
descriptors = array.array("i", [0, 1, 2])
line = json.dumps(request).encode() + b"\\n"
sent = server.sendmsg([line], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
server.sendall(line[sent:])
answer = b""
while data := server.recv(100):
    answer += data
status = int(answer.split()[-1]) if len(answer.split()) == 2 else 1
if os.WIFSIGNALED(status):
    os.kill(os.getpid(), os.WTERMSIG(status))
sys.exit(os.waitstatus_to_exitcode(status))
"""


class WarmPython:
    """Forks programs while its ``with`` block runs.

    Attributes
    ----------
    python : str
        Path of a program that stands for ``sys.executable`` for Ray's workers.
    """

    def __enter__(self) -> "WarmPython":
        """Start the process that forks; it is ready when this returns."""
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self._address = f"{self._folder.name}/socket"
        self.python = f"{self._folder.name}/python"
        program = PROGRAM.format(python=sys.executable, address=self._address)
        Path(self.python).write_text(program)
        os.chmod(self.python, stat.S_IRWXU)
        environment = os.environ | ONE_THREAD | FOR_RAY | {"RAY_RAYLET_PID": str(os.getpid())}
        command = [sys.executable, __file__, self._address]
        self._process = subprocess.Popen(command, env=environment)
        while not os.path.exists(f"{self._address}.ready"):
            if self._process.poll() is not None:
                raise RuntimeError("the process that forks did not start")
            time.sleep(0.05)
        return self

    def __exit__(self, *error: object) -> None:
        """End it and all its children."""
        self._process.terminate()
        self._process.wait(20)
        self._folder.cleanup()

    def start(self, argv: list[str], log: Path) -> "WarmProcess":
        """Fork a script with its arguments, in a session of its own; its output goes to a file."""
        request = {"argv": argv, "env": dict(os.environ), "cwd": os.getcwd(), "session": True}
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._address)
        with open(os.devnull) as nothing, open(log, "wb") as stream:
            descriptors = array.array("i", [nothing.fileno(), stream.fileno(), stream.fileno()])
            line = json.dumps(request).encode() + b"\n"
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
            sent = server.sendmsg([line], ancillary)
            server.sendall(line[sent:])
        return WarmProcess(server)


class WarmProcess:
    """A forked program, to be used as a ``subprocess.Popen``."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._answer = b""
        while b" " not in self._answer:
            self._answer += server.recv(100)
        self.pid = int(self._answer.split()[0])
        self.returncode: int | None = None
        server.setblocking(False)

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            with contextlib.suppress(BlockingIOError):
                while data := self._server.recv(100):
                    self._answer += data
                self._server.close()
                self.returncode = os.waitstatus_to_exitcode(int(self._answer.split()[1]))
        return self.returncode

    def kill(self) -> None:
        """Kill it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


# The process that forks


def serve(address: str) -> None:
    """Fork a child for each connection, until this process is told to end."""
    preload()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(100)
    wakeup, notify = socket.socketpair()
    for end in (wakeup, notify):
        end.setblocking(False)
    signal.set_wakeup_fd(notify.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
    children: dict[int, socket.socket] = {}
    Path(f"{address}.ready").touch()
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(wakeup, selectors.EVENT_READ)
        try:
            while True:
                for key, _ in selector.select():
                    if key.fileobj is listener:
                        client = listener.accept()[0]
                        pid = fork(client, selector, f"{Path(address).parent}/python")
                        with contextlib.suppress(OSError):  # killed since: it reads as closed
                            client.sendall(f"{pid} ".encode())
                        children[pid] = client
                        selector.register(client, selectors.EVENT_READ, pid)
                    elif key.fileobj is wakeup:
                        with contextlib.suppress(BlockingIOError):
                            while wakeup.recv(1000):
                                pass
                        reap(children, selector)
                    else:  # whoever asked for this child is gone
                        selector.unregister(key.fileobj)
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(key.data, signal.SIGKILL)
        finally:
            signal.set_wakeup_fd(-1)  # it is closed before the last child has ended
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def preload() -> None:
    """Import what the programs need, and check that a child lacks no thread and draws its own ids.

    Ray seeds its generator of ids when it is first used, and children of a process that has used it
    draw the same ids: two workers then make the same object in one store, and one of them dies.
    """
    from label_runs import SMALL
    from saff.labeling import load_models

    with mock.patch.object(ray.actor, "ActorClassID", IdsOfPython):
        for name in PRELOADED:
            __import__(name)
    load_models(SMALL)
    if id_of_child() == id_of_child():
        raise RuntimeError("Ray's generator of ids was used; children would draw the same ones")
    tasks = [Path(f"/proc/self/task/{task}/comm") for task in os.listdir("/proc/self/task")]
    threads = [path.read_text().strip() for path in tasks]
    others = [name for name in threads[1:] if not name.startswith("jemalloc")]  # it survives a fork
    if others:
        raise RuntimeError(f"threads that a child would lack: {others}")


class IdsOfPython:
    """Draws ids of actor classes, which modules define when they are imported."""

    @staticmethod
    def from_random() -> ActorClassID:
        return ActorClassID(os.urandom(ActorClassID.size()))


def id_of_child() -> bytes:
    """Random id that a forked child draws."""
    reader, writer = os.pipe()
    if not os.fork():
        os.write(writer, ray.ObjectRef.from_random().binary())
        os._exit(0)
    os.wait()
    os.close(writer)
    with open(reader, "rb") as stream:
        return stream.read()


def fork(client: socket.socket, selector: selectors.BaseSelector, python: str) -> int:
    """Fork a child that runs what a client asks for; gives its process id."""
    line, descriptors = receive(client)
    pid = os.fork()
    if pid:
        for descriptor in descriptors:
            os.close(descriptor)
        return pid
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for key in list(selector.get_map().values()):
            os.close(key.fd)  # their objects are never used again
        selector.close()
        client.close()
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        run(json.loads(line), python)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        leave(code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        leave(1)
    leave(0)
    raise AssertionError


def receive(client: socket.socket) -> tuple[bytes, list[int]]:
    """Read a request: a line, and the three streams that come with it."""
    size = array.array("i").itemsize
    line, ancillary, *_ = client.recvmsg(65536, socket.CMSG_SPACE(3 * size))
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data[: len(data) - len(data) % size])
    while not line.endswith(b"\n"):
        line += client.recv(65536)
    return line, list(descriptors)


def run(request: dict[str, Any], python: str) -> None:
    """Become the program that was asked for."""
    os.setsid() if request.get("session") else os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    Config.initialize("")  # Ray reads its environment when it is imported
    words = [word for word in request["argv"] if not word.startswith(OF_SETUP)]
    (script, *_) = (n for n, word in enumerate(words) if word.endswith(".py") and SETUP not in word)
    sys.argv = words[script:]
    sys.executable = python  # Ray starts its workers with it
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


def leave(code: int) -> None:
    """End as Python does, threads and exit handlers included."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def reap(children: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    """Tell the clients of children that have ended how they did."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        client = children.pop(pid)
        with contextlib.suppress(KeyError):
            selector.unregister(client)
        with contextlib.suppress(OSError):
            client.sendall(str(status).encode())
        client.close()


if __name__ == "__main__":
    serve(sys.argv[1])
