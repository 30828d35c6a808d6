"""Everything in one command: label, train, infer, once or in rounds; measure; report."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from saff import layout
from saff.access import ANYTHING, Access
from saff.backends import modules_of
from saff.cluster.label_refresh import refresh_corpus
from saff.cluster.labels import label_corpus
from saff.cluster.mapping import map_parts
from saff.cluster.predictions import predict_corpus
from saff.cluster.resources import cpus_available, start_ray, training_workers
from saff.cluster.training import train_network
from saff.config import Config
from saff.errors import SettingsError
from saff.evaluation import describe_left_out, evaluate
from saff.layout import ROUND_LABELS, Stage, begun_rounds
from saff.network import SHIPPED
from saff.progress import PATIENCE
from saff.quality import mask_iou
from saff.report.stored import write_report
from saff.rows import decode_map
from saff.runs import forget
from saff.shards import Row, read_all_rows
from saff.storage import Folder, with_brief_retries
from saff.tracking import connect
from saff.trained import NetworkFolder
from saff.truth import TruthFormat

ROUNDS = 1  # more move little where the first starts from a trained network; docs/results.md
COMPARED = ["image_id", "height", "width", "pseudo_label"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How much of a cluster to use; no result depends on it."""

    workers: int | None = None
    """Training processes."""
    gpus: int | None = None
    """GPUs to train and to infer on."""
    patience: float = PATIENCE
    """Seconds without anything done after which a job ends."""
    take_over: bool = False
    """Take the leases on the stages from a job that is known to be dead."""

    @property
    def of_job(self) -> dict[str, Any]:
        """Options of every stage."""
        return {"patience": self.patience, "take_over": self.take_over}

    def of_training(self, batch: int) -> dict[str, Any]:
        """Options of a training; refuses what no later stage could have, before the first begins.

        Raises
        ------
        SettingsError
            If more GPUs are wanted than exist, or the numbers do not fit each other.
        """
        workers, on_gpu = training_workers(self.workers, self.gpus, batch)
        return {"workers": workers, "gpus": workers if on_gpu else 0, **self.of_job}

    def of_inference(self, batch: int) -> dict[str, Any]:
        """Options of an inference: the GPUs of the training, or all CPUs of the cluster."""
        training = self.of_training(batch)
        if training["gpus"]:
            return {"workers": None, "gpus": training["gpus"], **self.of_job}
        workers = max(cpus_available(), training["workers"])
        return {"workers": workers, "gpus": 0, **self.of_job}


def run_pipeline(
    source: str,
    rows: Iterable[Row],
    output: Folder,
    config: Config,
    *,
    rounds: int = ROUNDS,
    scale: Scale | None = None,
    truth: str | None = None,
    truth_format: TruthFormat = "binary",
    retry_failed: bool = False,
    restart: bool = False,
    say: Callable[[str], None] = print,
    access: Access = ANYTHING,
    track: bool = False,
) -> str:
    """Label images, train a network on the labels, infer with it, and report; resumable.

    Each round trains a network from the weights that the settings name.  Where these are the
    network that comes with saff, it refreshes the labels first.  The first round learns from the
    pseudo labels, refreshed or not, the
    others on labels that are refreshed by what the network before has predicted.  The last
    round's network and predictions are the output's own; those before are in ``rounds/1``, ...
    Images that are new since are labelled and inferred; the networks stay, unless they are to be
    trained anew.

    Parameters
    ----------
    source : str
        Where the images come from, as it stands in run.json.
    rows : iterable of dict
        The source's manifest rows.
    output : Folder
        Where to.
    config : Config
        Settings.
    rounds : int
        At least 1.
    scale : Scale, optional
        Workers and GPUs.
    truth : str, optional
        Masks to measure with, for images that have one.
    truth_format : {"binary", "half", "voc", "nonzero", "alpha"}
        See :mod:`saff.truth`.
    retry_failed : bool
        Try images again that failed before.
    restart : bool
        Forget the networks and predictions of all rounds; the pseudo labels stay.
    say : callable
        Called with a line after each stage.
    access : Access
        What the addresses of the images may name.
    track : bool
        Log each training to MLflow; see :mod:`saff.tracking`.

    Returns
    -------
    uri : str
        Address of the report.

    Raises
    ------
    SettingsError
        If something cannot work; what was done before stays, and the same command continues.
    """
    if rounds < 1:
        raise SettingsError(f"rounds must be at least 1, got {rounds}")
    if track:
        connect()  # refused now, not after labelling
    scale = scale or Scale()
    start_ray()
    batch = config.training.batch_size
    scale.of_training(batch)  # refused now, not after labelling
    again, patience = retry_failed, scale.patience
    if again and not restart:
        refuse_begun(output)
    how: dict[str, Any] = {"retry_failed": again, "access": access}
    done = label_corpus(source, rows, output, config, **how, **scale.of_job)
    say(f"labelled: {done}")
    if restart:
        forget_rounds(output)
    learnt_from: str = Stage.PSEUDO_LABELS
    # what refreshes the labels is the network's opinion alone
    by_itself = dataclasses.replace(config.inference, pseudo_label_share=0.0)
    alone = dataclasses.replace(config, inference=by_itself)
    if config.training.network_weights == SHIPPED:  # it has something to say of the labels
        home = layout.round_home(0)
        stage = layout.within(home, Stage.PREDICTIONS)
        options = how | scale.of_inference(batch)
        predict_corpus(output, None, alone, stage=stage, **options)
        learnt_from = layout.within(home, ROUND_LABELS)
        refresh_corpus(output, config, stage, learnt_from, **how, **scale.of_job)
        kept = mean_iou(output, Stage.PSEUDO_LABELS, learnt_from, patience)
        say(f"refreshed labels: mean IoU with the pseudo labels {kept:.3f}")
    for number in range(1, rounds + 1):
        home = "" if number == rounds else layout.round_home(number)
        train_network(
            output,
            config.training,
            stage=learnt_from,
            round_folder=home,
            access=access,
            track=track,
            **scale.of_training(batch),
        )
        stage = layout.within(home, Stage.PREDICTIONS)
        done = predict_corpus(
            output,
            output / home if home else output,
            config if number == rounds else alone,
            stage=stage,
            allow_code=modules_of(config.training.network),
            **how,
            **scale.of_inference(batch),
        )
        kept = mean_iou(output, learnt_from, stage, patience)
        say(f"round {number}: {done}; mean IoU with the labels it learnt from {kept:.3f}")
        if number < rounds:
            learnt_from = layout.within(home, ROUND_LABELS)
            refresh_corpus(output, config, stage, learnt_from, **how, **scale.of_job)
    if truth:
        for name in Stage:
            spread = partial(map_parts, patience=patience)
            figures = evaluate(output, truth, truth_format, name, partial=True, map_parts=spread)
            say(f"{name}: max F {figures['mean_pr']['max_f']:.4f}, IoU {figures['iou']:.4f}")
            for line in describe_left_out(figures):
                say(f"{name}: {line}")
    report = write_report(output, access=access)
    if report.lost_photographs:
        say(f"not shown in the report: {report.lost_photographs}")
    return report.uri


