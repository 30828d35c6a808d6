"""Files of a trained network: ``network/`` of a run, with its checkpoints, metrics and weights.

::

    network/run.json                        what decides it: settings, labels, first weights
    network/checkpoints/step-00000100.pt    to continue from; the last few are kept
    network/metrics.csv                     one line a step
    network/tensorboard/                    the same for TensorBoard
    network/mlflow.json                     which run of MLflow has the same, see saff.tracking
    network/weights.pt                      the result; written when training is done
"""

import csv
import dataclasses
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

import saff
from saff import layout, network as networks
from saff.backends import refuse_code
from saff.checkpoints import WeightsFile, load_state
from saff.config import Training
from saff.errors import SettingsError, WeightsError
from saff.layout import RUN
from saff.network import Network
from saff.network.shipped import load_shipped
from saff.network.unet import LiteUNet, fuse_network
from saff.runs import RESTART, claim, read_run, with_digest
from saff.samples import Corpus
from saff.shards import Row
from saff.storage import Folder, with_brief_retries
from saff.training import from_bytes, to_bytes
from saff.training_loop import Metrics, State

COLUMNS = ("step", "loss", "accuracy", "learning_rate", "gradient_norm", "samples", "seconds")
WEIGHTS = "weights.pt"
TRACKED = "mlflow.json"


def describe(training: Training, corpus: Corpus, labels: Row) -> Row:
    """Sum up what decides a training's result; makes the network, so that a bad one stops here.

    Parameters
    ----------
    training : Training
        Settings.
    corpus : Corpus
        Labels to learn from.
    labels : dict
        Which they are, as run.json is to say it; another digest for other labels.  What it says of
        ``parts`` and ``images`` counts more than the corpus.
    """
    network = start_network(training)
    content = {
        "saff": saff.__version__,
        "training": json.loads(json.dumps(dataclasses.asdict(training))),
        "labels": {"parts": corpus.spans, "images": len(corpus), **labels},
        "start": state_digest(network.state_dict()),
    }
    return with_digest(content)


def start_network(training: Training) -> Network:
    """Make the network that training starts from."""
    network = networks.load(
        training.network, pretrained=True, weights=training.network_weights, seed=training.seed
    )
    networks.freeze(network, training.frozen_stages)
    return network


