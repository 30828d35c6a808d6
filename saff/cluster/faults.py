"""Faults of a machine or a storage: a line in the result of a task, never in an image's row."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2

from saff.errors import SettingsError

MACHINES_FAULT = (OSError, MemoryError, SettingsError)
DEVICE_WORDS = ("CUDA", "cuDNN", "CUBLAS", "NCCL", "DefaultCPUAllocator")  # of torch's errors


def is_machines_fault(error: BaseException) -> bool:
    """Whether an error is this machine's or the storage's, and would meet every image."""
    if isinstance(error, RuntimeError):  # torch has few kinds: a lost GPU, no memory
        return any(word in str(error) for word in DEVICE_WORDS) or "out of memory" in str(error)
    if isinstance(error, cv2.error):
        return error.code == cv2.Error.STS_NO_MEM
    return isinstance(error, MACHINES_FAULT)


@dataclass(frozen=True, slots=True)
class Telling:
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
            if not is_machines_fault(error):
                raise
            return {"fault": told(error, row["part"])}


class TellingActor:
    """The same for a task that has to be made: what goes wrong then is told by its first part.

    Parameters
    ----------
    make : class
        Of the task.
    *arguments
        To make it.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self.task, self.fault = None, ""
        try:
            self.task = Telling(make(*arguments))
        except Exception as error:
            if not is_machines_fault(error):
                raise
            self.fault = told(error, "the start of a worker")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do the part of a row."""
        return self.task(row) if self.task else {"fault": self.fault}


def told(error: BaseException, where: str) -> str:
    """Say in a line what ended a job."""
    if isinstance(error, SettingsError):
        return str(error)
    why = f"{type(error).__name__}: {error}".rstrip(": ")
    return (
        f"{why} (at {where} on {socket.gethostname()}); no image is at fault, what was done before "
        "stays, and the same command continues"
    )
