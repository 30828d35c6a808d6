"""Storages that are busy for a moment: asked again while that may help, and not longer."""

import math
import time

import pytest
from aiohttp import ClientResponseError

from saff import retries
from saff.retries import call_with_retries, retry_limit


@pytest.fixture
def quick(monkeypatch):
    """A second of patience, short pauses."""
    monkeypatch.setenv("SAFF_STORAGE_PATIENCE", "1")
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(retries, "LONGEST_PAUSE", 0.02)


class Busy:
    """Raises so many errors before it answers."""

    def __init__(self, error, times):
        self.error, self.left, self.asked = error, times, 0

    def __call__(self, *arguments, **options):
        self.asked += 1
        if self.left:
            self.left -= 1
            raise self.error
        return arguments, options


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError("by peer"), TimeoutError("slow"), OSError("SlowDown"), Exception("500")],
)
def test_what_may_pass_is_waited_for(quick, error):
    busy = Busy(error, 5)
    assert call_with_retries(busy, 1, name="x") == ((1,), {"name": "x"})
    assert busy.asked == 6


@pytest.mark.parametrize("kind", retries.FINAL)
def test_what_no_repetition_mends_is_raised_at_once(quick, kind):
    busy = Busy(kind("no"), 1)
    with pytest.raises(kind, match="no"):
        call_with_retries(busy)
    assert busy.asked == 1


def test_patience_ends_with_the_last_error(quick):
    busy = Busy(ConnectionError("still down"), 10**6)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="still down"):
        call_with_retries(busy)
    assert 0.5 < time.monotonic() - start < 5
    assert busy.asked > 5


def test_a_person_does_not_wait(quick):
    busy = Busy(ConnectionError("down"), 1)
    with retry_limit(0), pytest.raises(ConnectionError):
        call_with_retries(busy)
    assert busy.asked == 1
    assert call_with_retries(busy) == ((), {})  # and a task waits again afterwards


def test_a_long_wait_is_told_now_and_then_without_the_errors_words(quick, monkeypatch, caplog):
    monkeypatch.setattr(retries, "QUIET", 0.1)
    monkeypatch.setattr(retries, "_last_logged", [-math.inf])
    with pytest.raises(ConnectionError):
        call_with_retries(Busy(ConnectionError("https://host/?signature=1"), 10**6))
    said = "a storage does not answer (ConnectionError); the request is repeated for 1 s"
    assert set(caplog.messages) == {said}
    assert len(caplog.messages) < 60  # pauses of 0.02 s


def test_a_person_waits_a_little(quick):
    busy = Busy(ConnectionError("down"), 10**6)
    start = time.monotonic()
    with retry_limit(0.2), retry_limit(5), pytest.raises(ConnectionError):
        call_with_retries(busy)
    assert 0.1 < time.monotonic() - start < 0.8
    assert busy.asked > 2


@pytest.mark.parametrize(("status", "asked"), [(401, 1), (403, 1), (410, 1), (429, 3), (503, 3)])
def test_a_web_server_that_refuses_is_believed(quick, status, asked):
    error = ClientResponseError(None, (), status=status)
    busy = Busy(error, 2)
    if asked == 1:
        with pytest.raises(ClientResponseError):
            call_with_retries(busy)
    else:
        call_with_retries(busy)
    assert busy.asked == asked


def test_an_interrupt_is_no_fault_of_the_storage(quick):
    busy = Busy(KeyboardInterrupt(), 1)
    with pytest.raises(KeyboardInterrupt):
        call_with_retries(busy)
    assert busy.asked == 1
