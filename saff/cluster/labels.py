"""Pseudo labels: what Ray maps over the parts of the manifest, and the job around it."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

import saff
from saff import images
from saff.access import ANYTHING, Access
from saff.arrays import Image
from saff.backends import identity
from saff.cluster.image_reading import ImageReader
from saff.cluster.image_rows import ALONE, image_row
from saff.cluster.mapping import map_parts
from saff.cluster.parts import PartWriter
from saff.cluster.stage_job import StageJob
from saff.config import Config
from saff.kept import BY_DEFAULT, Large, describe_kept, without_others
from saff.labeling import LabeledImage, Models, embedding_size, label_image, load_models
from saff.layout import Stage
from saff.plan import WHOLE, Plan, Share
from saff.progress import PATIENCE
from saff.quality import to_levels
from saff.retries import BRIEF, retry_limit
from saff.runs import with_digest
from saff.shards import EMBEDDING, PSEUDO_LABELS, Row, with_embedding
from saff.sources import Source
from saff.storage import Folder


def label_row(
    image_id: str,
    uri: str,
    config: Config,
    reader: ImageReader = ALONE,
    kept: frozenset[Large] = BY_DEFAULT,
) -> Row:
    """Label one image of a manifest; an image that is at fault gives a row that says so.

    Parameters
    ----------
    image_id, uri : str
        A manifest row.
    config : Config
        Settings.
    reader : ImageReader
        Reads its file.
    kept : frozenset of Large
        Large columns that are not null.

    Returns
    -------
    row : dict
        All columns of :func:`label_schema`; see :func:`saff.cluster.image_rows.image_row`.
    """
    row = {"image_id": image_id, "uri": uri}
    work = partial(_label, config=config, kept=kept)
    labelled = image_row(row, label_schema(config, kept), config.max_pixels, work, reader)
    return without_others(labelled, kept)


def label_schema(config: Config, kept: frozenset[Large]) -> pa.Schema:
    """Columns of the pseudo labels of a run that keeps these large ones.

    Raises
    ------
    SettingsError
        If an embedding is to be kept and the encoder gives none.
    """
    if Large.EMBEDDING not in kept:
        return PSEUDO_LABELS
    return with_embedding(embedding_size(config))


def _label(image: Image, config: Config, kept: frozenset[Large]) -> Row:
    labeled = label_image(image, config)
    row = encode_label(labeled)
    if Large.EMBEDDING in kept:
        row[EMBEDDING] = labeled.embedding.astype(np.float16)
    return row


def encode_label(labeled: LabeledImage) -> Row:
    """Columns of a labelled image, without its embedding: maps as PNG, numbers as lists."""
    return {
        "confidence": images.encode_png(to_levels(labeled.confidence)),
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
    access : Access
        What the addresses of its images may name.
    kept : frozenset of Large
        Large columns that are not null.
    """

    output: Folder
    config: Config
    access: Access = ANYTHING
    kept: frozenset[Large] = BY_DEFAULT

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the shard of ``row["part"]``."""
        columns = label_schema(self.config, self.kept)
        stage = PartWriter(self.output, Stage.PSEUDO_LABELS, columns)
        reader = ImageReader(self.access, self.output)
        return stage.do_part(
            row,
            lambda rows: [
                label_row(r["image_id"], r["uri"], self.config, reader, self.kept) for r in rows
            ],
        )


def describe_run(source: str, config: Config, kept: frozenset[Large] = BY_DEFAULT) -> Row:
    """Sum up what decides a run's content; loads the models, so that a bad one stops here."""
    with retry_limit(BRIEF):  # weights from a place that a person named
        models = load_models(config)
    label_image(
        np.zeros((32, 32, 3), np.uint8), config, models
    )  # settings that cannot work together
    label_schema(config, kept)
    labels = describe_labels(config, models)
    content = {"saff": saff.__version__, **labels, **describe_kept(kept)}
    return with_digest(content) | {"source": source}


def describe_labels(config: Config, models: Models) -> Row:
    """Sum up what decides the pseudo labels: settings, and the weights of each model."""
    used = {field.name: getattr(models, field.name) for field in dataclasses.fields(models)}
    return {
        "config": config.labeling(),
        "weights": {kind: identity(model) for kind, model in used.items() if model is not None},
    }


def labelling_job(
    source: Source,
    output: Folder,
    config: Config,
    *,
    share: Share = WHOLE,
    patience: float = PATIENCE,
    take_over: bool = False,
    kept: frozenset[Large] = BY_DEFAULT,
) -> StageJob:
    """Prepare the job that labels every image of a source; loads the models, starts nothing.

    Parameters
    ----------
    source : Source
        Where the images come from.
    output : Folder
        Where to; belongs to one configuration.
    config : Config
        Settings.
    share : Share
        Do this share of the parts; another one than the whole takes in no images.
    patience : float
        Seconds without any part done after which the job ends.
    take_over : bool
        Take the lease on the stage from a job that is known to be dead.
    kept : frozenset of Large
        Large columns that are not null.

    Raises
    ------
    SettingsError
        If a setting cannot work.
    """
    task = LabelPart(output, config, source.access, kept)
    return StageJob(
        output=output,
        stage=Stage.PSEUDO_LABELS,
        verb="label",
        map_plan=lambda todo, seconds: map_parts(task, todo.parts, patience=seconds),
        claims=[(output, describe_run(source.name, config, kept), "")],
        source=source,
        share=share,
        patience=patience,
        take_over=take_over,
    )


def label_corpus(
    source: str,
    rows: Iterable[Row],
    output: Folder,
    config: Config,
    *,
    retry_failed: bool = False,
    share: Share = WHOLE,
    patience: float = PATIENCE,
    take_over: bool = False,
    access: Access = ANYTHING,
) -> Plan:
    """Label every image of a source that the output does not hold yet.

    Parameters
    ----------
    source : str
        Where the images come from, as it stands in run.json.
    rows : iterable of dict
        The source's manifest rows.
    output, config, share, patience, take_over
        As for :func:`labelling_job`.
    retry_failed : bool
        Try images again that failed before.
    access : Access
        What the addresses of the images may name.

    Returns
    -------
    plan : Plan
        What the output holds at the end.

    Raises
    ------
    SettingsError
        If the output belongs to another run or a setting cannot work, and nothing was started.
    StalledError
        If there is no progress for too long.
    """
    images = Source(name=source, rows=rows, access=access)
    job = labelling_job(images, output, config, share=share, patience=patience, take_over=take_over)
    return job.complete(retry_failed=retry_failed)
