"""A training's metrics in a real store of MLflow, which needs no server."""

import hashlib
import json
import os
import sys
import time
from unittest import mock

import pytest

pytest.importorskip("mlflow", reason="MLflow is not installed")

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from clusters import free_port
from saff import tracking, trained
from saff.errors import SettingsError, TrackingError, TrainingError
from saff.storage import Folder
from saff.tracking import TrackedRun, connect
from saff.trained import NetworkFolder

RUN = {
    "saff": "0.2.0",
    "digest": "d1",
    "training": {"steps": 6, "learning_rate": 1e-4, "network_weights": None},
    "labels": {"images": 4},
}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """Variables of a user whose MLflow is a folder."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    with mock.patch.dict(os.environ):  # connect() adds some
        yield


@pytest.fixture
def results(tmp_path):
    return NetworkFolder(Folder.at(str(tmp_path / "run" / "network")))


def train(results, first, last):
    """Write what a training from one step to another leaves."""
    rows = results.read_metrics(first - 1)
    for step in range(first, last + 1):
        rows.append(dict.fromkeys(trained.COLUMNS, step / 7) | {"step": step, "samples": 8})
    results.write_metrics(rows)


def finish(results):
    results.folder.write("weights.pt", b"weights")


def tracked(results):
    run_id = json.loads(results.folder.read("mlflow.json"))["run_id"]
    return MlflowClient().get_run(run_id)


def history(results, name):
    run_id = tracked(results).info.run_id
    return [(m.step, m.value) for m in MlflowClient().get_metric_history(run_id, name)]


def test_settings_metrics_and_the_checksum_of_the_weights_are_logged(results):
    with connect().following(results, RUN):
        train(results, 1, 6)
        finish(results)
    run = tracked(results)
    assert MlflowClient().get_experiment(run.info.experiment_id).name == "saff"
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params == {"steps": "6", "learning_rate": "0.0001", "network_weights": "None"}
    assert run.data.tags["saff.network"] == results.folder.uri
    assert run.data.tags["saff.digest"] == "d1"
    assert run.data.tags["saff.weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    for name in ("loss", "accuracy", "learning_rate", "gradient_norm", "seconds"):
        assert history(results, name) == [(step, step / 7) for step in range(1, 7)]
    assert history(results, "samples") == [(step, 8) for step in range(1, 7)]


def test_steps_are_seen_while_the_training_runs(results, monkeypatch):
    monkeypatch.setattr(tracking, "LOOK_SECONDS", 0.01)
    with connect().following(results, RUN):
        train(results, 1, 2)
        end = time.monotonic() + 30
        while len(history(results, "loss")) < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert tracked(results).info.status == "RUNNING"
        finish(results)


def test_a_resumed_training_continues_its_run_and_no_step_is_there_twice(results):
    def interrupted():
        with connect().following(results, RUN):
            train(results, 1, 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    before = tracked(results)
    assert before.info.status == "KILLED"
    with connect().following(results, RUN):
        assert tracked(results).info.status == "RUNNING"
        train(results, 3, 6)  # from a checkpoint of step 2
        finish(results)
    assert tracked(results).info.run_id == before.info.run_id
    assert [step for step, _ in history(results, "loss")] == [1, 2, 3, 4, 5, 6]
    assert len(MlflowClient().search_runs([before.info.experiment_id])) == 1


def test_a_training_that_fails_has_failed_in_mlflow(results):
    def failing():
        with connect().following(results, RUN):
            train(results, 1, 2)
            raise TrainingError("the loss is nan")

    with pytest.raises(TrainingError, match="the loss is nan"):
        failing()
    assert tracked(results).info.status == "FAILED"
    assert len(history(results, "loss")) == 2


def test_a_training_that_is_done_is_logged_afterwards(results):
    train(results, 1, 400)  # more than a request takes
    finish(results)
    with connect().following(results, RUN):
        pass
    assert [step for step, _ in history(results, "loss")] == [*range(1, 401)]
    assert tracked(results).info.status == "FINISHED"


def test_mlflow_that_fails_at_the_end_costs_no_training_and_is_caught_up(results, monkeypatch):
    def failing():
        with connect().following(results, RUN):
            train(results, 1, 6)
            finish(results)

    with monkeypatch.context() as patch:
        refuse = mock.Mock(side_effect=MlflowException("disk full\non the server"))
        patch.setattr(TrackedRun, "catch_up", refuse)
        with pytest.raises(TrackingError, match=r"is done, weights in .* \(disk full\); the same"):
            failing()
    assert history(results, "loss") == []
    with connect().following(results, RUN):
        pass
    assert len(history(results, "loss")) == 6


def test_a_run_that_is_gone_is_named(results, tmp_path, monkeypatch):
    train(results, 1, 1)
    finish(results)
    with connect().following(results, RUN):
        pass
    run_id = tracked(results).info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/another")
    with (
        pytest.raises(SettingsError, match=rf"begun in the run {run_id} of MLflow.*mlflow\.json"),
        connect().following(results, RUN),
    ):
        pytest.fail("it was to be refused")


def test_a_server_that_does_not_answer_is_refused_at_once(monkeypatch):
    address = f"http://name:secret@127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SettingsError, match=r"no MLflow at .*set MLFLOW_T") as refused:
        connect()
    assert "secret" not in str(refused.value)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(SettingsError, match=r"pip install 'saff\[mlflow\]'"):
        connect()


def test_mlflow_that_takes_no_run_is_refused_before_the_training(results):
    tracker = connect()
    refuse = mock.Mock(side_effect=MlflowException("PERMISSION_DENIED: not yours"))
    with (
        mock.patch.object(tracker.client, "create_run", refuse),
        pytest.raises(SettingsError, match=r"no run of this training \(PERMISSION_DENIED: not you"),
        tracker.following(results, RUN),
    ):
        pytest.fail("it was to be refused")
    assert not results.folder.exists("mlflow.json")


def test_mlflow_reports_to_nobody_else_unless_a_user_wants_it(monkeypatch):
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    connect()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    connect()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"
