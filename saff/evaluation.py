"""Measuring a stage of a run against true masks: parts one by one or spread over a cluster.

First masks and images are listed, and those without a counterpart are counted.  Then each part
gives sums of a fixed size; the sums of all parts add up to the same result in any order.
"""

import heapq
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from saff import layout, metrics
from saff.errors import SettingsError
from saff.images import DEFAULT_MAX_PIXELS
from saff.kept import require_columns
from saff.layout import PART_SUFFIX
from saff.metrics import HALF, Evaluation, Measures
from saff.rows import decode_map, has_foreground, with_answer
from saff.runs import read_run, stage_digest
from saff.shards import Row, read_all_rows, read_rows
from saff.storage import Folder, read_each, with_brief_retries
from saff.truth import Masks, TruthFormat, read_mask

COLUMNS = ["image_id", "height", "width", "confidence"]
WAVE_BYTES = 32 * 2**20  # of names of masks, sent to the cluster at a time
# What a part counts, and what it is called in metrics.json below nothing_found
EMPTY_MASKS = {"empty_masks": "images", "rightly_empty": "without_foreground"}
NAMED = 5  # of the masks at fault
FIRST = 3  # of what is left out

REASONS = {
    "failed": "that failed",
    "no_mask": "without a mask",
    "mask_not_read": "whose mask has a format that is not read (expected PNG, BMP, GIF or TIFF)",
    "mask_in_conflict": "with a shared mask or several",
    "no_foreground": "whose mask has no foreground",
}
"""Why images are left out: names in metrics.json, and the words for them."""


class Named(NamedTuple):
    """Something left out, in the order of parts and rows.

    Attributes
    ----------
    part, row : str, int
        Where it is.
    name, reason : str
        What it is, and perhaps why.
    """

    part: str
    row: int
    name: str
    reason: str = ""


@dataclass(slots=True)
class LeftOut:
    """Number of things left out, and the first few of them whatever the order of counting."""

    count: int = 0
    first: list[Named] = field(default_factory=list)

    def add(self, named: Named) -> None:
        """Count one more."""
        self.merge(LeftOut(1, [named]))

    def merge(self, other: "LeftOut") -> None:
        """Count those of another part, too."""
        self.count += other.count
        self.first = heapq.nsmallest(NAMED, [*self.first, *other.first])


