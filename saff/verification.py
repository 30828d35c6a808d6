"""Proving that an output is whole, or that two outputs hold the same, part by part.

Nothing that is stored is believed.  What is damaged is a fault, told in a line; only a storage that
does not answer, or refuses, is an error.
"""

import hashlib
import json
import re
import shlex
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saff import images
from saff.arrays import AnyArray
from saff.errors import SettingsError, printable
from saff.evaluation import one_by_one
from saff.images import DEFAULT_MAX_PIXELS, ImageError
from saff.manifests import part_name, source_option
from saff.metrics import HALF
from saff.progress import Progress
from saff.runs import rounds_of, with_digest
from saff.shards import MANIFEST, PREDICTIONS, PSEUDO_LABELS, ROWS_PER_GROUP, Row
from saff.storage import (
    NO_FILE,
    WEB,
    Folder,
    asked,
    is_local,
    locate,
    reaching,
    read_bytes,
    telling,
)

LABELS = re.compile(r"pseudo_labels|rounds/\d+/labels")  # what a network can learn from
MAPS = {"confidence": np.uint8, "pseudo_label": np.uint8, "superpixels": np.uint16}
OF_ANY_ROW = ("image_id", "uri", "sha256", "height", "width", "error", "error_kind")
FEATURES = 4  # numbers of a superpixel; the weights are one for each and the bias
SHA256 = re.compile("[0-9a-f]{64}")
MOST_FAULTS, MOST_DIFFERENCES = 20, 10  # told in words; the others are counted
MOST_CHARACTERS = 500  # of a line
WEIGHTS = "weights.pt"  # of a trained network, as saff.trained writes it; that module needs torch

Mapper: TypeAlias = Callable[[Any, list[str]], Iterable[dict[str, Any]]]


# What is found


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
class Counts:
    """Images of a stage."""

    done: int = 0
    failed: int = 0
    to_do: int = 0

    def add(self, other: "Counts") -> None:
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
    stages : dict of str to Counts
        Its images, by what became of them.
    faults : Faults
        What is wrong.
    commands : list of str
        What continues the stages that are not done.
    """

    uri: str
    images: int = 0
    stages: dict[str, Counts] = field(default_factory=dict)
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


def shown(line: str) -> str:
    """Give a line for a person, cut off where it is too long."""
    return printable(line)[:MOST_CHARACTERS]


def counted(count: int, noun: str) -> str:
    """Give a number and what it counts."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def and_more(count: int) -> list[str]:
    """Line that counts what is left out."""
    return [f"... and {count:,} more"] if count else []


# Files


class DamagedError(ValueError):
    """A file that is there and does not hold what it should."""


@contextmanager
def on_disk(folder: Folder, name: str) -> Iterator[str]:
    """Path of a file on this machine: so that what fails when it is parsed is the file's fault."""
    path = f"{folder.path}/{name}"
    if is_local(folder.fs):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="saff-") as scratch:
        with telling(f"{folder.uri}/{name}"):
            asked(folder.fs, folder.fs.get_file, path, f"{scratch}/copy")
        yield f"{scratch}/copy"


def stored_rows(folder: Folder, name: str, schema: pa.Schema) -> Iterator[Row]:
    """Rows of a Parquet file of exactly this schema, a few at a time.

    Raises
    ------
    DamagedError
        If it is no such file; before any row, where the schema is another.
    """
    with on_disk(folder, name) as path:
        try:
            with pq.ParquetFile(path) as table:
                if fault := schema_fault(table.schema_arrow, schema):
                    raise DamagedError(fault)
                for batch in table.iter_batches(ROWS_PER_GROUP):
                    batch.validate(full=True)  # or a damaged list could end the process
                    yield from batch.to_pylist()
        except DamagedError:
            raise
        except Exception as error:  # damaged files make the reader raise nearly everything
            why = " ".join(str(error).split()) or type(error).__name__
            raise DamagedError(f"cannot be read: {why}") from error


def schema_of(stage: str) -> pa.Schema:
    """Columns of a stage; what a network inferred has the same in every round, spread or not."""
    return PSEUDO_LABELS if stage == "pseudo_labels" else PREDICTIONS


