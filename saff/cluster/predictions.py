"""Predictions: a pool of workers, each with the trained network, maps over the parts."""

import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data
import torch

import saff
from saff import images
from saff.access import ANYTHING, Access
from saff.arrays import Image, PixelMap
from saff.cluster.faults import is_system_fault
from saff.cluster.image_reading import ImageReader
from saff.cluster.image_rows import INFERENCE, open_image, run_on_image
from saff.cluster.labels import describe_labels
from saff.cluster.mapping import map_parts
from saff.cluster.parts import PartWriter
from saff.cluster.resources import ON_CPU, ON_GPU, pool_size, start_ray
from saff.cluster.stage_job import StageJob
from saff.config import Config
from saff.errors import SettingsError
from saff.fused_prediction import labelling_beside, models_beside, predict_fused
from saff.inference import to_working_size
from saff.layout import Stage
from saff.metrics import HALF
from saff.plan import WHOLE, Plan, Share
from saff.progress import PATIENCE
from saff.quality import judge_prediction, to_levels
from saff.runs import RESTART, forget, with_digest
from saff.shards import PREDICTIONS, Row
from saff.sources import Source
from saff.storage import Folder
from saff.trained import load_trained

TOGETHER = 32  # images of a part that a worker holds at once
READERS = 4  # threads that read and decode them


