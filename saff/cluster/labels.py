"""Pseudo labels: what Ray maps over the parts of the manifest, and the job around it."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import saff
from saff import images
from saff.arrays import Image
from saff.backends import identity
from saff.cluster.image_rows import image_row
from saff.cluster.parts import (
    WHOLE,
    Plan,
    Share,
    StageWriter,
    count_done,
    map_parts,
    plan,
    refuse_empty,
    start_ray,
)
from saff.cluster.quarantine import tidy
from saff.config import Config
from saff.labeling import LabeledImage, label_image, load_models
from saff.manifests import extend_manifest
from saff.progress import PATIENCE
from saff.retries import BRIEF, retry_limit
from saff.runs import claim, with_digest
from saff.shards import PSEUDO_LABELS, Row
from saff.storage import Folder

STAGE = "pseudo_labels"


def label_row(image_id: str, uri: str, config: Config) -> Row:
    """Label one image of a manifest; an image that is at fault gives a row that says so.

    Parameters
    ----------
    image_id, uri : str
        A manifest row.
    config : Config
        Settings.

    Returns
    -------
    row : dict
        All columns of ``shards.PSEUDO_LABELS``; see :func:`saff.cluster.image_rows.image_row`.
    """
    row = {"image_id": image_id, "uri": uri}
    return image_row(row, PSEUDO_LABELS, config.max_pixels, partial(_label, config=config))


def _label(image: Image, config: Config) -> Row:
    return encode_label(label_image(image, config))


def encode_label(labeled: LabeledImage) -> Row:
    """Columns of a labelled image: maps as PNG, numbers as lists."""
    confidence = np.rint(labeled.confidence * 255).astype(np.uint8)
    return {
        "confidence": images.encode_png(confidence),
        "pseudo_label": images.encode_png(labeled.pseudo_label),
        "superpixels": images.encode_png(labeled.superpixels.astype(np.uint16)),
        "features": labeled.features.ravel(),
        "weights": [*labeled.weights, labeled.bias],
        "seeds_foreground": labeled.seeds_foreground,
        "seeds_background": labeled.seeds_background,
        "fallback": labeled.fallback,
        "quality": labeled.quality,
    }


@dataclass(frozen=True, slots=True)
class LabelPart:
    """Label the images of one part; a callable that Ray maps over part names.

    Attributes
    ----------
    output : Folder
        The run's output.
    config : Config
        Settings.
    """

    output: Folder
    config: Config

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the shard of ``row["part"]``."""
        stage = StageWriter(self.output, STAGE, PSEUDO_LABELS)
        return stage.do_part(
            row,
            lambda rows: [label_row(r["image_id"], r["uri"], self.config) for r in rows],
        )


def describe_run(source: str, config: Config) -> Row:
    """Sum up what decides a run's content; loads the models, so that a bad one stops here."""
    with retry_limit(BRIEF):  # weights from a place that a person named
        models = load_models(config)
    label_image(
        np.zeros((32, 32, 3), np.uint8), config, models
    )  # settings that cannot work together
    content = {
        "saff": saff.__version__,
        "config": config.labeling(),
        "weights": {
            kind: identity(getattr(models, kind)) for kind in ("encoder", "saliency", "edges")
        },
    }
    return with_digest(content) | {"source": source}


def label_corpus(
    source: str,
    rows: Iterable[Row],
    output: Folder,
    config: Config,
    *,
    retry_failed: bool = False,
    share: Share = WHOLE,
    patience: float = PATIENCE,
) -> Plan:
    """Label every image of a source that the output does not hold yet.

    Parameters
    ----------
    source : str
        Where the images come from, as it stands in run.json.
    rows : iterable of dict
        The source's manifest rows.
    output : Folder
        Where to; belongs to one configuration.
    config : Config
        Settings.
    retry_failed : bool
        Try images again that failed before.
    share : Share
        Do this share of the parts; another one than the whole takes in no images.
    patience : float
        Seconds without any part done after which the job ends.

    Returns
    -------
    plan : Plan
        What the output holds at the end.

    Raises
    ------
    SettingsError
        If the output belongs to another run or a setting cannot work, and nothing was started; or
        nothing was done for too long.
    """
    run = describe_run(source, config)
    if share != WHOLE:
        refuse_empty(output, source)
    claim(output, run)
    if share == WHOLE:
        extend_manifest(output, rows)
    todo = plan(output, retry_failed=retry_failed, share=share)
    if todo.parts:
        start_ray()
        task = LabelPart(output, config)
        count_done("label", todo, map_parts(task, todo.parts, patience=patience))
        if share == WHOLE:  # nobody else is at work
            (output / "manifest").sweep()
            tidy(output / STAGE)
    return plan(output, share=share)
