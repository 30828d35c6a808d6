"""What people take out of a run: single pictures, evaluation against masks, the report."""

import csv
import io
import json
import posixpath
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice, takewhile
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

import cv2
import numpy as np

from saff import images, metrics, report
from saff.arrays import AnyArray, Image
from saff.errors import SettingsError
from saff.evaluation import evaluate as evaluate
from saff.ids import is_safe_id
from saff.layout import run_file
from saff.retries import FINAL_CODES, error_code
from saff.rows import decode_map, original
from saff.runs import read_run, stage_digest
from saff.shards import Row, count_rows, read_all_rows
from saff.storage import Folder, read_each, with_brief_retries

What = Literal["mask", "confidence", "overlay", "cutout"]
Stage: TypeAlias = Literal["pseudo_labels", "predictions"]
TruthFormat = Literal["voc", "binary"]
PREDICTED = ["image_id", "sha256", "height", "width", "confidence", "error_kind"]
OVERLAY_COLOUR = (255, 40, 120)  # RGB
OVERLAY_OPACITY = 0.55


def rows_of(output: Folder, stage: str, columns: list[str] | None = None) -> Iterator[Row]:
    """Rows of a stage, shard by shard.

    Raises
    ------
    SettingsError
        If the output is no run, or the stage holds nothing yet.
    """
    names = shards_of(output, stage)
    return (row for name in names for row in read_all_rows(output / stage, name, columns))


def shards_of(output: Folder, stage: str) -> list[str]:
    """Names of the shards of a stage; errors as of :func:`rows_of`."""
    read_run(output)
    names = (output / stage).names(".parquet")
    if not names:
        raise SettingsError(f"{output.uri} has no {stage} yet; run that job first")
    return names


# Pictures


def picture(what: What, confidence: AnyArray, image: Image | None = None) -> AnyArray:
    """Draw one result.

    Parameters
    ----------
    what : {"mask", "confidence", "overlay", "cutout"}
        Mask as 0 and 255; confidence as 0..255; the image with its foreground tinted and outlined;
        the image with the confidence as its alpha channel.
    confidence : uint8 array of shape (H, W)
        0..255; foreground from 128 on.
    image : uint8 array of shape (H, W, 3), optional
        RGB; needed for the last two.

    Returns
    -------
    drawn : uint8 array of shape (H, W), (H, W, 3) or (H, W, 4)
        As large as the image.
    """
    mask = confidence >= metrics.HALF
    if what == "mask":
        return mask.astype(np.uint8) * 255
    if what == "confidence":
        return confidence
    if image is None or image.shape[:2] != confidence.shape:
        raise ValueError(f"a {what} needs the image, in the size of its confidence map")
    if what == "cutout":
        return np.dstack([image, confidence])
    tinted = image.astype(np.float32)
    tinted[mask] += OVERLAY_OPACITY * (np.asarray(OVERLAY_COLOUR, np.float32) - tinted[mask])
    tinted[~mask] *= 1 - OVERLAY_OPACITY
    drawn = np.rint(tinted).astype(np.uint8)
    outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(max(mask.shape) / 400))
    return cv2.drawContours(drawn, outline, -1, (255, 255, 255), width)


