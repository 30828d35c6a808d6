import csv
import json

import numpy as np
import pytest

from saff import metrics
from saff.errors import SettingsError, StorageError
from saff.evaluation import evaluate
from saff.images import encode_png
from saff.runs import stage_digest
from stored_runs import (
    RNG,
    SHAPE,
    STAGE,
    a_run,
    failed,
    files_below,
    labelled,
    truths,
    write_truth,
)


@pytest.mark.parametrize("truth_format", ["voc", "binary"])
@pytest.mark.parametrize("normalise", [True, False])
def test_figures_are_those_of_the_arrays(tmp_path, truth_format, normalise):
    expected = metrics.Evaluation(normalise=normalise)
    rows = []
    for number in range(5):
        confidence = RNG.integers(20, 220, (SHAPE[0] + number, 9), np.uint8)
        rows.append(labelled(tmp_path, f"n/{number} ü.jpg", confidence))
        truth, valid = truths(confidence.shape)
        # by the whole id, or by its last part
        name = f"{'n/' if number % 2 else ''}{number} ü.png"
        valid = write_truth(tmp_path / "truth" / name, truth, valid, truth_format)
        expected.add(confidence, truth, valid)
    rows += [labelled(tmp_path, "n/other.jpg"), failed("n/0 ü.gif"), failed("unknown.jpg")]
    output = a_run(tmp_path, rows)
    summary = evaluate(output, str(tmp_path / "truth"), truth_format, STAGE, normalise=normalise)
    assert summary == expected.summary() | {
        "failed": 2,
        "without_truth": 1,
        "parts_to_do": 0,
        "digest": stage_digest(output, STAGE),
    }
    assert summary["images"] == 5

    folder = tmp_path / "run" / "evaluation" / STAGE
    assert files_below(folder) == ["curve.csv", "curve.svg", "metrics.json"]
    assert json.loads((folder / "metrics.json").read_text()) == summary
    curve = expected.curve()
    with open(folder / "curve.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    np.testing.assert_array_equal([float(line["precision"]) for line in lines], curve.precision)
    np.testing.assert_array_equal([float(line["recall"]) for line in lines], curve.recall)
    assert max(float(line["f"]) for line in lines) == summary["mean_pr"]["max_f"]
    assert "pseudo labels: max F" in (folder / "curve.svg").read_text()


def test_the_mask_of_the_whole_id_comes_first(tmp_path):
    confidence = RNG.integers(0, 256, SHAPE, np.uint8)
    output = a_run(tmp_path, [labelled(tmp_path, "a/cat.jpg", confidence)])
    write_truth(tmp_path / "truth" / "a" / "cat.png", confidence >= 128, None, "binary")
    write_truth(tmp_path / "truth" / "cat.png", confidence < 128, None, "binary")
    assert evaluate(output, str(tmp_path / "truth"), "binary", STAGE)["iou"] == 1.0


def test_masks_without_foreground_are_counted(tmp_path):
    rows = [labelled(tmp_path, f"{name}.jpg") for name in "ab"]
    output = a_run(tmp_path, rows)
    nothing = np.zeros(SHAPE, bool)
    write_truth(tmp_path / "truth" / "a.png", nothing, None, "binary")
    with pytest.raises(SettingsError, match="1 have a mask without foreground"):
        evaluate(output, str(tmp_path / "truth"), "binary", STAGE)
    write_truth(tmp_path / "truth" / "b.png", *truths(), "binary")
    summary = evaluate(output, str(tmp_path / "truth"), "binary", STAGE)
    assert (summary["images"], summary["skipped"]) == (1, 1)


def test_nothing_to_measure_is_said(finished, tmp_path):
    for name in ("missing", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(SettingsError, match=f"no masks at {tmp_path}/{name}"):
            evaluate(finished, str(tmp_path / name), "binary", STAGE)
    write_truth(tmp_path / "truth" / "stranger.png", *truths(), "binary")
    with pytest.raises(SettingsError, match="nothing to measure: 4 images have no mask in "):
        evaluate(finished, str(tmp_path / "truth"), "binary", STAGE)
    assert not (finished / "evaluation").names("")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (encode_png(np.full((9, 6), 255, np.uint8)), r"truth must have the shape \(6, 9\)"),
        (b"", "truth must be a PNG mask"),
        (encode_png(np.full(SHAPE, 255, np.uint8))[:50], "cannot be read"),
    ],
    ids=["another size", "no picture", "half a picture"],
)
def test_a_mask_that_does_not_fit_is_named(tmp_path, content, said):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg")])
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "a.png").write_bytes(content)
    with pytest.raises(SettingsError, match=rf"mask a\.png of {tmp_path}/truth: .*{said}"):
        evaluate(output, str(tmp_path / "truth"), "binary", STAGE)
    assert not (tmp_path / "run" / "evaluation").exists()


def test_an_evaluation_that_cannot_be_written_is_named(tmp_path):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg")])
    write_truth(tmp_path / "truth" / "a.png", *truths(), "binary")
    (tmp_path / "run" / "evaluation").touch()
    with pytest.raises(StorageError, match=r"no access to .*/run/evaluation/pseudo_labels: "):
        evaluate(output, str(tmp_path / "truth"), "binary", STAGE)