def schema_fault(found: pa.Schema, wanted: pa.Schema) -> str:
    """Say how a schema differs from the one that is wanted; empty if it does not."""
    if found.equals(wanted):
        return ""
    if missing := [name for name in wanted.names if name not in found.names]:
        return f"has no column {', '.join(missing)}"
    if unknown := [name for name in found.names if name not in wanted.names]:
        return f"has the unknown column {', '.join(unknown)}"
    for column in wanted:
        kind = found.field(found.names.index(column.name)).type
        if kind != column.type:
            return f"has a column {column.name} of type {kind}, expected {column.type}"
    return f"has its columns in the order {', '.join(found.names)}, not {', '.join(wanted.names)}"


# One row


def examine(row: Row) -> tuple[Row, list[str]]:
    """Decode the maps of a stage's row.

    Parameters
    ----------
    row : dict
        As it is stored.

    Returns
    -------
    content : dict
        The row with its maps as arrays, where they can be decoded.
    faults : list of str
        What is wrong with it.
    """
    if row["error"] is not None or row["error_kind"] is not None:
        return row, list(_failure_faults(row))
    content, faults = dict(row), list(_hash_faults(row))
    height, width = row["height"] or 0, row["width"] or 0
    if min(height, width) < 1:
        faults.append(
            f"height and width must be at least 1, got {row['height']} and {row['width']}"
        )
    fitting: dict[str, AnyArray] = {}
    for name in (name for name in MAPS if name in row):
        if row[name] is None:
            faults.append(f"{name} is missing, and there is no error")
            continue
        try:
            found = images.decode_png(row[name], max_pixels=max(height * width, DEFAULT_MAX_PIXELS))
        except ImageError as error:
            faults.append(f"{name} does not decode: {error}")
            continue
        content[name] = found
        if found.shape == (height, width) and found.dtype == MAPS[name]:
            fitting[name] = found
        else:
            faults.append(
                f"{name} is {found.dtype} {found.shape}, expected {MAPS[name].__name__} "
                f"{(height, width)}"
            )
    return content, [*faults, *_map_faults(fitting), *_number_faults(row, fitting)]


def _failure_faults(row: Row) -> Iterator[str]:
    if not (row["error"] and row["error_kind"]):
        yield (f"error and error_kind go together, got {row['error']!r} and {row['error_kind']!r}")
    for name, value in row.items():
        if name not in OF_ANY_ROW and value is not None:
            yield f"has an error and yet {name}"
    if row["sha256"] is not None:
        yield from _hash_faults(row)


def _hash_faults(row: Row) -> Iterator[str]:
    if not SHA256.fullmatch(row["sha256"] or ""):
        yield f"sha256 must be 64 hexadecimal digits, got {row['sha256']!r}"


def _map_faults(maps: dict[str, AnyArray]) -> Iterator[str]:
    """What is wrong in maps of the right size and type."""
    if "pseudo_label" in maps and maps["pseudo_label"].max() > 1:
        yield f"pseudo_label holds the value {maps['pseudo_label'].max()}, expected 0 and 1"
    elif "pseudo_label" in maps and "confidence" in maps:
        # Exact: 255 x is 127.5 or more, and rounds to 128, for x = 0.5 and no float32 below.
        differ = np.count_nonzero(maps["pseudo_label"] != (maps["confidence"] >= HALF))
        if differ:
            yield f"pseudo_label is not confidence from one half on, at {differ:,} pixels"
    if "superpixels" in maps:
        gaps = np.flatnonzero(np.bincount(maps["superpixels"].ravel()) == 0)
        if gaps.size:
            last = maps["superpixels"].max()
            yield f"superpixels skips {gaps.size:,} labels of 0..{last}, the first is {gaps[0]}"


def _number_faults(row: Row, maps: dict[str, AnyArray]) -> Iterator[str]:
    """What is wrong with the numbers of a pseudo label; predictions have none."""
    if "features" not in row:
        return
    features = np.asarray(row["features"] or [], np.float64)  # null becomes NaN
    regions = int(maps["superpixels"].max()) + 1 if "superpixels" in maps else None
    if regions is not None and features.size != FEATURES * regions:
        yield (
            f"features holds {features.size:,} numbers, expected {FEATURES} for each of "
            f"{regions:,} superpixels"
        )
    if not ((features >= 0) & (features <= 1)).all():  # NaN is neither
        yield "features holds numbers outside [0, 1], or NaN"
    weights = np.asarray(row["weights"] or [], np.float64)
    if weights.size != FEATURES + 1 or not np.isfinite(weights).all():
        yield f"weights must be {FEATURES + 1} finite numbers, got {row['weights']}"
    for name in ("seeds_foreground", "seeds_background"):
        if row[name] is None or row[name] < 0:
            yield f"{name} must be at least 0, got {row[name]}"
    if row["fallback"] is None:
        yield "fallback is missing"
    if row["quality"] is None or not 0 <= row["quality"] <= 1:
        yield f"quality must be in [0, 1], got {row['quality']}"


