"""The report of a stored run: from an output to the page, in the output or elsewhere."""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice, takewhile
from pathlib import PurePosixPath

import numpy as np

from saff import layout, metrics
from saff.access import ANYTHING, Access
from saff.arrays import AnyArray, Image
from saff.errors import SettingsError, StorageError
from saff.kept import BY_DEFAULT, require_columns
from saff.layout import PART_SUFFIX, Stage, run_file
from saff.overwriting import refuse_inputs
from saff.photographs import Photographs
from saff.report.cards import Card, Label
from saff.report.page import Failure, Measured, render_page
from saff.rows import decode_map, has_foreground, parts_of
from saff.runs import read_run, stage_digest
from saff.shards import Row, count_rows, read_all_rows
from saff.storage import NO_FILE, Folder, read_each, with_brief_retries

PREDICTED = [
    *("image_id", "sha256", "height", "width", "confidence"),
    *("quality", "foreground_found", "error_kind"),
]
PAGE = "index.html"
MARK = b" \xc2\xb7 saff report</title>"  # in every page, and in nothing that is not ours


@dataclass(frozen=True, slots=True)
class StoredReport:
    """Where a report is, and what it does not show."""

    uri: str
    """Path or URI of the page."""
    lost_photographs: str
    """How many photographs were chosen and could not be shown, and why; empty if all were."""


