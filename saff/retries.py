"""Requests to a storage that is busy for a moment are repeated, for minutes, before a job fails.

The clients have retries of their own, a few within seconds.  These are for what lasts longer: a
throttled prefix, a server that restarts, credentials of a role that are late.  Where a person
waits, who may have named a wrong place, it is seconds.
"""

import errno
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    stop_any,
    wait_random_exponential,
)

from saff.errors import BusyError, SaffError, SettingsError, UnreadableError

PATIENCE = "SAFF_STORAGE_PATIENCE"  # environment variable: seconds, of each request
SECONDS = 600.0  # without that variable
QUIET = 15.0  # seconds of waiting that are not logged
BRIEF = 10.0  # seconds that a person waits to hear that a place does not answer
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0  # seconds, drawn at random up to a bound that doubles
FINAL = (  # what no repetition mends
    SaffError,
    UnreadableError,
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
LASTING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
BUSY = {408, 425, 429}  # status of a web server: time-out, too early, too many requests
BAD_ADDRESS = "BadAddress"
FINAL_CODES = frozenset({*range(400, 500)} - BUSY) | {
    "InvalidObjectState",  # in an archive
    "InvalidRequest",  # encrypted with a key of somebody else's
    "KeyTooLongError",
    BAD_ADDRESS,
}
UNAUTHORISED = 401  # credentials that are missing, not an image
REFUSE_ADDRESS = ("ParamValidationError", "InvalidURL", "InvalidUrlClientError")  # of clients

Found = TypeVar("Found")
LOG = logging.getLogger(__name__)
_last_logged = [-math.inf]  # when this process last logged
_limit: ContextVar[tuple[float, float]] = ContextVar("limit", default=(math.inf, math.inf))


@contextmanager
def retry_limit(seconds: float, tries: float = math.inf) -> Iterator[None]:
    """Ask again for so many seconds, and so often, at most while the block runs; 0: not at all."""
    least = (min(seconds, _limit.get()[0]), min(tries, _limit.get()[1]))
    token = _limit.set(least)
    try:
        yield
    finally:
        _limit.reset(token)


def call_with_retries(ask: Callable[..., Found], *arguments: Any, **options: Any) -> Found:
    """Call a function that uses a storage, and repeat it while that may help.

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
        ``SAFF_STORAGE_PATIENCE`` seconds (600), or those of :func:`retry_limit` if they are fewer.
    """
    least, tries = _limit.get()
    seconds = min(patience(), least)
    again = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_any(stop_after_delay(seconds), stop_after_attempt(tries)),  # type: ignore[arg-type]
        before_sleep=partial(_log_waiting, seconds=seconds),
        wait=partial(_pause, seconds=seconds),
        reraise=True,
    )
    return again(ask, *arguments, **options)


def patience() -> float:
    """Seconds for which requests to a storage are repeated: ``SAFF_STORAGE_PATIENCE``.

    Raises
    ------
    SettingsError
        If the variable is no number of seconds.
    """
    text = os.environ.get(PATIENCE, str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise SettingsError(f"{PATIENCE} must be a number of seconds, got {text!r}")
    return seconds


def _pause(state: RetryCallState, seconds: float) -> float:
    """Seconds until the next try: at random, and what the server wishes if there is time."""
    pause = wait_random_exponential(FIRST_PAUSE, LONGEST_PAUSE)(state)
    error = state.outcome.exception() if state.outcome else None
    wanted = error.wait if isinstance(error, BusyError) else 0.0
    return max(pause, min(wanted, seconds - (state.seconds_since_start or 0.0)))


def _log_waiting(state: RetryCallState, seconds: float) -> None:
    """Log now and then what is waited for; an error's own text may hold a signature."""
    now = time.monotonic()
    if (state.seconds_since_start or 0) < QUIET or now - _last_logged[0] < LONGEST_PAUSE:
        return
    _last_logged[0] = now
    error = state.outcome.exception() if state.outcome else None
    why = f"{type(error).__name__} {error_code(error) if error else ''}".rstrip()
    LOG.warning("a storage does not answer (%s); the request is repeated for %.0f s", why, seconds)


def is_transient(error: BaseException) -> bool:
    """Whether an error of a storage may pass: throttling, 5xx, resets, time-outs."""
    if not isinstance(error, Exception):
        return False
    return error_code(error) not in FINAL_CODES and not isinstance(error, FINAL)


def what_next(error: BaseException) -> str:
    """Say what a person can do after an error of a storage or a machine."""
    if is_transient(error) and getattr(error, "errno", None) not in LASTING:
        return "what is done stays, and the same command continues"
    return "what is done stays; once this is mended, the same command continues"


def error_code(error: BaseException) -> str | int:
    """Give the code with which a store explains an error: S3's word, a web server's status, ''."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)  # of botocore's errors
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        status = getattr(one, "status", None)  # of aiohttp's errors and ours
        if isinstance(status, int | str) and status:
            return status
        if type(one).__name__ in REFUSE_ADDRESS:
            return BAD_ADDRESS
    return ""
