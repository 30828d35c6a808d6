import io
import re

import pytest

from saff import progress
from saff.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved: ``clock(seconds)``."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def move(seconds):
        now[0] += seconds

    return move


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (130, "2 min 10 s"),
        (3599.7, "1 h 0 min"),
        (7300, "2 h 1 min"),
        (260_000, "72 h 13 min"),
    ],
)
def test_durations_in_two_units(seconds, text):
    assert duration(seconds) == text


def test_a_log_has_a_line_now_and_then_and_the_last_state(clock):
    log = io.StringIO()
    with Progress("label", 12_000, log) as counted:
        clock(5)
        counted.advance(100, 1)  # too early for a line
        assert log.getvalue() == ""
        clock(5)
        counted.advance(100, 0)
        clock(1)
        counted.advance(800, 4)
    assert log.getvalue().splitlines() == [
        "label: 200 of 12,000 images, 1 failed, 20.0 images/s, 9 min 50 s left",
        "label: 1,000 of 12,000 images, 5 failed, 90.9 images/s, 2 min 1 s left",
    ]
    assert "\x1b" not in log.getvalue()


def test_the_last_state_is_told_when_a_run_stops(clock):
    log = io.StringIO()

    def stop():
        with Progress("label", 10, log) as counted:
            clock(1)
            counted.advance(4, 0)
            raise ConnectionError("reset by peer")

    with pytest.raises(ConnectionError):
        stop()
    assert log.getvalue() == "label: 4 of 10 images, 0 failed, 4.0 images/s, 2 s left\n"


def test_nothing_done_is_nothing_said(clock):
    log = io.StringIO()
    with Progress("label", 10, log):
        clock(60)
    assert log.getvalue() == ""


def test_more_than_was_expected_leaves_no_time(clock):
    log = io.StringIO()
    with Progress("label", 1, log) as counted:
        clock(1)
        counted.advance(3, 0)
    assert log.getvalue().endswith("0 s left\n")


def test_a_terminal_has_one_live_line(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    with Progress("label", 40, screen) as counted:
        clock(2)
        counted.advance(10, 3)
        clock(2)
        counted.advance(20, 0)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    last = re.split(r"[\r\n]+", plain.strip())[-1]
    assert last.startswith("label ")
    assert last.rstrip().endswith("30/40 3 failed, 7.5 images/s, 1 s left")


def test_it_goes_to_standard_error_by_itself(capsys, clock):
    with Progress("label", 2) as counted:
        clock(1)
        counted.advance(2, 0)
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_steps_that_were_done_before_do_not_count_for_the_rate(clock):
    stream = io.StringIO()
    with Progress("train", 500, stream, unit="steps") as progress:
        clock(100)  # until the workers have started
        progress.resume(200)
        progress.reach(200, "loss 0.5")
        assert stream.getvalue() == ""
        clock(20)
        progress.reach(240, "loss 0.4")
    first = stream.getvalue().splitlines()[0]
    assert first == "train: 240 of 500 steps, loss 0.4, 2.0 steps/s, 2 min 10 s left"
