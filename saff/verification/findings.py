"""Findings in an output and how they are reported: faults, counts, the verdict."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from saff.errors import printable

MOST_FAULTS = 20  # described; the others are counted
MOST_CHARACTERS = 500  # of a line


@dataclass(slots=True)
class Faults:
    """Faults in the order of parts, whatever order the parts come in.

    Attributes
    ----------
    count : int
        All of them.
    first : list of tuple
        The first ones: part, place in it, line.
    """

    count: int = 0
    first: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, line: str, part: str = "") -> None:
        """Take in a fault."""
        self.first = sorted([*self.first, (part, self.count, shown(line))])[:MOST_FAULTS]
        self.count += 1

    def merge(self, count: int, first: Iterable[Sequence[Any]]) -> None:
        """Take in the faults of a part."""
        both = self.first + [(part, place, line) for part, place, line in first]
        self.first = sorted(both)[:MOST_FAULTS]
        self.count += count

    @property
    def lines(self) -> list[str]:
        """Lines for a person, the last of which counts those that are left out."""
        return [line for _, _, line in self.first] + and_more(self.count - len(self.first))


@dataclass(slots=True)
class Totals:
    """Images of a stage."""

    done: int = 0
    failed: int = 0
    to_do: int = 0

    def add(self, other: "Totals") -> None:
        """Count others with these."""
        self.done += other.done
        self.failed += other.failed
        self.to_do += other.to_do


@dataclass(slots=True)
class Findings:
    """What was found in one output.

    Attributes
    ----------
    uri : str
        The output.
    images : int
        In its manifest.
    stages : dict of str to Totals
        Its images, by what became of them.
    faults : Faults
        What is wrong.
    commands : list of str
        What continues the stages that are not done.
    """

    uri: str
    images: int = 0
    stages: dict[str, Totals] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    commands: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong and nothing left to do."""
        return not self.faults.count and not any(c.to_do for c in self.stages.values())

    @property
    def lines(self) -> list[str]:
        """Faults, a summary, and what continues."""
        counts = [
            f"{stage}: {c.done:,} done, {c.failed:,} failed, {c.to_do:,} to do"
            for stage, c in self.stages.items()
        ]
        faults = counted(self.faults.count, "fault")
        summary = "; ".join([f"{self.uri}: {counted(self.images, 'image')}", *counts, faults])
        commands = [f"to continue, with the settings it has: {c}" for c in self.commands]
        return self.faults.lines + [shown(line) for line in (summary, *commands)]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What :func:`verify` gives.

    Attributes
    ----------
    outputs : list of Findings
        One for each output.
    differing : int
        Images that differ between two outputs.
    differences : list of str
        The first of them, a line each.
    """

    outputs: list[Findings]
    differing: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether every output is whole, and two hold the same."""
        return not self.differing and all(found.whole for found in self.outputs)

    @property
    def lines(self) -> list[str]:
        """All that is to be said, for a person."""
        lines = [line for found in self.outputs for line in found.lines]
        if len(self.outputs) == 1:
            return lines
        lines += self.differences + and_more(self.differing - len(self.differences))
        if not self.differing:
            return [*lines, "same content"]
        return [*lines, f"other content: {counted(self.differing, 'image')}"]


# Words


def shown(line: str) -> str:
    """Give a line for a person, cut off where it is too long."""
    return printable(line)[:MOST_CHARACTERS]


def counted(count: int, noun: str) -> str:
    """Give a number and what it counts."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def and_more(count: int) -> list[str]:
    """Line that counts what is left out."""
    return [f"... and {count:,} more"] if count else []