def write_report(
    output: Folder, *, to: str | None = None, max_cards: int = 200, access: Access = ANYTHING
) -> StoredReport:
    """Write the report of a run.

    Parameters
    ----------
    output : Folder
        A run.  One that has only predictions gets a report of these.
    to : str, optional
        Where to write it: a file whose name ends in ``.html``, or a folder or prefix, which gets
        ``index.html``; default: the folder ``report`` of the output.
    max_cards : int
        Images drawn at most, spread evenly over those that have a result.  Those whose photograph
        is lost are left out.
    access : Access
        What the addresses of the images may name.

    Returns
    -------
    report : StoredReport
        Where the page is.

    Raises
    ------
    SettingsError
        If the output is no run or has no results, or ``to`` names a file that is no report.
    StorageError
        If the page cannot be written, or what the run holds is damaged.
    """
    run = read_run(output)
    predictions = output / Stage.PREDICTIONS
    predicted = predictions.names(PART_SUFFIX)
    labels = (output / Stage.PSEUDO_LABELS).names(PART_SUFFIX)
    stage = Stage.PSEUDO_LABELS if labels or not predicted else Stage.PREDICTIONS
    names = parts_of(output, stage)
    require_columns(output, stage, BY_DEFAULT, "a report")
    folder, name = _place(output, stage, to)
    counts = dict(zip(names, read_each(count_rows, output / stage, names), strict=True))
    total, failed = (sum(column) for column in zip(*counts.values(), strict=True))
    found = total - failed
    facts: Row
    if stage == Stage.PREDICTIONS:
        totals = {"images": total, "predicted": found, "failed": failed}
        facts = {key: run[key] for key in ("saff", "digest", "network") if key in run}
    else:
        totals = {"images": total, "labelled": found, "failed": failed}
        facts = {key: run.get(key) for key in ("saff", "digest", "config")}
        if predicted:
            both = read_each(count_rows, predictions, predicted)
            totals["predicted"] = sum(rows - bad for rows, bad in both)
    for home, key in ((layout.network(output), "training"), (predictions, "inference")):
        if home.exists(run_file(home)):
            facts[key] = read_run(home).get(key)
    photographs = Photographs(access)
    page = render_page(
        _cards(output, stage, max(1, -(-found // max_cards)), photographs),
        _failures(output / stage, [name for name in names if counts[name][1]]),
        title=PurePosixPath(output.path).name,
        run=facts,
        totals=totals,
        stage=stage,
        measured=_measured(output),
        trainings=_trainings(output),
        lost_photographs=photographs.describe,
        max_cards=max_cards,
    )
    try:
        with with_brief_retries(folder.uri):
            folder.write(name, page.encode())
    except StorageError as error:
        elsewhere = "another place" if to else "a place that can be written"
        raise StorageError(f"{error}; name {elsewhere} for the report with --to") from error
    return StoredReport(f"{folder.uri}/{name}", photographs.describe())


def _place(output: Folder, stage: Stage, to: str | None) -> tuple[Folder, str]:
    """Folder and name of the page; a file that is no report is not replaced."""
    own = layout.report(output)
    if to is None or to.rstrip("/") == own.uri:
        return own, PAGE
    folder, name = Folder.at(to), PAGE
    if to.lower().endswith((".html", ".htm")):
        path, _, name = folder.path.rpartition("/")
        folder = Folder(folder.fs, path or "/")
    refuse_inputs(output, stage, lambda: [f"{folder.uri}/{name}"])
    with with_brief_retries(to):
        try:
            there = folder.read(name)
        except NO_FILE:
            there = None
    if there is not None and MARK not in there:
        raise SettingsError(
            f"{folder.uri}/{name} exists and is no report of saff; name another place with --to"
        )
    return folder, name


def _failures(results: Folder, names: list[str]) -> Iterator[Failure]:
    for name in names:
        for row in read_all_rows(results, name, ["image_id", "error", "error_kind"]):
            if row["error_kind"] is not None:
                yield Failure(**{key: value or "" for key, value in row.items()})


def _cards(output: Folder, stage: Stage, step: int, photographs: Photographs) -> Iterator[Card]:
    """Every ``step``-th image with a result, but for those whose photograph is lost."""
    results, predictions = output / stage, output / Stage.PREDICTIONS
    both = set(predictions.names(PART_SUFFIX)) if stage == Stage.PSEUDO_LABELS else set()
    start = 0
    for name in results.names(PART_SUFFIX):
        rows, failed = count_rows(results, name)
        wanted = range(-start % step, rows - failed, step)
        start += rows - failed
        if not wanted:
            continue  # a large run is not read for a few cards
        others = read_all_rows(predictions, name, PREDICTED) if name in both else []
        pairs = _beside(iter(read_all_rows(results, name)), iter(others))
        usable = (pair for pair in pairs if pair[0]["error_kind"] is None)
        for row, other in islice(usable, wanted.start, None, step):
            image = photographs.read(row)
            if image is not None:
                with _checked(row, results, name):
                    card = _card(row, image, other, stage)
                yield card


@contextmanager
def _checked(row: Row, results: Folder, name: str) -> Iterator[None]:
    """Turn what does not fit in a stored row into a StorageError that names it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise StorageError(
            f"the row of {row['image_id']} in {results.uri}/{name} is damaged: {error}; remove "
            "that file, and the job that made it makes it again"
        ) from error


def _beside(rows: Iterator[Row], others: Iterator[Row]) -> Iterator[tuple[Row, Row | None]]:
    """Each row and another stage's for the same image, or None where that stage has none.

    The rows of both come in the order of the manifest, so that one of each is held.
    """
    other = next(others, None)
    for row in rows:
        if other is not None and other["image_id"] == row["image_id"]:
            yield row, other
            other = next(others, None)
        else:
            yield row, None


def _card(row: Row, image: Image, predicted: Row | None, stage: Stage) -> Card:
    """Card of an image; beside a label, a prediction counts if it is of the same file."""
    if stage == Stage.PREDICTIONS:
        return Card(image_id=row["image_id"], image=image, **_predicted(row))
    label = Label(
        confidence=decode_map(row, "confidence"),
        superpixels=decode_map(row, "superpixels").astype(np.int32),
        features=np.asarray(row["features"], dtype=np.float64).reshape(-1, 4),
        weights=row["weights"],
        seeds_foreground=int(row["seeds_foreground"]),
        seeds_background=int(row["seeds_background"]),
        fallback=row["fallback"] or "",
        quality=row.get("quality"),
    )
    same = predicted and predicted["error_kind"] is None and predicted["sha256"] == row["sha256"]
    return Card(
        image_id=row["image_id"],
        image=image,
        label=label,
        **(_predicted(predicted) if predicted and same else {}),
    )


def _predicted(row: Row) -> Row:
    """Fields of a card that come from a row of predictions."""
    return {
        "prediction": decode_map(row, "confidence"),
        "prediction_quality": row["quality"],
        "foreground_found": has_foreground(row),
    }


def _measured(output: Folder) -> dict[str, Measured]:
    """What evaluating each stage gave, for those stages that were evaluated as they are now."""
    measured = {}
    for stage in Stage:
        folder = layout.evaluation(output, stage)
        if not (folder.exists("metrics.json") and folder.exists("curve.csv")):
            continue
        columns = _columns(folder, "curve.csv", ["precision", "recall"])
        with _parsing(folder, "metrics.json") as text:
            summary = json.loads(text)
            curve = metrics.Curve(**columns, beta_squared=float(summary["beta_squared"]))
            figures = Measured.from_summary(curve, summary)
        now = stage_digest(output, stage)
        if summary.get("digest", now) == now:  # not of a network that was trained again, say
            measured[stage.value] = figures
    return measured


def _trainings(output: Folder) -> dict[str, dict[str, AnyArray]]:
    """The steps of each round of training; ``network`` holds the last of them, or the only one."""
    rounds = (output / "rounds" / str(number) / "network" for number in count(1))
    folders = list(takewhile(_has_steps, rounds))
    named = {f"round {number}": folder for number, folder in enumerate(folders, 1)}
    if _has_steps(layout.network(output)):
        named[f"round {len(named) + 1}" if named else "network"] = layout.network(output)
    wanted = ["step", "loss", "accuracy", "samples", "seconds"]
    return {name: _columns(folder, "metrics.csv", wanted) for name, folder in named.items()}


def _has_steps(folder: Folder) -> bool:
    return folder.exists("metrics.csv")


def _columns(folder: Folder, name: str, wanted: list[str]) -> dict[str, AnyArray]:
    """Some columns of a CSV file of numbers."""
    with _parsing(folder, name) as text:
        rows = list(csv.DictReader(io.StringIO(text)))
        return {key: np.asarray([float(row[key]) for row in rows]) for key in wanted}


@contextmanager
def _parsing(folder: Folder, name: str) -> Iterator[str]:
    """Give a file's text; what the block raises over it becomes a StorageError that names it."""
    with with_brief_retries(f"{folder.uri}/{name}"):
        text = folder.read(name).decode("utf-8", "replace")
    try:
        yield text
    except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise StorageError(
            f"{folder.uri}/{name} is damaged: {why}; put back a copy of it, or remove it"
        ) from error