def digest(content: Row) -> str:
    """SHA-256 of a row's content but for ``uri``, in hexadecimal: pixels, not PNG bytes."""
    whole = hashlib.sha256()
    for name in sorted(content.keys() - {"uri"}):
        value = content[name]
        if isinstance(value, np.ndarray):
            whole.update(f"{name} {value.dtype} {value.shape}\n".encode())
            whole.update(value.tobytes())
        else:
            whole.update(f"{name} {value!r}\n".encode())
    return whole.hexdigest()


def image_fault(row: Row) -> str:
    """Say what has become of a row's image; empty if it is as it was."""
    uri = row["uri"]
    with telling(f"image {row['image_id']!r}"):  # a URI may be signed
        try:
            data = read_bytes(uri)
        except NO_FILE:
            return "its image is gone"
        except OSError as error:
            if uri.startswith(WEB):
                return "its image's web server does not give it out"
            if not is_local(locate(uri, signed=True)[0]):
                raise
            return f"its image cannot be read: {error.strerror}"
    return (
        "" if hashlib.sha256(data).hexdigest() == row["sha256"] else "its image has changed since"
    )


# One part


@dataclass(frozen=True, slots=True)
class VerifyPart:
    """Verify one part; a callable from ``{"part": name}`` to ``{"found": JSON}``.

    Attributes
    ----------
    output : Folder
        A run's output.
    stages : tuple of str
        Stages to verify.
    images : bool
        Read each image again and compare its SHA-256.
    """

    output: Folder
    stages: tuple[str, ...]
    images: bool = False

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Give counts, faults and, for each image of the manifest, a digest of each stage."""
        part, faults = row["part"], Faults()
        counts: dict[str, Counts] = {}
        digests: dict[str, dict[str, str]] = {}
        try:
            manifest = list(stored_rows(self.output / "manifest", part, MANIFEST))
        except DamagedError as error:  # which images its shards are to hold is not known
            manifest = []
            faults.add(f"{self.output.uri}/manifest/{part}: {error}", part)
        else:
            for stage in self.stages:
                counts[stage], digests[stage] = self._shard(stage, part, manifest, faults)
        rows = []
        for number, image in enumerate(manifest):
            rows.append(
                (image["image_id"], [digests[s].get(image["image_id"]) for s in self.stages])
            )
            if not image["image_id"] or not image["uri"]:
                line = f"row {number} has no image_id or no uri"
                faults.add(f"{self.output.uri}/manifest/{part}: {line}", part)
        found = {
            "part": part,
            "images": len(manifest),
            "stages": {stage: [c.done, c.failed, c.to_do] for stage, c in counts.items()},
            "faults": [faults.count, faults.first],
            "rows": [row for row in rows if row[0]],
        }
        return {"found": json.dumps(found)}  # text: Ray keeps it as it is

    def _shard(
        self, stage: str, part: str, manifest: list[Row], faults: Faults
    ) -> tuple[Counts, dict[str, str]]:
        """Verify a shard: its counts, and the digest of each image that it is to hold."""
        folder, uris = self.output / stage, {row["image_id"]: row["uri"] for row in manifest}
        with telling(folder.uri):
            if not folder.exists(part):
                return Counts(to_do=len(manifest)), {}
        where, ids, failed = f"{folder.uri}/{part}", [], set()
        digests: dict[str, str] = {}
        try:
            for number, row in enumerate(stored_rows(folder, part, schema_of(stage))):
                image_id = row["image_id"]
                ids.append(image_id)
                content, wrong = examine(row)
                if image_id in uris:  # others are told below
                    digests[image_id] = digest(content)
                    wrong += self._source_faults(row, uris[image_id])
                    if row["error_kind"] is not None:
                        failed.add(image_id)
                for fault in wrong:
                    faults.add(f"{where}: row {number} {image_id!r}: {fault}", part)
            for fault in order_faults(ids, [row["image_id"] for row in manifest]):
                faults.add(f"{where}: {fault}", part)
        except DamagedError as error:
            faults.add(f"{where}: {error}", part)
        return Counts(done=len(digests) - len(failed), failed=len(failed)), digests

    def _source_faults(self, row: Row, uri: str) -> list[str]:
        if row["uri"] != uri:
            return ["uri is not that of the manifest"]
        if not (self.images and uri and SHA256.fullmatch(row["sha256"] or "")):
            return []
        return [fault] if (fault := image_fault(row)) else []


def order_faults(found: list[str], wanted: list[str]) -> Iterator[str]:
    """How the ids of a shard differ from those of its part of the manifest."""
    have, want = Counter(found), Counter(wanted)
    for image_id in want - have:
        yield f"{image_id!r} is missing"
    for image_id in have - want:
        yield f"{image_id!r} is there {'twice' if image_id in want else 'and not in its manifest'}"
    if have == want and found != wanted:
        number = next(
            n for n, pair in enumerate(zip(found, wanted, strict=True)) if len({*pair}) > 1
        )
        yield (
            f"row {number} is {found[number]!r}, expected {wanted[number]!r}: "
            "the rows are not in the order of the manifest"
        )


# All images, on disk: as many as there are, whatever the memory


class Catalogue:
    """Which images outputs hold, with digests of their results; in a temporary database.

    Parameters
    ----------
    database : sqlite3.Connection
        Empty; SQLite keeps a few MB of it in memory.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self.table = database.cursor()
        self.table.execute("PRAGMA journal_mode = OFF")  # nobody will read it after a crash
        self.table.execute(
            "CREATE TABLE images (image_id TEXT, output INTEGER, part TEXT, digests TEXT, "
            "PRIMARY KEY (image_id, output)) WITHOUT ROWID"
        )

    def add(self, output: int, part: str, image_id: str, digests: list[str | None]) -> str:
        """Take in an image; give the part that has it already, or empty text."""
        row = (image_id, output, part, json.dumps(digests))
        if self.table.execute("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?)", row).rowcount:
            return ""
        return str(self.find(image_id)[output][0])

    def find(self, image_id: str) -> dict[int, tuple[str, list[str | None]]]:
        """Part and digests of an image in each output that has it."""
        self.table.execute(
            "SELECT output, part, digests FROM images WHERE image_id = ?", (image_id,)
        )
        return {output: (part, json.loads(digests)) for output, part, digests in self.table}

    def differing(self) -> tuple[int, list[str]]:
        """Count the images that two outputs do not share, and give the first of their ids."""
        self.table.execute(
            "SELECT image_id FROM images GROUP BY image_id "
            "HAVING count(*) < 2 OR min(digests) <> max(digests) ORDER BY image_id"
        )
        first = [image_id for (image_id,) in self.table.fetchmany(MOST_DIFFERENCES)]
        return len(first) + sum(1 for _ in self.table), first


