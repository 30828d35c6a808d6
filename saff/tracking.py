"""Trainings in MLflow: settings, the metrics of every step and the checksum of the weights.

MLflow gets what ``network/metrics.csv`` holds, so a training that continues from a checkpoint
continues its run of MLflow without a step too many. ``network/mlflow.json`` names that run. Where
MLflow is, its own variables say: ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME`` and those of
its credentials. The package is an extra of saff and imported when it is first used.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from saff.addresses import redact
from saff.errors import SettingsError, TrackingError
from saff.shards import Row
from saff.trained import COLUMNS, TRACKED, WEIGHTS, NetworkFolder
from saff.training_loop import Metrics

DEFAULT_EXPERIMENT = "saff"
LOOK_SECONDS = 10.0  # between two looks for new steps
STEPS_PER_REQUEST = 150  # MLflow takes 1000 metrics at once
LONGEST_PARAMETER = 500  # characters, in every version of MLflow
VARIABLES = {  # unless a user sets others: MLflow would try for minutes, print addresses, and
    # report to its makers that it is used
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tracker:
    """An experiment of MLflow.

    Attributes
    ----------
    client : mlflow.MlflowClient
        Client of its server.
    experiment : str
        Its id.
    """

    client: Any
    experiment: str

    @contextmanager
    def following(self, results: NetworkFolder, run: Row) -> Iterator[None]:
        """Log what a training writes while the block trains, and the rest at its end.

        Parameters
        ----------
        results : NetworkFolder
            The training's results.
        run : dict
            Its run.json.

        Raises
        ------
        SettingsError
            If the run of MLflow in which the training was begun is not there, or MLflow takes no
            new one.
        TrackingError
            If MLflow failed; the training itself is done, and the same command logs the rest.
        """
        tracked = self._tracked(results, run)
        ended = threading.Event()
        thread = threading.Thread(target=tracked.watch, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            ended.set()
            thread.join()
            tracked.end("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        ended.set()
        thread.join()
        try:
            tracked.complete()
        except Exception as error:
            raise TrackingError(
                f"the training is done, weights in {results.folder.uri}, but MLflow did not take "
                f"all of it ({_line(error)}); the same command logs the rest"
            ) from error

    def _tracked(self, results: NetworkFolder, run: Row) -> "TrackedRun":
        """Find the run in which the training was begun, or begin one."""
        if results.folder.exists(TRACKED):
            run_id = str(json.loads(results.folder.read(TRACKED))["run_id"])
            try:
                self.client.update_run(run_id, status="RUNNING")
                past = self.client.get_metric_history(run_id, "loss")
            except Exception as error:
                raise SettingsError(
                    f"this training was begun in the run {run_id} of MLflow, which does not answer "
                    f"({_line(error)}); set MLFLOW_TRACKING_URI to where it is, or remove "
                    f"{results.folder.uri}/{TRACKED} to log to another run"
                ) from error
            return TrackedRun(self.client, run_id, results, max((m.step for m in past), default=0))
        try:
            run_id = self._begin_run(results, run)
        except Exception as error:
            raise SettingsError(
                f"MLflow takes no run of this training ({_line(error)}); see to its server and its "
                "credentials, or train without --track"
            ) from error
        results.folder.write(TRACKED, json.dumps({"run_id": run_id}).encode())
        return TrackedRun(self.client, run_id, results, 0)

    def _begin_run(self, results: NetworkFolder, run: Row) -> str:
        """Begin a run with the settings of a training, and give its id."""
        from mlflow.entities import Param

        tags = {"saff.network": results.folder.uri, "saff.digest": run["digest"]}
        tags |= {"saff.version": run["saff"], "saff.images": str(run["labels"]["images"])}
        name = results.folder.uri.removesuffix("/network").rpartition("/")[2]
        made = self.client.create_run(self.experiment, run_name=name, tags=tags)
        run_id = str(made.info.run_id)
        values = {key: str(value)[:LONGEST_PARAMETER] for key, value in run["training"].items()}
        self.client.log_batch(run_id, params=[Param(*item) for item in values.items()])
        return run_id


@dataclass(slots=True)
class TrackedRun:
    """A training's run of MLflow.

    Attributes
    ----------
    client : mlflow.MlflowClient
        Client of its server.
    run_id : str
        Which run.
    results : NetworkFolder
        The training's results.
    logged : int
        The last step that MLflow has.
    """

    client: Any
    run_id: str
    results: NetworkFolder
    logged: int

    def watch(self, ended: threading.Event) -> None:
        """Log new steps until the end; the first fault is a warning and the last thing done."""
        try:
            while not ended.wait(LOOK_SECONDS):
                self.catch_up()
        except Exception as error:
            line = _line(error)
            LOG.warning("MLflow does not take the metrics (%s); tried again at the end", line)

    def catch_up(self) -> None:
        """Log the steps of ``metrics.csv`` that MLflow does not have."""
        rows = [row for row in self.results.read_metrics() if row["step"] > self.logged]
        for first in range(0, len(rows), STEPS_PER_REQUEST):
            some = rows[first : first + STEPS_PER_REQUEST]
            self.client.log_batch(self.run_id, metrics=_entities(some))
            self.logged = int(some[-1]["step"])

    def complete(self) -> None:
        """Log what is missing and the checksum of the weights; the run is finished."""
        self.catch_up()
        sha256 = hashlib.sha256(self.results.folder.read(WEIGHTS)).hexdigest()
        self.client.set_tag(self.run_id, "saff.weights_sha256", sha256)
        self.client.set_terminated(self.run_id, "FINISHED")

    def end(self, status: str) -> None:
        """Record in MLflow how the training has ended; a fault is a warning."""
        try:
            self.catch_up()
            self.client.set_terminated(self.run_id, status)
        except Exception as error:
            LOG.warning("MLflow does not know that the training has ended: %s", _line(error))


def connect() -> Tracker:
    """Open the experiment of MLflow that the environment names.

    Raises
    ------
    SettingsError
        If the package is missing, or MLflow does not answer.
    """
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
        from mlflow.tracking import get_tracking_uri
    except ImportError as error:
        raise SettingsError(
            f"--track mlflow needs MLflow ({error}): pip install 'saff[mlflow]'"
        ) from error
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    try:
        client = MlflowClient()
        found = client.get_experiment_by_name(name)
        return Tracker(client, found.experiment_id if found else client.create_experiment(name))
    except Exception as error:
        raise SettingsError(
            f"no MLflow at {redact(get_tracking_uri())}: {_line(error)}; set MLFLOW_TRACKING_URI "
            "to the address of its server"
        ) from error


def _entities(rows: list[Metrics]) -> list[Any]:
    """Metrics of some steps as MLflow takes them."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [
        Metric(name, row[name], now, int(row["step"]))
        for row in rows
        for name in COLUMNS
        if name != "step"
    ]


def _line(error: Exception) -> str:
    """Give the first line of an error, which may go on for pages, without the server's password."""
    from mlflow.tracking import get_tracking_uri

    uri = get_tracking_uri()
    text = str(error).replace(uri, redact(uri))
    return next(iter(text.splitlines()), "") or type(error).__name__
