"""Between two rounds: pseudo labels and predictions become the labels that the next learns from."""

from dataclasses import dataclass
from typing import Any

import numpy as np

import saff
from saff.access import ANYTHING, Access
from saff.arrays import Image, PixelMap
from saff.cluster.image_reading import ImageReader
from saff.cluster.image_rows import image_row
from saff.cluster.mapping import map_parts
from saff.cluster.parts import PartWriter
from saff.cluster.predictions import encode_prediction
from saff.cluster.stage_job import StageJob
from saff.config import Config
from saff.inference import to_working_size
from saff.kept import require_columns
from saff.layout import Stage
from saff.outlines import cut_outline
from saff.plan import Plan
from saff.progress import PATIENCE
from saff.resize import resize
from saff.rows import decode_map
from saff.runs import RESTART, read_run, stage_digest, with_digest
from saff.shards import PREDICTIONS, Row, read_all_rows
from saff.storage import Folder
from saff.threads import single_thread

COLUMNS = ["image_id", "height", "width", "confidence"]


@dataclass(frozen=True, slots=True)
class RefreshPart:
    """Refresh the labels of one part; a callable that Ray maps over part names.

    Attributes
    ----------
    output : Folder
        The run's output.
    predictions, labels : str
        Folders of the parts to read and to write.
    config : Config
        ``training.pseudo_label_share`` is the label's weight.
    access : Access
        What the addresses of the images may name.
    """

    output: Folder
    predictions: str
    labels: str
    config: Config
    access: Access = ANYTHING

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the part of ``row["part"]``."""
        part = row["part"]
        found = {r["image_id"]: r for r in read_all_rows(self.output / self.predictions, part)}
        first = self.output / Stage.PSEUDO_LABELS
        labels = {r["image_id"]: r for r in read_all_rows(first, part, COLUMNS)}
        stage = PartWriter(self.output, self.labels, PREDICTIONS)
        return stage.do_part(row, lambda rows: [self._row(r, found, labels) for r in rows])

    def _row(self, manifest_row: Row, predicted: dict[str, Row], labels: dict[str, Row]) -> Row:
        prediction = predicted[manifest_row["image_id"]]
        if prediction["error_kind"] is not None:
            return prediction
        label = labels[manifest_row["image_id"]]
        reader = ImageReader(self.access, self.output)

        def refreshed(image: Image) -> Row:
            new = np.asarray(decode_map(prediction, "confidence") / 255, np.float32)
            old = new  # where the photograph could not be labelled, or has changed since
            if label["confidence"] is not None and label["height"] == len(new):
                old = np.asarray(decode_map(label, "confidence") / 255, np.float32)
            return encode_prediction(refresh(image, old, new, self.config))

        return image_row(manifest_row, PREDICTIONS, self.config.max_pixels, refreshed, reader)


def refresh(image: Image, label: PixelMap, prediction: PixelMap, config: Config) -> PixelMap:
    """Mix a label with what a network predicts, and bring the outline to the image's colours.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
        RGB.
    label, prediction : float32 arrays of shape (H, W)
        Confidence in [0, 1].
    config : Config
        ``training.pseudo_label_share`` is the label's weight.

    Returns
    -------
    refreshed : float32 array of shape (H, W)
        In [0, 1].
    """
    share = np.float32(config.training.pseudo_label_share)
    mixed = share * label + (1 - share) * prediction
    with single_thread():
        small = to_working_size(image)
        refined = cut_outline(resize(mixed, (small.shape[0], small.shape[1])), small)
        return np.clip(resize(refined, (image.shape[0], image.shape[1])), 0.0, 1.0)


def refresh_corpus(
    output: Folder,
    config: Config,
    predictions: str,
    labels: str,
    *,
    retry_failed: bool = False,
    patience: float = PATIENCE,
    take_over: bool = False,
    access: Access = ANYTHING,
) -> Plan:
    """Refresh the labels of a run by what a network has predicted; resumable.

    Parameters
    ----------
    output : Folder
        A run.
    config : Config
        Settings.
    predictions, labels : str
        Stages to read and to write, folders of the output.
    retry_failed : bool
        Try images again that failed before.
    patience : float
        Seconds without any part done after which the job ends.
    take_over : bool
        Take the lease on the stage from a job that is known to be dead.
    access : Access
        What the addresses of the images may name.

    Returns
    -------
    plan : Plan
        What the stage of labels holds at the end.
    """
    require_columns(output, Stage.PSEUDO_LABELS, COLUMNS, "the mean of labels and predictions")
    content = {
        "saff": saff.__version__,
        "predictions": read_run(output / predictions)["digest"],
        "pseudo_labels": stage_digest(output, Stage.PSEUDO_LABELS),
        "pseudo_label_share": config.training.pseudo_label_share,
    }
    task = RefreshPart(output, predictions, labels, config, access)
    job = StageJob(
        output=output,
        stage=labels,
        verb="refresh",
        map_plan=lambda todo, seconds: map_parts(task, todo.parts, patience=seconds),
        claims=[(output / labels, with_digest(content), RESTART)],
        patience=patience,
        take_over=take_over,
    )
    return job.complete(retry_failed=retry_failed)
