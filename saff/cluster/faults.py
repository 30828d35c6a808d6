"""Faults of a machine or a storage: a line in the result of a task, never in an image's row."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2

from saff import errors
from saff.errors import SaffError, StorageError
from saff.retries import what_next

SYSTEM_FAULTS = (OSError, MemoryError, SaffError)
DEVICE_WORDS = ("CUDA", "cuDNN", "CUBLAS", "NCCL", "DefaultCPUAllocator")  # of torch's errors


def is_system_fault(error: BaseException) -> bool:
    """Whether an error is this machine's or the storage's, and would meet every image."""
    if isinstance(error, RuntimeError):  # torch has few kinds: a lost GPU, no memory
        return any(word in str(error) for word in DEVICE_WORDS) or "out of memory" in str(error)
    if isinstance(error, cv2.error):
        return error.code == cv2.Error.STS_NO_MEM
    return isinstance(error, SYSTEM_FAULTS)


@dataclass(frozen=True, slots=True)
class CatchFaults:
    """A task whose ``fault`` is part of its result: Ray would wrap what it raised, and log pages.

    Attributes
    ----------
    task : callable
        From a part's row to a dict.
    """

    task: Callable[[dict[str, Any]], dict[str, Any]]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do it; ``fault`` is empty, or says what this machine or the storage could not do."""
        try:
            return {**self.task(row), "fault": ""}
        except Exception as error:
            if not is_system_fault(error):
                raise
            return fault_of(error, row["part"])


class CatchFaultsActor:
    """CatchFaults for a class of task: a fault while it is made is in the result of its first part.

    Parameters
    ----------
    make : class
        Class of the task.
    *arguments
        To make it.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self.task: CatchFaults | None = None
        self.fault: dict[str, Any] = {}
        try:
            self.task = CatchFaults(make(*arguments))
        except Exception as error:
            if not is_system_fault(error):
                raise
            self.fault = fault_of(error, "the start of a worker")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do the part of a row."""
        return self.task(row) if self.task else self.fault


def fault_of(error: BaseException, where: str) -> dict[str, str]:
    """Result of a task that met a fault: its message, and the kind of error to raise from it."""
    kind = type(error) if isinstance(error, SaffError) else StorageError
    return {"fault": fault_message(error, where), "fault_kind": kind.__name__}


def raise_fault(result: dict[str, Any]) -> None:
    """Raise the error that a task met, as its result describes it; nothing for a good result.

    Raises
    ------
    SaffError
        The kind of error that the task met; a StorageError for what its machine could not do.
    """
    fault, kind = result.pop("fault"), result.pop("fault_kind", "")
    if fault:
        raise getattr(errors, kind, SaffError)(fault)


def fault_message(error: BaseException, where: str) -> str:
    """Say in a line what ended a job."""
    if isinstance(error, SaffError):
        return str(error)
    why = f"{type(error).__name__}: {error}".rstrip(": ")
    return f"{why} (at {where} on {socket.gethostname()}); no image is at fault, {what_next(error)}"
