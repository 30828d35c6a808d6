"""Between two rounds: predictions spread over semantic neighbours, as labels for the next."""

from dataclasses import dataclass
from typing import Any

import numpy as np

import saff
from saff.arrays import Image
from saff.backends import identity
from saff.cluster.image_rows import image_row
from saff.cluster.mapping import map_parts
from saff.cluster.parts import PartWriter
from saff.cluster.predictions import encode_prediction
from saff.cluster.stage_job import StageJob
from saff.config import Config
from saff.labeling import load_models, spread_map
from saff.plan import Plan
from saff.progress import PATIENCE
from saff.rows import decode_map
from saff.runs import RESTART, read_run, with_digest
from saff.shards import PREDICTIONS, Row, read_all_rows
from saff.storage import Folder


@dataclass(frozen=True, slots=True)
class SpreadPart:
    """Refine the predictions of one part; a callable that Ray maps over part names.

    Attributes
    ----------
    output : Folder
        The run's output.
    predictions, labels : str
        Folders of the shards to read and to write.
    config : Config
        Settings of :func:`saff.labeling.spread_map`.
    """

    output: Folder
    predictions: str
    labels: str
    config: Config

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the shard of ``row["part"]``."""
        found = read_all_rows(self.output / self.predictions, row["part"])
        predicted = {r["image_id"]: r for r in found}
        stage = PartWriter(self.output, self.labels, PREDICTIONS)
        return stage.do_part(row, lambda rows: [self._row(r, predicted) for r in rows])

    def _row(self, manifest_row: Row, predicted: dict[str, Row]) -> Row:
        prediction = predicted[manifest_row["image_id"]]
        if prediction["error_kind"] is not None:
            return prediction

        def spread(image: Image) -> Row:
            confidence = np.asarray(decode_map(prediction, "confidence") / 255, np.float32)
            return encode_prediction(spread_map(image, confidence, self.config))

        return image_row(manifest_row, PREDICTIONS, self.config.max_pixels, spread)


def spread_corpus(
    output: Folder,
    config: Config,
    predictions: str,
    labels: str,
    *,
    retry_failed: bool = False,
    patience: float = PATIENCE,
    take_over: bool = False,
) -> Plan:
    """Spread the predictions of a stage over semantic neighbours, into another stage; resumable.

    Parameters
    ----------
    output : Folder
        A run.
    config : Config
        Settings of the encoder, of superpixels and of M_s.
    predictions, labels : str
        Stages to read and to write, folders of the output.
    retry_failed : bool
        Try images again that failed before.
    patience : float
        Seconds without any part done after which the job ends.
    take_over : bool
        Take the lease on the stage from a job that is known to be dead.

    Returns
    -------
    plan : Plan
        What the stage of labels holds at the end.
    """
    content = {
        "saff": saff.__version__,
        "predictions": read_run(output / predictions)["digest"],
        "config": config.labeling(),
        "encoder": identity(load_models(config).encoder),
    }
    task = SpreadPart(output, predictions, labels, config)
    job = StageJob(
        output=output,
        stage=labels,
        verb="spread",
        map_plan=lambda todo, seconds: map_parts(task, todo.parts, patience=seconds),
        claims=[(output / labels, with_digest(content), RESTART)],
        patience=patience,
        take_over=take_over,
    )
    return job.complete(retry_failed=retry_failed)