# Outputs


def verify(
    output: Folder,
    other: Folder | None = None,
    *,
    stage: str | None = None,
    images: bool = False,
    network: Folder | None = None,
    map_parts: Mapper = one_by_one,
) -> Verdict:
    """Prove that an output is whole; with another one, also that both hold the same.

    Parameters
    ----------
    output : Folder
        A run's output.
    other : Folder, optional
        Another one, to be compared image by image, however its images are split over parts.
    stage : str, optional
        ``"pseudo_labels"`` or ``"predictions"``; default: those that are there, and those of the
        rounds before the last.
    images : bool
        Read each image again and compare its SHA-256: costs a read of the corpus.
    network : Folder, optional
        The run whose network made the predictions; default: the output, where it has one.
    map_parts : callable
        Applies a task to parts: :func:`saff.evaluation.one_by_one`, or
        :func:`saff.cluster.map_parts` over a cluster.

    Returns
    -------
    verdict : Verdict
        What was found.

    Raises
    ------
    SettingsError
        If a folder is no output, ``network`` has none, or a storage refuses.
    """
    outputs = [output] if other is None else [output, other]
    runs = [_run_of(folder) for folder in outputs]
    stages = (stage,) if stage else _stages_of(outputs, runs)
    if network and "predictions" not in stages:
        raise SettingsError(f"--network is of predictions, and {output.uri} has none")
    with closing(sqlite3.connect("")) as database:
        catalogue = Catalogue(database)
        found = []
        for number, (folder, run) in enumerate(zip(outputs, runs, strict=True)):
            findings = Findings(folder.uri, stages={name: Counts() for name in stages})
            for fault in description_faults(folder, stages, network):
                findings.faults.add(fault)
            for result in _verify_parts(findings, VerifyPart(folder, stages, images), map_parts):
                _take(findings, result, catalogue, number)
            undone = [name for name, counts in findings.stages.items() if counts.to_do]
            findings.commands = [command(folder, run, name) for name in undone]
            found.append(findings)
        if other is None:
            return Verdict(found)
        differing, first = catalogue.differing()
        lines = [_difference(image_id, catalogue, outputs, stages) for image_id in first]
    return Verdict(found, differing, [shown(line) for line in lines])