class PredictPart:
    """Predict the images of one part; Ray makes one in each worker and maps it over part names.

    Parameters
    ----------
    output : Folder
        The run's output.
    stage : str
        Folder of the shards in it.
    network_run : Folder or None
        The run that trained the network; None: the network that comes with saff.
    config : Config
        How it predicts, and how the pseudo labels beside it are made.
    on_gpu : bool
        Whether the worker has a GPU.
    allow_code : collection of str
        Modules that the run may name as its network's.
    access : Access
        What the addresses of the images may name.
    """

    def __init__(
        self,
        output: Folder,
        stage: str,
        network_run: Folder | None,
        config: Config,
        on_gpu: bool = False,
        allow_code: Collection[str] = (),
        access: Access = ANYTHING,
    ) -> None:
        self.reader = ImageReader(access, output)
        self.stage = PartWriter(output, stage, PREDICTIONS)
        self.config, self.models = config, models_beside(config)
        self.device = torch.device("cuda" if on_gpu else "cpu")
        torch.backends.cudnn.deterministic = True
        self.network = load_trained(network_run, allow_code).network.to(self.device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the shard of ``row["part"]``."""
        return self.stage.do_part(row, self.rows, TOGETHER)

    def rows(self, manifest_rows: list[Row]) -> list[Row]:
        """Rows of some images; an image that is at fault gives a row that says so."""
        with ThreadPoolExecutor(READERS) as pool:
            opened = list(pool.map(self._open, manifest_rows))
        good = [image for _, image in opened if image is not None]
        sizes = [(row["height"], row["width"]) for row, image in opened if image is not None]
        try:
            found = predict_fused(self.network, good, self.config, self.models, self.device, sizes)
            columns = iter([encode_prediction(*one) for one in found])
        except Exception as error:  # one of them is at fault: which, is found one by one
            if is_system_fault(error):
                raise
            singly = [partial(self._one, size=size) for size in sizes]
            pairs = zip(singly, good, strict=True)
            columns = iter([run_on_image(one, image, INFERENCE) for one, image in pairs])
        return [row if image is None else row | next(columns) for row, image in opened]

    def _open(self, manifest_row: Row) -> tuple[Row, Image | None]:
        """Read an image and shrink it at once: large ones are held by the readers alone."""
        row, image = open_image(
            manifest_row, PREDICTIONS, self.config.inference.max_pixels, self.reader
        )
        return row, None if image is None else to_working_size(image)

    def _one(self, image: Image, size: tuple[int, int]) -> Row:
        (found,) = predict_fused(
            self.network, [image], self.config, self.models, self.device, [size]
        )
        return encode_prediction(*found)


def encode_prediction(confidence: PixelMap, found: bool = True) -> Row:
    """Columns of a predicted image.

    Parameters
    ----------
    confidence : float32 array of shape (H, W)
        In [0, 1].
    found : bool
        Whether there is any foreground; False makes the mask empty.

    Returns
    -------
    columns : dict
        ``confidence`` and ``pseudo_label``, 8-bit PNG; the mask is of at least a half, and empty
        where ``foreground_found`` is False; ``quality``, see
        :func:`saff.quality.prediction_quality`.
    """
    levels = to_levels(confidence)
    found, quality = judge_prediction(levels, found)
    mask = (levels >= HALF) & found
    return {
        "confidence": images.encode_png(levels),
        "pseudo_label": images.encode_png(mask.astype(np.uint8)),
        "quality": quality,
        "foreground_found": found,
    }


def prediction_job(
    output: Folder,
    network_run: Folder | None,
    config: Config,
    *,
    source: Source | None = None,
    stage: str = Stage.PREDICTIONS,
    workers: int | None = None,
    gpus: int | None = None,
    restart: bool = False,
    share: Share = WHOLE,
    patience: float = PATIENCE,
    take_over: bool = False,
    allow_code: Collection[str] = (),
    access: Access = ANYTHING,
) -> StageJob:
    """Prepare the job that infers every image of a run, or of a source of new images.

    Parameters
    ----------
    output : Folder
        A run; with ``source``, any folder of its own.
    network_run : Folder or None
        The run, or the round of it, that trained the network; None: the one that comes with saff.
    config : Config
        How it predicts, and how the pseudo labels beside it are made.
    source : Source, optional
        Where new images come from; without it, the images of the run.
    stage : str
        Folder of the shards.
    workers : int, optional
        Processes; default: one per GPU or, without any, one per CPU.
    gpus : int, optional
        GPUs to predict on, one per worker; default: all that the cluster has now, 0: none.
    restart : bool
        Forget earlier predictions.
    share : Share
        Do this share of the parts; another one than the whole takes in no images.
    patience : float
        Seconds without any part done after which the job ends.
    take_over : bool
        Take the lease on the stage from a job that is known to be dead.
    allow_code : collection of str
        Modules that may be imported where ``network_run`` names its network as
        ``package.module:factory``; others are refused.
    access : Access
        What the addresses of the images may name.

    Raises
    ------
    SettingsError
        If there is no trained network, or a setting cannot work.
    """
    trained = load_trained(network_run, allow_code)
    folder = output / stage
    access = source.access if source else access
    if restart:
        if share != WHOLE:
            raise SettingsError("--restart forgets the work of all shares; use it without --part")
        start_ray()
        pool_size(workers, gpus)  # refused before anything is forgotten
        forget(folder)

    def map_plan(todo: Plan, seconds: float) -> Iterator[dict[str, Any]]:
        count, on_gpu = pool_size(workers, gpus)
        return map_parts(
            PredictPart,
            todo.parts,
            compute=ray.data.ActorPoolStrategy(size=min(count, len(todo.parts))),
            fn_constructor_args=(
                output,
                stage,
                network_run,
                config,
                on_gpu,
                allow_code,
                access,
            ),
            worker=ON_GPU if on_gpu else ON_CPU,
            patience=seconds,
        )

    claims = [(folder, describe_predictions(trained.sha256, config), RESTART)]
    if source is not None:
        claims.insert(0, (output, describe_images(trained.sha256) | {"source": source.name}, ""))
    return StageJob(
        output=output,
        stage=stage,
        verb="predict",
        map_plan=map_plan,
        claims=claims,
        source=source,
        share=share,
        patience=patience,
        take_over=take_over,
    )


def predict_corpus(
    output: Folder,
    network_run: Folder | None,
    config: Config,
    *,
    source: tuple[str, Iterable[Row]] | None = None,
    retry_failed: bool = False,
    **options: Any,
) -> Plan:
    """Infer every image of a run, or of a source of new images, that has no prediction yet.

    Parameters
    ----------
    output, network_run, config, **options
        As for :func:`prediction_job`.
    source : tuple, optional
        Where new images come from, as it stands in run.json, and their manifest rows.
    retry_failed : bool
        Try images again that failed before.

    Returns
    -------
    plan : Plan
        What the stage holds at the end.

    Raises
    ------
    SettingsError
        If there is no trained network, the output belongs to another run, or its predictions come
        from another network or other settings; nothing was started.
    """
    images_of = Source(name=source[0], rows=source[1]) if source else None
    job = prediction_job(output, network_run, config, source=images_of, **options)
    return job.complete(retry_failed=retry_failed)


def describe_images(network: str) -> Row:
    """Sum up what decides which images an output of new images holds results of."""
    return with_digest({"saff": saff.__version__, "network": network})


def describe_predictions(network: str, config: Config) -> Row:
    """Sum up what decides the predictions of a stage."""
    inference = json.loads(json.dumps(dataclasses.asdict(config.inference)))
    content = {"saff": saff.__version__, "network": network, "inference": inference}
    if (models := models_beside(config)) is not None:
        content["pseudo_labels"] = describe_labels(labelling_beside(config), models)
    return with_digest(content)