def refuse_begun(output: Folder) -> None:
    """Refuse to try images again while a training that uses the present labels is under way."""
    with with_brief_retries(output.uri):
        for home in (output, *(output / name for name in begun_rounds(output))):
            network = NetworkFolder(layout.network(home))
            if network.folder.exists(layout.RUN) and not network.is_done():
                raise SettingsError(
                    f"a training in {network.folder.uri} is under way, and images that are tried "
                    "again may change its labels; let it end without --retry-failed, or begin it "
                    "anew with --restart"
                )


def forget_rounds(output: Folder) -> None:
    """Remove networks, predictions and labels made of them, the last round first."""
    with with_brief_retries(output.uri):
        rounds = [output / home for home in begun_rounds(output)]
        for home in (output, *reversed(rounds)):
            forget(home / Stage.PREDICTIONS)
            if home != output:
                forget(home / ROUND_LABELS)
            NetworkFolder(layout.network(home)).clear()


# How far a round has moved


@dataclass(frozen=True, slots=True)
class ComparePart:
    """Compare the masks of two stages in one part; a callable that Ray maps.

    Attributes
    ----------
    one, other : Folder
        Folders of parts.
    """

    one: Folder
    other: Folder

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Give the sum of the IoUs of ``row["part"]`` and the number of images."""
        part = row["part"]
        masks = {r["image_id"]: _mask(r) for r in read_all_rows(self.one, part, COMPARED)}
        found = []
        for other in read_all_rows(self.other, part, COMPARED):
            a, b = masks.get(other["image_id"]), _mask(other)
            if a is not None and b is not None and a.shape == b.shape:
                found.append(mask_iou(a, b))
        return {"sum": float(sum(found)), "images": len(found)}


def mean_iou(output: Folder, one: str, other: str, patience: float = PATIENCE) -> float:
    """Mean IoU of the masks of two stages: how far a network kept to its labels, without truth.

    Raises
    ------
    SettingsError
        If no image has both.
    """
    shared = sorted({*(output / one).names(".parquet")} & {*(output / other).names(".parquet")})
    start_ray()
    compare = ComparePart(output / one, output / other)
    found = list(map_parts(compare, shared, patience=patience))
    count = sum(part["images"] for part in found)
    if not count:
        raise SettingsError(f"no image has a mask in both {one} and {other} of {output.uri}")
    # sorted: floats of the same parts add up to the same in the same order alone
    return float(sum(sorted(part["sum"] for part in found)) / count)


def _mask(row: Row) -> Any:
    return None if row["pseudo_label"] is None else decode_map(row, "pseudo_label") > 0