def _run_of(output: Folder) -> Row:
    """What run.json says, nothing if it is damaged; refuses a folder that is no output."""
    with reaching(output.uri):
        known = output.exists("run.json") or (output / "manifest").names(".parquet")
    if not known:
        raise SettingsError(f"{output.uri} is not the output of a run: it has no run.json")
    return description(output)[0]


def _stages_of(outputs: Sequence[Folder], runs: Sequence[Row]) -> tuple[str, ...]:
    """Stages that are there, in their order, and pseudo labels where a run is to have them."""
    there = {"pseudo_labels"} if any("config" in run for run in runs) else set()
    rounds: list[str] = []
    for output in outputs:
        with reaching(output.uri):
            rounds = max(rounds, rounds_of(output), key=len)
    known = [f"{home}/{name}" for home in rounds for name in ("predictions", "labels")]
    known = ["pseudo_labels", *known, "predictions"]
    for output in outputs:
        with reaching(output.uri):
            there |= {name for name in known if (output / name).names("")}
    return tuple(name for name in known if name in there) or ("pseudo_labels",)


def _verify_parts(
    findings: Findings, task: VerifyPart, map_parts: Mapper
) -> Iterator[dict[str, Any]]:
    """Compare the listings, then do the parts, on a progress line."""
    output, faults = task.output, findings.faults
    with reaching(output.uri):
        parts = (output / "manifest").names(".parquet")
        shards = {stage: (output / stage).names(".parquet") for stage in task.stages}
    if not parts:
        faults.add(f"{output.uri}/manifest: holds no images")
    for name in (part_name(number) for number in range(len(parts))):
        if name not in parts:
            faults.add(f"{output.uri}/manifest/{name}: is missing, parts are numbered from 0")
    for stage, names in shards.items():
        for name in sorted({*names} - {*parts}):
            faults.add(f"{output.uri}/{stage}/{name}: the manifest has no part of this name")
    if not parts:
        return
    with Progress("verify", len(parts), unit="parts") as progress:
        for number, result in enumerate(map_parts(task, parts), 1):
            yield json.loads(result["found"])
            progress.reach(number, counted(faults.count, "fault"))


def _take(findings: Findings, result: dict[str, Any], catalogue: Catalogue, output: int) -> None:
    """Add what was found in a part."""
    findings.images += result["images"]
    findings.faults.merge(*result["faults"])
    for stage, counts in result["stages"].items():
        findings.stages[stage].add(Counts(*counts))
    for image_id, digests in result["rows"]:
        if there := catalogue.add(output, result["part"], image_id, digests):
            places = " and in ".join(sorted((there, result["part"])))
            line = f"{findings.uri}/manifest: {image_id!r} is in {places}; ids must be unique"
            findings.faults.add(line, places)


def command(output: Folder, run: Row, stage: str) -> str:
    """Command that continues a stage of an output."""
    images = source_option(str(run.get("source", "IMAGES")))
    where = f"--output {shlex.quote(output.uri)}"
    if stage == "pseudo_labels":
        return f"saff label {images} {where}"
    if stage != "predictions":
        return f"saff run {images} {where}"
    new = f" --network RUN {images}" if "network" in run else ""
    return f"saff reinfer {where}{new}"


# run.json


def description(folder: Folder) -> tuple[Row, str]:
    """Read the run.json of an output, or of a stage in it.

    Returns
    -------
    run : dict
        Its content; empty if it is damaged.
    fault : str
        What is wrong with it; empty if nothing is.
    """
    with reaching(folder.uri):
        text = folder.read("run.json") if folder.exists("run.json") else None
    if text is None:
        return {}, "is missing"
    try:
        run = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {}, f"is damaged: {error}"
    if not isinstance(run, dict):
        return {}, "is damaged: expected a JSON object"
    content = {name: value for name, value in run.items() if name not in ("digest", "source")}
    if run.get("digest") != with_digest(content)["digest"]:
        return run, "has a digest that is not that of its content: one of them was changed"
    return run, ""


