"""A progress line: live on a terminal, now and then in a job's log, where it may be an object."""

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn

from saff.log import line_of, structured

LOG_SECONDS = 10.0  # between two lines of a log
# Seconds without progress that end a job; a part of large images takes half an hour on a slow core.
PATIENCE = 3600.0


class Progress:
    """Counts images, or other units, as they are done; a context manager.

    Parameters
    ----------
    what : str
        Name of the stage.
    total : int
        Units to do.
    stream : file, optional
        Where to; standard error without it.
    unit : str
        What is counted.
    stage : str
        Folder of the results, for a program that reads the log; without it, ``what``.
    """

    def __init__(
        self,
        what: str,
        total: int,
        stream: TextIO | None = None,
        unit: str = "images",
        stage: str = "",
    ) -> None:
        self.what = what
        self.stage = stage or what
        self.total = total
        self.unit = unit
        self.done = self.failed = self.before = 0
        self.note = ""
        self.figures: dict[str, float] = {}
        self.stream = stream or sys.stderr
        self.start = self.logged = time.monotonic()
        console = Console(file=self.stream)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
        )
        live = console.is_terminal and not structured()
        self.bar = Bar(*columns, console=console) if live else None

    def __enter__(self) -> "Progress":
        """Start counting."""
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task(self.what, total=self.total, line="")
        return self

    def __exit__(self, *error: object) -> None:
        """Stop, leaving the last state to be read."""
        if self.bar:
            self.bar.stop()
        elif self.done:
            self._log()

    def advance(self, done: int, failed: int) -> None:
        """Count ``done`` more images, ``failed`` of which hold an error."""
        self.failed += failed
        self.reach(self.done + done, f"{self.failed} failed", failed=self.failed)

    def resume(self, done: int) -> None:
        """Begin at ``done`` units, which took no time."""
        self.before = done
        self.start = self.logged = time.monotonic()

    def reach(self, done: int, note: str, **figures: float) -> None:
        """Say that ``done`` units are done, and a few words beside it, with the figures in them."""
        self.done, self.note, self.figures = done, note, figures
        if self.bar:
            self.bar.update(self.task, completed=self.done, line=self._line())
        elif time.monotonic() - self.logged >= LOG_SECONDS:
            self._log()

    def _rate(self) -> tuple[float, float]:
        """Units a second, and the seconds that are left at this rate."""
        seconds = max(time.monotonic() - self.start, 1e-3)
        rate = max(self.done - self.before, 0) / seconds
        return rate, max(self.total - self.done, 0) / rate if rate else 0.0

    def _line(self) -> str:
        rate, left = self._rate()
        return f"{self.note}, {rate:.1f} {self.unit}/s, {duration(left)} left"

    def _log(self) -> None:
        self.logged = time.monotonic()
        rate, left = self._rate()
        line = f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {self._line()}"
        line = line_of(
            line,
            "progress",
            stage=self.stage,
            done=self.done,
            total=self.total,
            unit=self.unit,
            **self.figures,
            per_second=round(rate, 3),
            seconds_left=round(left),
        )
        print(line, file=self.stream, flush=True)


def duration(seconds: float) -> str:
    """Show a time span in the two largest units.

    >>> duration(42), duration(130), duration(7300)
    ('42 s', '2 min 10 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
