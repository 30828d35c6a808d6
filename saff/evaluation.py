"""Measuring a stage of a run against masks: parts one by one or spread over a cluster.

Each part gives sums of a fixed size; the sums of all parts add up to the same result in any order.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, TypeAlias

import numpy as np

from saff import layout, metrics
from saff.addresses import is_local
from saff.errors import SettingsError
from saff.layout import PART_SUFFIX
from saff.metrics import Evaluation
from saff.rows import decode_map
from saff.runs import read_run, stage_digest
from saff.shards import Row, read_all_rows
from saff.storage import NO_FILE, Folder, as_storage_error, with_brief_retries

TruthFormat: TypeAlias = Literal["voc", "binary"]
COLUMNS = ["image_id", "height", "width", "confidence"]


@dataclass(frozen=True, slots=True)
class EvaluatePart:
    """Measure the images of one part; a callable from ``{"part": name}`` to sums.

    Attributes
    ----------
    shards : Folder
        Of the stage.
    truth : str
        Folder or prefix of masks.
    truth_format : {"voc", "binary"}
        See :func:`saff.metrics.read_truth`.
    normalise : bool
        Stretch each map to 0..255 first.
    """

    shards: Folder
    truth: str
    truth_format: TruthFormat
    normalise: bool

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Give ``failed``, ``without_truth`` and the fields of an Evaluation, sums flattened."""
        masks = Folder.at(self.truth)
        evaluation = Evaluation(normalise=self.normalise)
        failed = without_truth = 0
        for image in read_all_rows(self.shards, row["part"], COLUMNS):
            if image["confidence"] is None:
                failed += 1
                continue
            name, data = read_mask(masks, image["image_id"], self.truth)
            if data is None:
                without_truth += 1
                continue
            confidence = decode_map(image, "confidence")
            try:
                mask, valid = metrics.read_truth(data, self.truth_format)
                evaluation.add(confidence, mask, valid)
            except ValueError as error:
                raise SettingsError(f"mask {name} of {self.truth}: {error}") from error
        return {
            "failed": failed,
            "without_truth": without_truth,
            "images": evaluation.images,
            "skipped": evaluation.skipped,
            "best_thresholds": evaluation.best_thresholds,
            **evaluation.sums,
        }


def read_mask(masks: Folder, image_id: str, truth: str) -> tuple[str, bytes | None]:
    """Read the mask of an image, named by its whole id or by the last part of it.

    Returns
    -------
    name : str
        Of the file; empty if there is none.
    data : bytes or None
        Its content.
    """
    stem = os.path.splitext(image_id)[0]
    for name in dict.fromkeys((f"{stem}.png", f"{PurePosixPath(stem).name}.png")):
        with as_storage_error(f"mask {name} of {truth}"):
            try:
                return name, masks.read(name)
            except NO_FILE:
                continue
    return "", None


def _evaluation(sums: dict[str, Any], normalise: bool) -> Evaluation:
    """Evaluation of a part, from what :class:`EvaluatePart` gives."""
    evaluation = Evaluation(normalise=normalise)
    for name in ("images", "skipped", "best_thresholds"):
        setattr(evaluation, name, int(sums[name]))
    evaluation.sums = {name: np.asarray(sums[name], np.int64) for name in evaluation.sums}
    return evaluation


Mapper: TypeAlias = Callable[[EvaluatePart, list[str]], Iterable[dict[str, Any]]]


def one_by_one(task: EvaluatePart, parts: list[str]) -> Iterable[dict[str, Any]]:
    """Evaluate part after part in this process."""
    return (task({"part": part}) for part in parts)


def evaluate(
    output: Folder,
    truth: str,
    truth_format: TruthFormat,
    stage: str,
    *,
    normalise: bool = True,
    map_parts: Mapper = one_by_one,
) -> Row:
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
    map_parts : callable
        Applies a task to parts: :func:`one_by_one`, or :func:`saff.cluster.map_parts` over a
        cluster, which gives the same to the last bit.

    Returns
    -------
    summary : dict
        As in metrics.json; ``failed`` and ``without_truth`` count images that were left out,
        ``parts_to_do`` parts of the manifest that the stage does not have yet.

    Raises
    ------
    SettingsError
        If no image has truth, or a mask cannot be read or has another size than its image.
    """
    read_run(output)
    parts = (output / stage).names(".parquet")
    if not parts:
        raise SettingsError(f"{output.uri} has no {stage} yet; run that job first")
    _check_there(Folder.at(truth), truth)
    task = EvaluatePart(output / stage, truth, truth_format, normalise)
    whole = Evaluation(normalise=normalise)
    failed = without_truth = 0
    for sums in map_parts(task, parts):
        whole = whole + _evaluation(sums, normalise)
        failed += int(sums["failed"])
        without_truth += int(sums["without_truth"])
    if not whole.images:
        raise SettingsError(
            f"nothing to measure: {without_truth} images have no mask in {truth}, {failed} failed, "
            f"{whole.skipped} have a mask without foreground; masks are PNG files named like "
            "the images"
        )
    summary = whole.summary() | {
        "failed": failed,
        "without_truth": without_truth,
        "parts_to_do": len({*layout.manifest(output).names(PART_SUFFIX)} - {*parts}),
        "digest": stage_digest(output, stage),
    }
    curve, folder = whole.curve(), layout.evaluation(output, stage)
    with with_brief_retries(folder.uri):
        folder.write("metrics.json", (json.dumps(summary, indent=2) + "\n").encode())
        folder.write("curve.csv", metrics.curve_csv(curve).encode())
        folder.write("curve.svg", metrics.curve_svg({stage.replace("_", " "): curve}).encode())
    return summary


def _check_there(masks: Folder, truth: str) -> None:
    with with_brief_retries(truth):
        there = masks.fs.exists(masks.path)
        if there and is_local(masks.fs):
            with contextlib.suppress(NotADirectoryError), os.scandir(masks.path) as entries:
                there = any(entries)
    if not there:
        raise SettingsError(f"no masks at {truth}")