def description_faults(
    output: Folder, stages: Sequence[str], network: Folder | None = None
) -> Iterator[str]:
    """What is wrong with the run.json of an output, and with those of its stages."""
    if fault := description(output)[1]:
        yield f"{output.uri}/run.json: {fault}"
    for stage in stages:
        home, _, name = stage.rpartition("/")
        if name == "predictions":
            round_of = output / home if home else output
            yield from _round_faults(output, round_of, None if home else network)
        elif name == "labels":
            yield from _label_faults(output / home)


def _round_faults(output: Folder, home: Folder, network: Folder | None) -> Iterator[str]:
    """What is wrong with the run.json of a round's network, and of its predictions."""
    trained, predictions = home / "network", home / "predictions"
    for folder in (trained, predictions):
        with reaching(folder.uri):
            if not folder.names(""):  # whatever is in it
                continue
        run, fault = description(folder)
        if fault:
            yield f"{folder.uri}/run.json: {fault}"
        if folder == predictions:
            yield from _network_faults(run, predictions, trained, network)
        elif not fault:
            yield from _learning_faults(run, trained, output)


def _learning_faults(run: Row, trained: Folder, output: Folder) -> Iterator[str]:
    """Whether a network has learnt from the labels that are there."""
    labels = run.get("labels")
    stage = labels.get("stage") if isinstance(labels, dict) else None
    if not (isinstance(stage, str) and LABELS.fullmatch(stage)):
        yield f"{trained.uri}/run.json: does not say which labels the network has learnt from"
        return
    there, fault = description(output if stage == "pseudo_labels" else output / stage)
    if not fault and run["labels"].get("digest") != there["digest"]:
        yield f"{trained.uri}/run.json: the network has not learnt from the {stage} that are there"


def _label_faults(home: Folder) -> Iterator[str]:
    """What is wrong with the run.json of labels made of predictions, and whether of those there."""
    labels, predictions = home / "labels", home / "predictions"
    run, fault = description(labels)
    there, other = description(predictions)
    if fault:
        yield f"{labels.uri}/run.json: {fault}"
    elif not other and run.get("predictions") != there["digest"]:
        yield f"{labels.uri}/run.json: the labels are not of the predictions {predictions.uri}"


def _network_faults(
    run: Row, predictions: Folder, trained: Folder, network: Folder | None
) -> Iterator[str]:
    """Whether predictions are those of the network that is there."""
    folder = network / "network" if network else trained
    with reaching(folder.uri):
        if not folder.exists(WEIGHTS):
            if network:
                raise SettingsError(f"there is no trained network at {folder.uri}")
            return
    with on_disk(folder, WEIGHTS) as path, open(path, "rb") as file:
        whole = hashlib.sha256()
        while chunk := file.read(2**20):
            whole.update(chunk)
    if run.get("network") != whole.hexdigest():
        yield (
            f"{predictions.uri}/run.json: the predictions are not of the network "
            f"{folder.uri}/{WEIGHTS}"
        )


# Two outputs


def _difference(
    image_id: str, catalogue: Catalogue, outputs: Sequence[Folder], stages: Sequence[str]
) -> str:
    """In what an image differs between two outputs."""
    places = catalogue.find(image_id)
    if len(places) == 1:
        (there,) = places
        return f"{image_id!r} is not in {outputs[1 - there].uri}"
    told = []
    for number, stage in enumerate(stages):
        one, other = (places[output][1][number] for output in (0, 1))
        if one and other and one != other:
            found = [
                _content(folder / stage, places[output][0], image_id, schema_of(stage))
                for output, folder in enumerate(outputs)
            ]
            told.append(f"{stage} differ in {', '.join(differing_columns(*found))}")
        elif one != other:
            lacking = outputs[0 if other else 1]
            told.append(f"{stage} are not in {lacking.uri}")
    return f"{image_id!r}: {'; '.join(told)}"


def _content(folder: Folder, part: str, image_id: str, schema: pa.Schema) -> Row:
    rows = stored_rows(folder, part, schema)
    return next(examine(row)[0] for row in rows if row["image_id"] == image_id)


def differing_columns(one: Row, other: Row) -> list[str]:
    """Columns, but for ``uri``, in which two rows differ."""
    return [n for n in one if digest({n: one[n]}) != digest({n: other[n]})]