def export(output: Folder, to: Path, what: What, stage: str = "pseudo_labels") -> tuple[int, int]:
    """Write one PNG per image, named by its id, into a folder.

    Parameters
    ----------
    output : Folder
        A run.
    to : Path
        Made if it is not there; nothing is written outside it.
    what : {"mask", "confidence", "overlay", "cutout"}
        See :func:`picture`.
    stage : str
        ``"pseudo_labels"`` or ``"predictions"``.

    Returns
    -------
    written, left_out : int
        Files written; images without a result, whose file is not the one that was labelled or may
        not be read, or whose id (an object's key can be ``a//b``) is no path inside a folder.

    Raises
    ------
    SettingsError
        If the output is no run, the stage is empty, or the folder cannot be written to or links to
        another place.
    """
    written = left_out = 0
    names = _names(rows_of(output, stage, ["image_id"]))
    needs_image = what in ("overlay", "cutout")
    columns = ["image_id", "uri", "sha256", "height", "width", "confidence"]
    for row in rows_of(output, stage, columns):
        image_id = row["image_id"]
        usable = row["confidence"] is not None and is_safe_id(image_id)
        image = seen(row) if usable and needs_image else None
        if not usable or (needs_image and image is None):
            left_out += 1
            continue
        drawn = to_png(picture(what, decode_map(row, "confidence"), image))
        path = export_path(to, image_id, keep_extension=names[_stem(image_id)] > 1)
        with with_brief_retries(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(drawn)
        written += 1
    return written, left_out


def export_path(to: Path, image_id: str, *, keep_extension: bool = False) -> Path:
    """Path of an image's picture inside a folder: its id with ``.png`` for its extension.

    Parameters
    ----------
    to : Path
        The folder.
    image_id : str
        Path of the image below the images root.
    keep_extension : bool
        ``cat.jpg`` gives ``cat.jpg.png``, for images that share their stem with another.

    Raises
    ------
    SettingsError
        If the id leads outside the folder, by itself or through a link.
    """
    if not is_safe_id(image_id):
        raise SettingsError(f"image_id {image_id!r} is not a relative path without '..'")
    path = to / PurePosixPath(image_id if keep_extension else _stem(image_id))
    path = path.with_name(path.name + ".png")
    if not path.resolve().is_relative_to(to.resolve()):
        raise SettingsError(f"image_id {image_id!r} leads outside {to}: remove the link in it")
    return path


def seen(row: Row) -> Image | None:
    """Image of a row; None where its file is gone, another one, or not for us to read any more."""
    try:
        return original(row)
    except PermissionError:
        return None
    except OSError as error:
        if error_code(error) in FINAL_CODES:  # a signature that has expired, say
            return None
        raise


def _stem(image_id: str) -> str:
    """Id without the extension of its last part: ``a.b/cat.jpg`` gives ``a.b/cat``."""
    return posixpath.splitext(image_id)[0]


def _names(rows: Iterator[Row]) -> Counter[str]:
    """How many images could be named so, with their extension or without."""
    return Counter(name for row in rows for name in {row["image_id"], _stem(row["image_id"])})


def to_png(drawn: AnyArray) -> bytes:
    """Encode a picture of 1, 3 (RGB) or 4 (RGBA) channels as PNG."""
    if drawn.ndim == 3 and drawn.shape[2] == 4:
        return bytes(cv2.imencode(".png", cv2.cvtColor(drawn, cv2.COLOR_RGBA2BGRA))[1])
    return images.encode_png(drawn)


# Report


def write_report(output: Folder, *, max_cards: int = 200) -> str:
    """Write ``report/index.html``.

    Parameters
    ----------
    output : Folder
        A run.  One that has only predictions gets a report of these.
    max_cards : int
        Images drawn at most, spread evenly over those that have a result.

    Returns
    -------
    uri : str
        Where the page is.
    """
    run = read_run(output)
    predictions = output / "predictions"
    predicted = predictions.names(".parquet")
    labels = (output / "pseudo_labels").names(".parquet")
    stage: Stage = "pseudo_labels" if labels or not predicted else "predictions"
    names = shards_of(output, stage)
    counts = dict(zip(names, read_each(count_rows, output / stage, names), strict=True))
    total, failed = (sum(column) for column in zip(*counts.values(), strict=True))
    found = total - failed
    facts: Row
    if stage == "predictions":
        totals = {"images": total, "predicted": found, "failed": failed}
        facts = {key: run[key] for key in ("saff", "digest", "network") if key in run}
    else:
        totals = {"images": total, "labelled": found, "failed": failed}
        facts = {key: run.get(key) for key in ("saff", "digest", "config")}
        if predicted:
            both = read_each(count_rows, predictions, predicted)
            totals["predicted"] = sum(rows - bad for rows, bad in both)
    for folder, key in ((output / "network", "training"), (predictions, "inference")):
        if folder.exists(run_file(folder)):
            facts[key] = read_run(folder).get(key)
    page = report.render(
        _cards(output, stage, max(1, -(-found // max_cards))),
        _failures(output / stage, [name for name in names if counts[name][1]]),
        title=PurePosixPath(output.path).name,
        run=facts,
        totals=totals,
        stage=stage,
        measured=_measured(output),
        trainings=_trainings(output),
        max_cards=max_cards,
    )
    folder = output / "report"
    with with_brief_retries(folder.uri):
        folder.write("index.html", page.encode())
    return folder.uri + "/index.html"


def _failures(shards: Folder, names: list[str]) -> Iterator[report.Failure]:
    for name in names:
        for row in read_all_rows(shards, name, ["image_id", "error", "error_kind"]):
            if row["error_kind"] is not None:
                yield report.Failure(**row)


def _cards(output: Folder, stage: Stage, step: int) -> Iterator[report.Card]:
    """Every ``step``-th image with a result, but for those that are no longer there."""
    shards, predictions = output / stage, output / "predictions"
    both = set(predictions.names(".parquet")) if stage == "pseudo_labels" else set()
    start = 0
    for name in shards.names(".parquet"):
        rows, failed = count_rows(shards, name)
        wanted = range(-start % step, rows - failed, step)
        start += rows - failed
        if not wanted:
            continue  # a large run is not read for a few cards
        others = read_all_rows(predictions, name, PREDICTED) if name in both else []
        pairs = _beside(iter(read_all_rows(shards, name)), iter(others))
        usable = (pair for pair in pairs if pair[0]["error_kind"] is None)
        for row, other in islice(usable, wanted.start, None, step):
            image = seen(row)
            if image is not None:
                yield _card(row, image, other, stage)


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


def _card(row: Row, image: Image, predicted: Row | None, stage: Stage) -> report.Card:
    """Card of an image; beside a label, a prediction counts if it is of the same file."""
    if stage == "predictions":
        prediction = decode_map(row, "confidence")
        return report.Card(image_id=row["image_id"], image=image, prediction=prediction)
    label = report.Label(
        confidence=decode_map(row, "confidence"),
        superpixels=decode_map(row, "superpixels").astype(np.int32),
        features=np.asarray(row["features"], dtype=np.float64).reshape(-1, 4),
        weights=row["weights"],
        seeds_foreground=row["seeds_foreground"],
        seeds_background=row["seeds_background"],
        fallback=row["fallback"],
        quality=row.get("quality"),
    )
    same = predicted and predicted["error_kind"] is None and predicted["sha256"] == row["sha256"]
    return report.Card(
        image_id=row["image_id"],
        image=image,
        label=label,
        prediction=decode_map(predicted, "confidence") if predicted and same else None,
    )


def _measured(output: Folder) -> dict[str, report.Measured]:
    """What evaluating each stage gave, for those stages that were evaluated as they are now."""
    measured = {}
    for stage in ("pseudo_labels", "predictions"):
        folder = output / "evaluation" / stage
        if not (folder.exists("metrics.json") and folder.exists("curve.csv")):
            continue
        columns = _columns(folder, "curve.csv", ["precision", "recall"])
        with _parsing(folder, "metrics.json") as text:
            summary = json.loads(text)
            curve = metrics.Curve(**columns, beta_squared=summary["beta_squared"])
            if summary.get("digest", now := stage_digest(output, stage)) != now:
                continue  # of a network that was trained again, say
        measured[stage] = report.Measured(curve=curve, summary=summary)
    return measured


def _trainings(output: Folder) -> dict[str, dict[str, AnyArray]]:
    """The steps of each round of training; ``network`` holds the last of them, or the only one."""
    rounds = (output / "rounds" / str(number) / "network" for number in count(1))
    folders = list(takewhile(_has_steps, rounds))
    named = {f"round {number}": folder for number, folder in enumerate(folders, 1)}
    if _has_steps(output / "network"):
        named[f"round {len(named) + 1}" if named else "network"] = output / "network"
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
    """Give a file's text; what the block raises over it becomes a SettingsError that names it."""
    with with_brief_retries(f"{folder.uri}/{name}"):
        text = folder.read(name).decode("utf-8", "replace")
    try:
        yield text
    except (LookupError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise SettingsError(f"{folder.uri}/{name} is damaged: {why}") from error