@dataclass(frozen=True, slots=True)
class EvaluatePart:
    """Measure the images of one part; a callable that may run on a cluster.

    Attributes
    ----------
    output : Folder
        A run.
    stage : str
        Folder of the parts in it.
    masks : Folder
        Folder of the true masks.
    truth_format : str
        See :mod:`saff.truth`.
    normalise : bool
        Stretch each map to 0..255 first.
    measures : {"all", "f"}
        See :data:`saff.metrics.Measures`.
    """

    output: Folder
    stage: str
    masks: Folder
    truth_format: TruthFormat
    normalise: bool
    measures: Measures

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Measure the images of ``part`` whose mask ``masks`` names: JSON, null for no mask.

        Returns
        -------
        sums : dict
            The fields of an Evaluation, sums flattened; ``left_out``, JSON of counts and names;
            ``empty_masks`` and ``rightly_empty`` count images.
        """
        evaluation = Evaluation(normalise=self.normalise, measures=self.measures)
        out = _nothing("no_foreground", "size", "unreadable")
        empty = dict.fromkeys(EMPTY_MASKS, 0)
        columns = with_answer(COLUMNS, self.stage)
        images = read_all_rows(self.output / self.stage, row["part"], columns)
        for number, (image, mask) in enumerate(zip(images, json.loads(row["masks"]), strict=True)):
            if mask is not None:
                fault, reason = self._measure(evaluation, image, mask, empty)
                if fault:
                    out[fault].add(Named(row["part"], number, mask, reason))
        return {
            "left_out": json.dumps({name: [o.count, o.first] for name, o in out.items()}),
            "images": evaluation.images,
            "skipped": evaluation.skipped,
            "best_thresholds": evaluation.best_thresholds,
            **empty,
            **evaluation.sums,
        }

    def _measure(
        self, evaluation: Evaluation, image: Row, mask: str, empty: dict[str, int]
    ) -> tuple[str, str]:
        """Take an image in, or give the kind of fault that its mask has, and the reason."""
        shape = (image["height"], image["width"])
        limit = max(DEFAULT_MAX_PIXELS, shape[0] * shape[1])
        try:
            truth = read_mask(self.masks, mask, self.truth_format, max_pixels=limit)
        except SettingsError as error:
            return "unreadable", str(error)
        if truth.mask.shape != shape:
            (height, width), (rows, columns) = truth.mask.shape, shape
            return "size", f"it is {width} x {height}, its image {columns} x {rows}"
        skipped = evaluation.skipped
        confidence, found = decode_map(image, "confidence"), has_foreground(image)
        evaluation.add(confidence, truth.mask, truth.valid, foreground_found=found)
        without = evaluation.skipped > skipped
        if not (found and (confidence >= HALF).any()):
            empty["empty_masks"] += 1
            empty["rightly_empty"] += without
        return ("no_foreground" if without else "", "")


def _nothing(*reasons: str) -> dict[str, LeftOut]:
    return {reason: LeftOut() for reason in reasons}


def _add(whole: Evaluation, sums: dict[str, Any]) -> Evaluation:
    """Add the evaluation of a part, from what :class:`EvaluatePart` gives."""
    part = Evaluation(normalise=whole.normalise, measures=whole.measures)
    for name in ("images", "skipped", "best_thresholds"):
        setattr(part, name, int(sums[name]))
    part.sums = {name: np.asarray(sums[name], np.int64) for name in part.sums}
    return whole + part


Mapper: TypeAlias = Callable[[Any, list[Any]], Iterable[dict[str, Any]]]
"""Applies a task to parts, each a name or a row that holds the name as ``part``."""


def one_by_one(task: Callable[[Row], Row], parts: list[Any]) -> Iterable[dict[str, Any]]:
    """Apply a task to part after part in this process."""
    return (task({"part": part} if isinstance(part, str) else part) for part in parts)


def evaluate(
    output: Folder,
    truth: str,
    truth_format: TruthFormat,
    stage: str,
    *,
    normalise: bool = True,
    measures: Measures = "all",
    partial: bool = False,
    map_parts: Mapper = one_by_one,
) -> Row:
    """Measure a stage against masks; writes ``evaluation/STAGE/metrics.json`` and the curve.

    Parameters
    ----------
    output : Folder
        A run.
    truth : str
        Folder or prefix of masks, named as :class:`saff.truth.Masks` looks for them.
    truth_format : {"binary", "half", "voc", "nonzero", "alpha"}
        See :mod:`saff.truth`.
    stage : str
        ``"pseudo_labels"`` or ``"predictions"``.
    normalise : bool
        Stretch each map to 0..255 first.
    measures : {"all", "f"}
        See :data:`saff.metrics.Measures`.
    partial : bool
        Measure even if that is less than half of the images that have a result, and leave out
        images that would share a mask or have several.
    map_parts : callable
        Applies a task to parts: :func:`one_by_one`, or :func:`saff.cluster.map_parts` over a
        cluster, which gives the same to the last bit.

    Returns
    -------
    summary : dict
        As in metrics.json.  ``rows`` counts the images of the stage; ``left_out`` has a ``count``
        and the ``first`` three for each reason of :data:`REASONS` and for
        ``masks_without_image``; ``nothing_found`` counts the ``images`` whose mask is empty, and
        those of them that are ``without_foreground`` in truth, too; ``parts_to_do`` counts the
        parts of the manifest that the stage does not have yet.

    Raises
    ------
    SettingsError
        If a mask cannot be read or has another size than its image, or too few images have one.
    """
    read_run(output)
    parts = (output / stage).names(PART_SUFFIX)
    if not parts:
        raise SettingsError(f"{output.uri} has no {stage} yet; run that job first")
    require_columns(output, stage, ["confidence"], "an evaluation")
    masks = Masks(truth)
    to_do = sorted({*layout.manifest(output).names(PART_SUFFIX)} - {*parts})
    out = _nothing(*REASONS, "masks_without_image", "size", "unreadable")
    rows = _match(masks, output / stage, parts, out)
    _claim(masks, layout.manifest(output), to_do)
    count, names = masks.unused(FIRST)
    out["masks_without_image"] = LeftOut(count, [Named("", i, n) for i, n in enumerate(names)])
    _take_conflicts(masks, out, partial=partial)
    _refuse_few(
        max(0, rows - sum(out[reason].count for reason in REASONS)), rows, truth, out, partial
    )
    task = EvaluatePart(output, stage, masks.folder, truth_format, normalise, measures)
    nothing_found = dict.fromkeys(EMPTY_MASKS.values(), 0)
    whole = Evaluation(normalise=normalise, measures=measures)
    for wave in _waves(masks, output / stage, parts):
        for sums in map_parts(task, wave):
            whole = _add(whole, sums)
            for name, counted in EMPTY_MASKS.items():
                nothing_found[counted] += int(sums[name])
            for fault, (count, first) in json.loads(sums["left_out"]).items():
                out[fault].merge(LeftOut(count, [Named(*named) for named in first]))
    _refuse_faults(truth, out)
    _refuse_few(whole.images, rows, truth, out, partial)
    summary = whole.summary() | {
        "rows": rows,
        "failed": out["failed"].count,
        "without_truth": sum(
            out[reason].count for reason in ("no_mask", "mask_not_read", "mask_in_conflict")
        ),
        "left_out": {
            reason: {
                "count": out[reason].count,
                "first": [n.name for n in out[reason].first[:FIRST]],
            }
            for reason in (*REASONS, "masks_without_image")
        },
        "nothing_found": nothing_found,
        "parts_to_do": len(to_do),
        "digest": stage_digest(output, stage),
    }
    curve, folder = whole.curve(), layout.evaluation(output, stage)
    with with_brief_retries(folder.uri):
        folder.write("metrics.json", (json.dumps(summary, indent=2) + "\n").encode())
        folder.write("curve.csv", metrics.curve_csv(curve).encode())
        folder.write("curve.svg", metrics.curve_svg({stage.replace("_", " "): curve}).encode())
    return summary


def describe_left_out(summary: Row) -> list[str]:
    """Say in lines what a summary has left out, and why; no line if it is complete."""
    found = {reason: summary["left_out"][reason] for reason in (*REASONS, "masks_without_image")}
    return [_line(reason, f["count"], f["first"]) for reason, f in found.items() if f["count"]]


def describe_nothing_found(summary: Row) -> str:
    """Say in a line how many measured images have an empty mask; empty if none has."""
    found = summary["nothing_found"]
    if not found["images"]:
        return ""
    right = f"{found['without_foreground']:,} of them without foreground in truth, too"
    return f"nothing found in {_count(found['images'], 'image')}, {right}"


def _line(reason: str, count: int, first: list[str]) -> str:
    words = REASONS.get(reason)
    what = (
        f"left out: {_count(count, 'image')} {words}"
        if words
        else f"{_count(count, 'mask')} without an image"
    )
    return f"{what}: {', '.join(first)}{', ...' if count > len(first) else ''}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# Images and masks


def _match(masks: Masks, stage: Folder, parts: list[str], out: dict[str, LeftOut]) -> int:
    """Claim the masks of all images of a stage; count the images, and those without a mask."""
    rows = 0
    for part, number, image_id, error in _ids(stage, parts):
        rows += 1
        has_mask = masks.claim(image_id, measured=error is None)
        if error is not None:
            out["failed"].add(Named(part, number, image_id))
        elif not has_mask:
            unread = masks.unread(image_id)
            reason = "mask_not_read" if unread else "no_mask"
            out[reason].add(Named(part, number, unread or image_id))
    return rows


def _claim(masks: Masks, manifest: Folder, parts: list[str]) -> None:
    """Claim the masks of images that the stage does not have yet: they belong to an image."""
    for _, ids in zip(parts, read_each(_read_ids, manifest, parts), strict=True):
        for row in ids:
            masks.claim(row["image_id"], measured=False)


def _ids(stage: Folder, parts: list[str]) -> Iterator[tuple[str, int, str, str | None]]:
    """Part, number in it, id and error of every image, a few parts in memory."""
    for part, rows in zip(parts, read_each(_read_results, stage, parts), strict=True):
        for number, row in enumerate(rows):
            yield part, number, row["image_id"], row["error_kind"]


def _read_ids(manifest: Folder, part: str) -> list[Row]:
    return list(read_rows(manifest, part, ["image_id"]))


def _read_results(stage: Folder, part: str) -> list[Row]:
    return list(read_rows(stage, part, ["image_id", "error_kind"]))


def _waves(masks: Masks, stage: Folder, parts: list[str]) -> Iterator[list[Row]]:
    """Rows for :class:`EvaluatePart`, as many at a time as fit in the driver's memory."""
    wave: list[Row] = []
    size = 0
    for part, rows in zip(parts, read_each(_read_results, stage, parts), strict=True):
        names = json.dumps(
            [None if r["error_kind"] is not None else masks.find(r["image_id"]) for r in rows]
        )
        wave.append({"part": part, "masks": names})
        size += len(names)
        if size > WAVE_BYTES:
            yield wave
            wave, size = [], 0
    if wave:
        yield wave


