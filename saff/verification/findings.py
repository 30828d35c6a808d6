"""Findings in an output and how they are reported: faults, counts, the verdict."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saff.errors import printable
from saff.shards import Row

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


@dataclass(slots=True)
class Distance:
    """How far the maps of two outputs lie apart, over the images of a stage that differ.

    Attributes
    ----------
    images : int
        Images that were compared pixel by pixel.
    pixels, changed : int
        Pixels of their masks, and those that are foreground in one output alone.
    largest_share : float
        Largest share of changed pixels in one image, in [0, 1].
    confidence : int
        Largest difference of a confidence, of 255.
    """

    images: int = 0
    pixels: int = 0
    changed: int = 0
    largest_share: float = 0.0
    confidence: int = 0

    def add(self, one: Row, other: Row) -> None:
        """Take in an image, if both of its rows hold maps of one size."""
        maps = [(row["confidence"], row["pseudo_label"]) for row in (one, other)]
        if len({getattr(found, "shape", None) for pair in maps for found in pair}) != 1:
            return
        (confidence, mask), (other_confidence, other_mask) = maps
        if not isinstance(mask, np.ndarray):  # an error in both
            return
        changed = int(np.count_nonzero(mask != other_mask))
        apart = np.maximum(confidence, other_confidence) - np.minimum(confidence, other_confidence)
        self.images += 1
        self.pixels += mask.size
        self.changed += changed
        self.largest_share = max(self.largest_share, changed / mask.size)
        self.confidence = max(self.confidence, int(apart.max()))

    def __str__(self) -> str:
        """Say it in words."""
        return (
            f"{counted(self.images, 'image')} measured: masks differ at "
            f"{self.changed / max(self.pixels, 1):.4%} of their pixels, at most "
            f"{self.largest_share:.4%} of one image; confidence differs by at most "
            f"{self.confidence} of 255"
        )


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
    distances : dict of str to Distance
        By how much their maps differ, for each stage in which they do.
    """

    outputs: list[Findings]
    differing: int = 0
    differences: list[str] = field(default_factory=list)
    distances: dict[str, Distance] = field(default_factory=dict)

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
        lines += [f"{stage}: {distance}" for stage, distance in self.distances.items()]
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
