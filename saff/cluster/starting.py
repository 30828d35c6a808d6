"""Starting Ray on whatever machine this is, or finding that a cluster is not there, in one line.

A container may have less than one core, no home folder, or none that can be written; Ray takes the
first for no core at all and ends at the others.
"""

import errno
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from saff.cluster.ray_internals import CONNECT_CODE, split_address, usable_cores
from saff.errors import SettingsError
from saff.log import ERROR, line_of

CONNECT_TIMEOUT = 5.0  # seconds for a TCP connection
RAY_TIMEOUT = 14.0  # seconds for a process to import Ray and to have a first request answered
TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")  # where Ray looks before the home folder
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's own mark on a submitted driver
INTERRUPTED = 128 + signal.SIGINT  # exit code, as shells give it


def options_here() -> dict[str, Any]:
    """Prepare this machine for a Ray of its own; options of ``ray.init`` that it needs.

    Raises
    ------
    SettingsError
        If Ray has no folder to work in; names the variable to set.
    """
    check_folder(Path(os.environ.get("RAY_TMPDIR") or "/tmp"))
    if not has_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # of this Ray alone
    return {} if usable_cores() >= 1 else {"num_cpus": 1}  # a pod of 900m counts as none


def check_folder(folder: Path) -> None:
    """Refuse a folder in which Ray cannot put its session.

    Raises
    ------
    SettingsError
        If nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        raise SettingsError(
            f"Ray keeps its session in {folder}, where nothing can be written "
            f"({error.strerror}); set RAY_TMPDIR to a folder of a short name where it can"
        ) from error


def has_token() -> bool:
    """Whether Ray finds the token that its processes know each other by, or can keep a new one.

    It keeps one in the home folder, and ends if that cannot be written.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled" or any(
        os.environ.get(name) for name in TOKENS
    ):
        return True
    try:
        folder = Path.home() / ".ray"
        if (folder / "auth_token").is_file():
            return True
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
    except (OSError, RuntimeError):  # the latter: this user has no home
        return False
    return True


def check_address(address: str, seconds: float = RAY_TIMEOUT) -> None:
    """Refuse an address where no Ray answers in time: ``ray.init`` would try for minutes.

    Raises
    ------
    SettingsError
        If nothing answers, or something that is not Ray, or Ray refuses this process.
    """
    if "://" in address:
        raise SettingsError(
            f"the address is {address}, expected HOST:PORT of the head node, as ray start --head "
            "prints it"
        )
    try:
        full, host, port = split_address(address)
    except ValueError as error:
        raise SettingsError(f"{address} is no address of a cluster: {error}") from error
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT).close()
    except OSError as error:
        raise SettingsError(
            f"nothing answers at {address} ({error}); start Ray on it (ray start --head), and let "
            f"this machine through to its port {port}"
        ) from error
    command = [sys.executable, "-c", CONNECT_CODE, full]  # a thread could not be ended
    try:
        connected = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise SettingsError(
            f"something answers at {address}, but not as Ray within {seconds:g} s; give the port "
            "of ray start --head, 6379 unless it says another"
        ) from error
    if connected.returncode:
        raise SettingsError(f"{address} refuses: {connected.stderr.strip().splitlines()[-1]}")


def check_environment() -> None:
    """Refuse a ``RAY_ADDRESS`` at which no cluster is any more.

    Raises
    ------
    SettingsError
        Within 20 seconds.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local", "auto") or address.startswith("ray://") or SUBMITTED in os.environ:
        return
    try:
        check_address(address)
    except SettingsError as error:
        raise SettingsError(
            f"RAY_ADDRESS is {address}: {error}; or unset RAY_ADDRESS to work on this machine alone"
        ) from error


@contextmanager
def ending_at_interrupt() -> Iterator[None]:
    """End this process at once if it is interrupted while the block runs.

    Python's way, to unwind and to tidy up, meets threads of Ray that are half started and crashes.
    What Ray has started ends with this process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    line = line_of("saff: interrupted while Ray started; nothing was changed", "interrupted", ERROR)

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, f"\n{line}\n".encode())
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def start_error(error: BaseException) -> SettingsError:
    """Say in a line why Ray did not start."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    advice = "; set RAY_TMPDIR to a folder that can be written and has room" if full else ""
    return SettingsError(f"Ray did not start: {line}{advice}")