# Refusals


def _take_conflicts(masks: Masks, out: dict[str, LeftOut], *, partial: bool) -> None:
    count, named = masks.conflicts(NAMED)
    if count and not partial:
        raise SettingsError(
            f"{_count(count, 'image')} with a shared mask of {masks.truth} or several: "
            f"{'; '.join(named)}; "
            "name each mask like its image, as saff export does (a.jpg.png beside a.png.png), or "
            "leave these images out with --partial"
        )
    out["mask_in_conflict"] = LeftOut(count, [Named("", i, text) for i, text in enumerate(named)])


def _refuse_few(
    measured: int, rows: int, truth: str, out: dict[str, LeftOut], partial: bool
) -> None:
    """Refuse to measure nothing at all or, without ``partial``, less than half of the results."""
    results = rows - out["failed"].count
    if measured and (partial or 2 * measured >= results):
        return
    lines = [
        _line(reason, found.count, [named.name for named in found.first[:FIRST]])
        for reason, found in out.items()
        if found.count and reason in (*REASONS, "masks_without_image")
    ]
    what = (
        f"only {measured:,} of {results:,} images can be measured"
        if measured
        else "nothing to measure"
    )
    remedy = "; measure them all the same with --partial" if measured else ""
    raise SettingsError(
        f"{what} with the masks in {truth}; {'; '.join(lines)}; masks are named like the images, "
        f"whole ids (dogs/a.png) or their last part (a.png){remedy}"
    )


def _refuse_faults(truth: str, out: dict[str, LeftOut]) -> None:
    """Refuse masks of another size than their image and masks that cannot be read, all at once."""
    faults = []
    for kind, words in (
        ("size", "with another size than the image"),
        ("unreadable", "that cannot be read"),
    ):
        found = out[kind]
        by_reason: dict[str, list[str]] = defaultdict(list)
        for named in found.first:
            by_reason[named.reason].append(named.name)
        if found.count:
            reasons = "; ".join(f"{', '.join(names)}: {why}" for why, names in by_reason.items())
            more = found.count - len(found.first)
            faults.append(
                f"{_count(found.count, 'mask')} of {truth} {words}: {reasons}"
                + (f"; and {more:,} more" if more else "")
            )
    if faults:
        raise SettingsError(". ".join(faults))