def state_digest(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 over the names and values of a state dict, in hexadecimal."""
    whole = hashlib.sha256()
    for name in sorted(state):
        whole.update(name.encode())
        whole.update(state[name].contiguous().numpy().tobytes())
    return whole.hexdigest()


@dataclass(frozen=True, slots=True)
class NetworkFolder:
    """A training's results.

    Attributes
    ----------
    folder : Folder
        ``network`` of a run.
    """

    folder: Folder

    @property
    def checkpoints(self) -> Folder:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    def is_done(self) -> bool:
        """Whether the training is done and the result written."""
        return self.folder.exists(WEIGHTS)

    def claim(self, run: Row) -> None:
        """Bind the folder to a training, or check that it is bound to this one."""
        claim(self.folder, run, RESTART)

    def learns_from(self) -> Row:
        """What its training began with; empty without a training.

        Returns
        -------
        labels : dict
            ``parts`` and ``images``, and ``rejected`` where a person had rejected some.

        Raises
        ------
        SettingsError
            If its run.json is damaged.
        """
        with with_brief_retries(self.folder.uri):
            if not self.folder.exists(RUN):
                return {}
        labels, kinds = read_run(self.folder).get("labels"), {"parts": str, "images": int}
        if not isinstance(labels, dict) or not all(
            isinstance(labels.get(name), kind) for name, kind in kinds.items()
        ):
            raise SettingsError(
                f"{self.folder.uri}/run.json does not say which labels it learns from: it is "
                "damaged or of another version of saff; --restart trains anew"
            )
        return {name: labels[name] for name in (*kinds, "rejected") if name in labels}

    def clear(self) -> None:
        """Remove everything, the result first."""
        with with_brief_retries(self.folder.uri):
            self.folder.remove(WEIGHTS)
            for name in self.checkpoints.names(""):
                self.checkpoints.remove(name)
            for name in ("metrics.csv", TRACKED, RUN):
                self.folder.remove(name)

    def latest(self, identity: str) -> State | None:
        """Read the newest checkpoint; None if there is none.

        Raises
        ------
        TrainingError
            If it is damaged or of another training.
        """
        names = self.checkpoints.names(".pt")
        if not names:
            return None
        data = self.checkpoints.read(names[-1])
        return from_bytes(data, identity, f"{self.checkpoints.uri}/{names[-1]}")

    def save(self, state: State, identity: str, keep: int) -> None:
        """Write a checkpoint, then remove all but the last ``keep``."""
        self.checkpoints.write(f"step-{state.step:08d}.pt", to_bytes(state, identity))
        for name in self.checkpoints.names(".pt")[:-keep]:
            self.checkpoints.remove(name)

    def finish(self, weights: dict[str, torch.Tensor]) -> None:
        """Write the result; the last step of a training."""
        stream = io.BytesIO()
        torch.save({name: value.contiguous() for name, value in weights.items()}, stream)
        self.folder.write(WEIGHTS, stream.getvalue())

    def write_metrics(self, rows: Sequence[Metrics]) -> None:
        """Write the metrics of all steps so far, as CSV and for TensorBoard."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.folder.write("metrics.csv", text.getvalue().encode())
        (self.folder / "tensorboard").write("events.out.tfevents.0.saff", _events(rows))

    def read_metrics(self, up_to: int | None = None) -> list[Metrics]:
        """Read the metrics, those up to a step; [] where there are none."""
        if not self.folder.exists("metrics.csv"):
            return []
        text = self.folder.read("metrics.csv").decode()
        rows = [_metrics(row) for row in csv.DictReader(io.StringIO(text))]
        return [row for row in rows if up_to is None or row["step"] <= up_to]


def _metrics(row: dict[str, str]) -> Metrics:
    """Numbers of a line of the log, written as they were."""
    return {k: int(v) if k in ("step", "samples") else float(v) for k, v in row.items()}


def _events(rows: Sequence[Metrics]) -> bytes:
    """TensorBoard's event file of some metrics."""
    from tensorboardX import SummaryWriter  # comes with ray[train]

    with tempfile.TemporaryDirectory(prefix="saff-") as folder:
        with SummaryWriter(folder) as writer:
            for row in rows:
                for name in COLUMNS[1:]:
                    writer.add_scalar(f"training/{name}", row[name], int(row["step"]))
        (path,) = (os.path.join(folder, name) for name in os.listdir(folder))
        with open(path, "rb") as file:
            return file.read()


class Trained(NamedTuple):
    """A trained network, ready to predict."""

    network: Network
    """In evaluation mode, on the CPU."""
    run: Row
    """What decided it, as its run.json says."""
    sha256: str
    """SHA-256 of the weights file."""


def load_trained(run: Folder | None, allow_code: Collection[str] = ()) -> Trained:
    """Load the network that a run has trained.

    Parameters
    ----------
    run : Folder or None
        Output of a run: the prefix that holds ``network/``; None: the network that comes with saff.
    allow_code : collection of str
        Modules that may be imported where the run names a network as ``package.module:factory``.

    Raises
    ------
    SettingsError
        If there is none, or training has not ended; its subclass WeightsError if the weights are
        damaged or belong to another network.
    """
    if run is None:
        comes_with_saff = load_shipped()
        return Trained(comes_with_saff.network, {}, comes_with_saff.digest)
    folder = layout.network(run)
    if not folder.exists(WEIGHTS):
        begun = folder.exists(RUN)
        what = "training has not ended" if begun else "there is no trained network"
        raise SettingsError(f"{what} at {folder.uri}: run saff train --output {run.uri}")
    description = read_run(folder)
    with with_brief_retries(folder.uri):
        data = folder.read(WEIGHTS)
    try:
        training = Training(**description["training"])
    except (KeyError, TypeError, SettingsError) as error:
        raise WeightsError(
            f"{folder.uri}/run.json is damaged or of another version of saff: {error}"
        ) from error
    refuse_code(training.network, allow_code, f"{folder.uri}/run.json")
    network = networks.load(training.network)
    sha256 = hashlib.sha256(data).hexdigest()
    load_state(network, WeightsFile(f"{folder.uri}/{WEIGHTS}", sha256, data))
    network.eval()
    if isinstance(network, LiteUNet):
        fuse_network(network)
    return Trained(network, description, sha256)
