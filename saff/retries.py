"""Storages that are busy for a moment are asked again, for minutes, before a job gives up.

The clients have retries of their own, a few within seconds.  These are for what lasts longer: a
throttled prefix, a server that restarts, credentials of a role that are late.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

PATIENCE = "SAFF_STORAGE_PATIENCE"  # environment variable: seconds, of each request
SECONDS = 600.0  # without that variable
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0  # seconds, drawn at random up to a bound that doubles
FINAL = (  # what no repetition mends
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    MemoryError,
    ValueError,
    TypeError,
    NotImplementedError,
)

Found = TypeVar("Found")
_at_once: ContextVar[bool] = ContextVar("at_once", default=False)


@contextmanager
def at_once() -> Iterator[None]:
    """Do not ask again while the block runs: a person waits, and may have named a wrong place."""
    token = _at_once.set(True)
    try:
        yield
    finally:
        _at_once.reset(token)


def patiently(ask: Callable[..., Found], *arguments: Any, **options: Any) -> Found:
    """Call something that asks a storage, again and again while that may help.

    Parameters
    ----------
    ask : callable
        Harmless to repeat: it reads, or writes something whole.
    *arguments, **options
        Its arguments.

    Returns
    -------
    found : object
        What ``ask`` gives.

    Raises
    ------
    Exception
        What ``ask`` raised: at once if no repetition mends it, otherwise after
        ``SAFF_STORAGE_PATIENCE`` seconds (600).
    """
    if _at_once.get():
        return ask(*arguments, **options)
    again = Retrying(
        retry=retry_if_exception(may_pass),
        stop=stop_after_delay(float(os.environ.get(PATIENCE, SECONDS))),
        wait=wait_random_exponential(FIRST_PAUSE, LONGEST_PAUSE),
        reraise=True,
    )
    return again(ask, *arguments, **options)


def may_pass(error: BaseException) -> bool:
    """Whether an error of a storage may be gone in a while: throttling, 5xx, resets, time-outs."""
    return isinstance(error, Exception) and not isinstance(error, FINAL)
