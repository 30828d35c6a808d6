"""What is left to do: the parts of a manifest compared with the parts of a stage."""

import shlex
from dataclasses import dataclass

from saff import layout
from saff.errors import SettingsError
from saff.layout import PART_SUFFIX, Stage, part_number
from saff.manifests import manifest_parts
from saff.shards import count_rows
from saff.sources import source_option
from saff.storage import Folder, read_each, with_brief_retries

DONE_WORDS = {Stage.PREDICTIONS: "predicted", layout.ROUND_LABELS: "refreshed"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stage has done and has to do.

    Attributes
    ----------
    images, done, failed : int
        In the manifest; done or failed before; failed among those.
    parts : list of str
        Parts to do now.
    left : int
        Images to do now.
    verb : str
        What was done to the images: ``"labelled"`` or ``"predicted"``.
    """

    images: int
    done: int
    failed: int
    parts: list[str]
    left: int
    verb: str = "labelled"

    @property
    def counts(self) -> dict[str, int]:
        """What the line holds, for a program: images that are done are those that did not fail."""
        return {
            "images": self.images,
            "done": self.done - self.failed,
            "failed": self.failed,
            "left": self.left,
        }

    def __str__(self) -> str:
        """One line for a person."""
        return (
            f"{self.images:,} images: {self.done - self.failed:,} {self.verb}, "
            f"{self.failed:,} failed, {self.left:,} to do in {len(self.parts):,} parts"
        )


@dataclass(frozen=True, slots=True)
class Share:
    """One of several equal shares of a run's parts, so that several jobs can do one run.

    Attributes
    ----------
    number, of : int
        From 1; ``Share(2, 4)`` is the second of four.
    """

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1 <= self.number <= self.of:
            raise SettingsError(
                f"a share is i/n with 1 <= i <= n, as 2/4; got {self.number}/{self.of}"
            )

    @classmethod
    def read(cls, text: str) -> "Share":
        """From ``"2/4"``."""
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal()):
            raise SettingsError(f"a share is i/n with 1 <= i <= n, as 2/4; got {text!r}")
        return cls(int(number), int(of))

    def holds(self, part: str) -> bool:
        """Whether a part belongs to this share, by its number."""
        return part_number(part) % self.of == self.number - 1


WHOLE = Share()


def plan_stage(
    output: Folder,
    stage: str = Stage.PSEUDO_LABELS,
    *,
    retry_failed: bool = False,
    share: Share = WHOLE,
) -> Plan:
    """Compare the manifest with the parts of a stage that are done.

    Parameters
    ----------
    output : Folder
        The run's output.
    stage : str
        Folder of the stage's parts.
    retry_failed : bool
        Do parts again that hold failed images; their other rows are kept.
    share : Share
        Only these parts of the manifest.
    """
    manifest, results = layout.manifest(output), output / stage
    names, finished = (
        [name for name in listed if share.holds(name)]
        for listed in (manifest_parts(output), results.names(PART_SUFFIX))
    )
    wanted = dict(zip(names, read_each(count_rows, manifest, names), strict=True))
    found = dict(zip(finished, read_each(count_rows, results, finished), strict=True))
    missing = [n for n in names if n not in found]
    again = [n for n in names if n in found and found[n][1]] if retry_failed else []
    return Plan(
        images=sum(rows for rows, _ in wanted.values()),
        done=sum(rows for rows, _ in found.values()),
        failed=sum(failed for _, failed in found.values()),
        parts=missing + again,
        left=sum(wanted[n][0] for n in missing) + sum(found[n][1] for n in again),
        verb=DONE_WORDS.get(stage.rpartition("/")[2], "labelled"),
    )


def require_manifest(output: Folder, source: str) -> None:
    """Refuse to do a share of a run whose manifest is empty.

    Several jobs that listed the images at the same time would not agree on the parts.

    Raises
    ------
    SettingsError
        If the output has no manifest yet; names the command that writes it.
    """
    with with_brief_retries(output.uri):
        parts = layout.manifest(output).names(PART_SUFFIX)
    if not parts:
        raise SettingsError(
            f"{output.uri} has no images yet; before any share is done, take them in: "
            f"saff manifest {source_option(source)} --output {shlex.quote(output.uri)}"
        )
