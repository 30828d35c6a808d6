"""Lines for a person, or one JSON object per line for a program."""

import io
import json
import logging
from datetime import datetime, timedelta, timezone

import pytest

from saff import cli, log
from saff.errors import SettingsError, TrainingError
from saff.progress import Progress


@pytest.fixture
def as_json(monkeypatch):
    """Objects are wanted; what a command changes of logging is put back afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("saff")
    before = root.handlers[:], root.level, ours.level, log._formatter
    monkeypatch.setenv("SAFF_LOG_FORMAT", "json")
    yield
    logging.disable(logging.NOTSET)
    logging.captureWarnings(False)
    root.handlers[:], level, ours_level, log._formatter = before
    root.setLevel(level)
    ours.setLevel(ours_level)


def objects(text):
    return [json.loads(line) for line in text.splitlines()]


def test_an_object_says_what_its_line_says_and_of_which_run_and_process(as_json, capsys):
    log.begin("label", "s3://bucket/run")
    log.say("done: 2 images", "done", images=2)
    logging.getLogger("saff.sources").warning("%d files\nare no images", 3)
    logging.getLogger("elsewhere").warning("old")
    logging.getLogger("elsewhere").info("not shown")
    done, warned, other = objects(capsys.readouterr().err)
    now = datetime.now(timezone.utc)
    for entry in (done, warned, other):
        assert now - timedelta(minutes=1) < datetime.fromisoformat(entry.pop("time")) <= now
        assert (entry.pop("command"), entry.pop("job")) == ("label", log.JOB)
        assert entry.pop("output") == "s3://bucket/run"
    assert done == {"level": "info", "event": "done", "message": "done: 2 images", "images": 2}
    message = "3 files\nare no images"
    assert warned == {"level": "warning", "event": "message", "message": message}
    assert (other["message"], other["logger"]) == ("old", "elsewhere")


def test_without_it_a_line_is_a_line(capsys, monkeypatch):
    monkeypatch.delenv("SAFF_LOG_FORMAT", raising=False)
    handlers = logging.getLogger().handlers[:]
    log.begin("label", "out")
    log.say("done: 2 images", "done", images=2)
    assert capsys.readouterr().err == "done: 2 images\n"
    assert logging.getLogger().handlers == handlers


def test_another_format_is_refused(monkeypatch):
    monkeypatch.setenv("SAFF_LOG_FORMAT", "xml")
    with pytest.raises(
        SettingsError, match="SAFF_LOG_FORMAT is 'xml', expected one of: text, json"
    ):
        log.begin("label", None)


def test_progress_has_figures_also_on_a_terminal(as_json):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    with Progress("train", 10, screen, unit="steps") as progress:
        progress.reach(4, "loss 0.5", loss=0.5)
    with Progress("label", 8, screen, stage="pseudo_labels") as progress:
        progress.advance(2, 1)
    steps, images = objects(screen.getvalue())
    assert steps["message"].startswith("train: 4 of 10 steps, loss 0.5, ")
    assert [steps[name] for name in ("event", "stage", "done", "total", "unit", "loss")] == [
        "progress",
        "train",
        4,
        10,
        "steps",
        0.5,
    ]
    assert (images["stage"], images["done"], images["failed"]) == ("pseudo_labels", 2, 1)
    assert images["per_second"] > 0


def test_an_error_is_an_object_with_its_kind(as_json, capsys):
    log.begin("train", None)

    def program():
        raise TrainingError("the loss is nan;\nlower the rate")

    with pytest.raises(SystemExit) as ended:
        cli.explain(program)
    (entry,) = objects(capsys.readouterr().err)
    assert ended.value.code == 2
    assert entry["message"] == "saff: the loss is nan; lower the rate"
    assert (entry["level"], entry["event"], entry["kind"]) == ("error", "error", "TrainingError")


def test_a_defect_is_an_object_with_its_traceback(as_json, capsys):
    log.begin("train", None)
    with pytest.raises(SystemExit) as ended:
        cli.explain(lambda: [][0])
    (entry,) = objects(capsys.readouterr().err)
    assert ended.value.code == 1
    assert (entry["level"], entry["event"]) == ("critical", "error")
    assert "IndexError: list index out of range" in entry["traceback"]
