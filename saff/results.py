"""What people take out of a run: single pictures, evaluation against masks, the report."""

import hashlib
import json
import posixpath
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import cv2
import numpy as np

from saff import images, metrics, report
from saff.arrays import AnyArray, Image
from saff.errors import SettingsError
from saff.storage import (
    Folder,
    Row,
    count_rows,
    is_safe_id,
    reaching,
    read_bytes,
    read_rows,
    read_run,
)

What = Literal["mask", "confidence", "overlay", "cutout"]
TruthFormat = Literal["voc", "binary"]
OVERLAY_COLOUR = (255, 40, 120)  # RGB
OVERLAY_OPACITY = 0.55


def rows_of(output: Folder, stage: str, columns: list[str] | None = None) -> Iterator[Row]:
    """Rows of a stage, shard by shard.

    Raises
    ------
    SettingsError
        If the output is no run, or the stage holds nothing yet.
    """
    read_run(output)
    names = (output / stage).names(".parquet")
    if not names:
        raise SettingsError(f"{output.uri} has no {stage} yet; run that job first")
    return (row for name in names for row in read_rows(output / stage, name, columns))


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
        Files written; images without a result, whose file is not the one that was labelled, or
        whose id (an object's key can be ``a//b``) is no path inside a folder.

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
        image = original(row) if usable and needs_image else None
        if not usable or (needs_image and image is None):
            left_out += 1
            continue
        drawn = to_png(picture(what, _map(row, "confidence"), image))
        path = export_path(to, image_id, keep_extension=names[_stem(image_id)] > 1)
        with reaching(str(path)):
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


def _stem(image_id: str) -> str:
    """Id without the extension of its last part: ``a.b/cat.jpg`` gives ``a.b/cat``."""
    return posixpath.splitext(image_id)[0]


def _names(rows: Iterator[Row]) -> Counter[str]:
    """How many images could be named so, with their extension or without."""
    return Counter(name for row in rows for name in {row["image_id"], _stem(row["image_id"])})


def original(row: Row) -> Image | None:
    """Image of a labelled row, or None where its file is gone or not the one that was labelled."""
    try:
        data = read_bytes(row["uri"])
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    if row["sha256"] != hashlib.sha256(data).hexdigest():
        return None
    return images.decode(data, max_pixels=row["height"] * row["width"])


def _map(row: Row, column: str) -> AnyArray:
    """Decode one of a row's maps; as large as its image, whatever limit the run had."""
    return images.decode_png(row[column], max_pixels=row["height"] * row["width"])


def to_png(drawn: AnyArray) -> bytes:
    """Encode a picture of 1, 3 (RGB) or 4 (RGBA) channels as PNG."""
    if drawn.ndim == 3 and drawn.shape[2] == 4:
        return bytes(cv2.imencode(".png", cv2.cvtColor(drawn, cv2.COLOR_RGBA2BGRA))[1])
    return images.encode_png(drawn)


# Evaluation


def evaluate(
    output: Folder, truth: str, truth_format: TruthFormat, stage: str, *, normalise: bool = True
) -> dict[str, Any]:
    """Measure a stage against masks; writes ``evaluation/STAGE/metrics.json`` and the curve.

    Parameters
    ----------
    output : Folder
        A run.
    truth : str
        Folder or prefix of PNG masks, named by the image's id or its last part, without extension.
    truth_format : {"voc", "binary"}
        See :func:`saff.metrics.read_truth`.
    stage : str
        ``"pseudo_labels"`` or ``"predictions"``.
    normalise : bool
        Stretch each map to 0..255 first.

    Returns
    -------
    summary : dict
        As in metrics.json; ``failed`` and ``without_truth`` count images that were left out.

    Raises
    ------
    SettingsError
        If no image has truth, or a mask cannot be read or has another size than its image.
    """
    masks = Folder.at(truth)
    with reaching(truth):
        available = {p[len(masks.path) + 1 :] for p in masks.fs.find(masks.path)}
    if not available:
        raise SettingsError(f"no masks at {truth}")
    evaluation = metrics.Evaluation(normalise=normalise)
    failed = without_truth = 0
    for row in rows_of(output, stage, ["image_id", "height", "width", "confidence"]):
        stem = _stem(row["image_id"])
        names = (f"{stem}.png", f"{PurePosixPath(stem).name}.png")
        name = next((n for n in names if n in available), None)
        if row["confidence"] is None:
            failed += 1
        elif name is None:
            without_truth += 1
        else:
            with reaching(f"mask {name} of {truth}"):
                data = masks.read(name)
            try:
                mask, valid = metrics.read_truth(data, truth_format)
                evaluation.add(_map(row, "confidence"), mask, valid)
            except ValueError as error:
                raise SettingsError(f"mask {name} of {truth}: {error}") from error
    if not evaluation.images:
        raise SettingsError(
            f"nothing to measure: {without_truth} images have no mask in {truth}, {failed} failed, "
            f"{evaluation.skipped} have a mask without foreground; masks are PNG files named like "
            "the images"
        )
    summary = evaluation.summary() | {"failed": failed, "without_truth": without_truth}
    curve, folder = evaluation.curve(), output / "evaluation" / stage
    with reaching(folder.uri):
        folder.write("metrics.json", (json.dumps(summary, indent=2) + "\n").encode())
        folder.write("curve.csv", metrics.curve_csv(curve).encode())
        folder.write("curve.svg", metrics.curve_svg({stage.replace("_", " "): curve}).encode())
    return summary


# Report


def write_report(output: Folder, *, max_cards: int = 200) -> str:
    """Write ``report/index.html``.

    Parameters
    ----------
    output : Folder
        A run.
    max_cards : int
        Images drawn at most, spread evenly over those that are labelled.

    Returns
    -------
    uri : str
        Where the page is.
    """
    run = read_run(output)
    stage = output / "pseudo_labels"
    failures = []
    count = 0
    for row in rows_of(output, "pseudo_labels", ["image_id", "error", "error_kind"]):
        count += 1
        if row["error_kind"] is not None:
            failures.append(report.Failure(**row))
    totals = {"images": count, "labelled": count - len(failures), "failed": len(failures)}
    page = report.render(
        _cards(stage, max(1, -(-totals["labelled"] // max_cards))),
        failures,
        title=PurePosixPath(output.path).name,
        run={key: run.get(key) for key in ("saff", "digest", "config")},
        totals=totals,
        max_cards=max_cards,
    )
    folder = output / "report"
    with reaching(folder.uri):
        folder.write("index.html", page.encode())
    return folder.uri + "/index.html"


def _cards(stage: Folder, step: int) -> Iterator[report.Card]:
    """Every ``step``-th labelled image, but for those that are no longer there."""
    start = 0
    for name in stage.names(".parquet"):
        count, failed = count_rows(stage, name)
        wanted = range(-start % step, count - failed, step)
        start += count - failed
        if not wanted:
            continue  # a large run is not read for a few cards
        labelled = (row for row in read_rows(stage, name) if row["error_kind"] is None)
        for row in islice(labelled, wanted.start, None, step):
            image = original(row)
            if image is not None:
                yield _card(row, image)


def _card(row: Row, image: Image) -> report.Card:
    return report.Card(
        image_id=row["image_id"],
        image=image,
        confidence=_map(row, "confidence"),
        superpixels=_map(row, "superpixels").astype(np.int32),
        features=np.asarray(row["features"], dtype=np.float64).reshape(-1, 4),
        weights=row["weights"],
        seeds_foreground=row["seeds_foreground"],
        seeds_background=row["seeds_background"],
        fallback=row["fallback"],
    )
