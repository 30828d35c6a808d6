import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saff import evaluation, metrics
from saff.errors import SettingsError, StorageError
from saff.evaluation import describe_left_out, evaluate
from saff.images import decode_png, encode_png
from saff.metrics import Evaluation
from saff.runs import stage_digest
from saff.shards import MANIFEST
from stored_runs import (
    RNG,
    SHAPE,
    STAGE,
    a_run,
    failed,
    files_below,
    labelled,
    predicted,
    truths,
    write_predictions,
    write_truth,
)

NOTHING = {
    reason: {"count": 0, "first": []} for reason in (*evaluation.REASONS, "masks_without_image")
}


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
    write_truth(tmp_path / "truth" / "stranger.png", *truths(), truth_format)
    output = a_run(tmp_path, rows)
    summary = evaluate(output, str(tmp_path / "truth"), truth_format, STAGE, normalise=normalise)
    assert summary == expected.summary() | {
        "rows": 8,
        "failed": 2,
        "without_truth": 1,
        "left_out": NOTHING
        | {
            "failed": {"count": 2, "first": ["n/0 ü.gif", "unknown.jpg"]},
            "no_mask": {"count": 1, "first": ["n/other.jpg"]},
            "masks_without_image": {"count": 1, "first": ["stranger.png"]},
        },
        "parts_to_do": 0,
        "nothing_found": {"images": 0, "without_foreground": 0},
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
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "a.png").write_bytes(encode_png(np.zeros(SHAPE, np.uint8)))
    with pytest.raises(SettingsError, match=r"nothing to measure .*no foreground: a\.png; "):
        evaluate(output, str(tmp_path / "truth"), "binary", STAGE, partial=True)
    write_truth(tmp_path / "truth" / "b.png", *truths(), "binary")
    summary = evaluate(output, str(tmp_path / "truth"), "binary", STAGE)
    assert (summary["images"], summary["skipped"]) == (1, 1)
    assert describe_left_out(summary) == ["left out: 1 image whose mask has no foreground: a.png"]


def test_images_in_which_nothing_was_found_are_counted_and_have_an_empty_mask(tmp_path, call):
    rows = [labelled(tmp_path, f"{name}.jpg") for name in "abcd"]
    output = a_run(tmp_path, rows)
    answers = [predicted(row) for row in rows]
    for answer in answers[:2]:
        answer["foreground_found"] = False
    answers[2]["confidence"] = encode_png(np.full(SHAPE, 127, np.uint8))
    write_predictions(output, answers)
    expected = Evaluation()
    for row, answer in zip(rows, answers, strict=True):
        truth, valid = truths()
        truth &= row["image_id"] != "b.jpg"  # rightly empty
        path = tmp_path / "truth" / f"{row['image_id'][0]}.png"
        write_truth(path, truth, valid, "binary")
        if not truth.any():
            path.write_bytes(encode_png(np.zeros(SHAPE, np.uint8)))
        found = answer["foreground_found"]
        expected.add(decode_png(answer["confidence"]), truth, foreground_found=found)
    summary = evaluate(output, str(tmp_path / "truth"), "binary", "predictions")
    assert summary["nothing_found"] == {"images": 3, "without_foreground": 1}
    assert summary.items() >= expected.summary().items()
    words = ("--truth", tmp_path / "truth", "--stage", "predictions")
    _, out, _ = call("evaluate", output.path, *words)
    assert "nothing found in 3 images, 1 of them without foreground in truth, too\n" in out


def test_nothing_to_measure_is_said(finished, tmp_path):
    for name in ("missing", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(SettingsError, match=f"no masks at {tmp_path}/{name}: "):
            evaluate(finished, str(tmp_path / name), "binary", STAGE)
    write_truth(tmp_path / "truth" / "stranger.png", *truths(), "binary")
    with pytest.raises(
        SettingsError,
        match=r"nothing to measure .*left out: 4 images without a mask: .*, .*, .*, \.\.\.; "
        r"1 mask without an image: stranger\.png; ",
    ):
        evaluate(finished, str(tmp_path / "truth"), "binary", STAGE)
    assert not (finished / "evaluation").names("")


def test_less_than_half_of_the_images_is_measured_only_when_that_is_meant(tmp_path):
    rows = [labelled(tmp_path, f"{number}.jpg") for number in range(5)] + [failed("a.json")]
    output = a_run(tmp_path, rows)
    truth = str(tmp_path / "truth")
    for number in range(2):
        write_truth(tmp_path / "truth" / f"{number}.png", *truths(), "binary")
    (tmp_path / "truth" / "2.npy").touch()
    said = (
        r"only 2 of 5 images can be measured .*; left out: 1 image that failed: a\.json; "
        r"left out: 2 images without a mask: 3\.jpg, 4\.jpg; left out: 1 image whose mask has a "
        r"format that is not read .*: 2\.npy; .*--partial"
    )
    with pytest.raises(SettingsError, match=said):
        evaluate(output, truth, "binary", STAGE)
    assert not (tmp_path / "run" / "evaluation").exists()
    summary = evaluate(output, truth, "binary", STAGE, partial=True)
    assert (summary["images"], summary["rows"], summary["without_truth"]) == (2, 6, 3)
    write_truth(tmp_path / "truth" / "3.png", *truths(), "binary")
    assert evaluate(output, truth, "binary", STAGE)["images"] == 3


def test_a_mask_is_never_used_for_two_images(tmp_path):
    names = ("a.jpg", "a.png", "b.jpg", "c.jpg", "d.jpg")
    output = a_run(tmp_path, [labelled(tmp_path, name) for name in names])
    truth = str(tmp_path / "truth")
    for name in "abcd":
        write_truth(tmp_path / "truth" / f"{name}.png", *truths(), "binary")
    with pytest.raises(SettingsError, match=r"a\.png would be the mask of a\.jpg, a\.png; name"):
        evaluate(output, truth, "binary", STAGE)
    summary = evaluate(output, truth, "binary", STAGE, partial=True)
    assert (summary["images"], summary["without_truth"]) == (3, 2)
    assert summary["left_out"]["mask_in_conflict"]["count"] == 2
    for name in ("a.jpg.png", "a.png.png"):  # as export names them
        write_truth(tmp_path / "truth" / name, *truths(), "binary")
    summary = evaluate(output, truth, "binary", STAGE)
    assert (summary["images"], summary["without_truth"]) == (5, 0)
    assert summary["left_out"]["masks_without_image"] == {"count": 1, "first": ["a.png"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (encode_png(np.full((9, 6), 255, np.uint8)), "it is 6 x 9, its image 9 x 6"),
        (b"", "image is empty"),
        (encode_png(np.full(SHAPE, 255, np.uint8))[:50], "image is a truncated PNG file"),
        (encode_png(np.full((*SHAPE, 3), (9, 8, 7), np.uint8)), "--truth-format nonzero"),
    ],
    ids=["another size", "no picture", "half a picture", "colours"],
)
def test_a_mask_that_does_not_fit_is_named(tmp_path, content, said):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg")])
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "a.png").write_bytes(content)
    with pytest.raises(SettingsError, match=rf"1 mask of {tmp_path}/truth .*: a\.png: .*{said}"):
        evaluate(output, str(tmp_path / "truth"), "binary", STAGE)
    assert not (tmp_path / "run" / "evaluation").exists()


def test_all_masks_at_fault_are_named_in_one_error(tmp_path):
    output = a_run(tmp_path, [labelled(tmp_path, f"{number}.jpg") for number in range(9)], shard=2)
    for number in range(9):
        shape = (9, 6) if number < 7 else (*SHAPE, 3)
        content = np.full(shape, 255, np.uint8) if number < 7 else np.full(shape, (9, 8, 7), "u1")
        (tmp_path / "truth").mkdir(exist_ok=True)
        (tmp_path / "truth" / f"{number}.png").write_bytes(encode_png(content))
    with pytest.raises(
        SettingsError,
        match=r"^7 masks of .* another size than the image: 0\.png, 1\.png, 2\.png, 3\.png, "
        r"4\.png: it is 6 x 9, its image 9 x 6; and 2 more\. 2 masks of .* that cannot be read: "
        r"7\.png, 8\.png: it holds colours",
    ):
        evaluate(output, str(tmp_path / "truth"), "binary", STAGE)


def test_figures_do_not_depend_on_parts_their_order_or_waves(tmp_path, monkeypatch):
    rows = [labelled(tmp_path, f"{number}.jpg") for number in range(11)]
    for number in range(6):
        write_truth(tmp_path / "truth" / f"{number}.png", *truths(), "binary")
    for number in range(6, 10):
        nothing = encode_png(np.zeros(SHAPE, np.uint8))
        (tmp_path / "truth" / f"{number}.png").write_bytes(nothing)
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    one, many = a_run(tmp_path / "one", rows, 11), a_run(tmp_path / "many", rows, 2)
    truth = str(tmp_path / "truth")
    waves = []

    def backwards(task, parts):
        waves.append(len(parts))
        return reversed(list(evaluation.one_by_one(task, parts)))

    whole = evaluate(one, truth, "binary", STAGE)
    assert whole["left_out"]["no_foreground"]["first"] == ["6.png", "7.png", "8.png"]
    assert evaluate(many, truth, "binary", STAGE, map_parts=backwards) == whole
    monkeypatch.setattr(evaluation, "WAVE_BYTES", 20)
    assert evaluate(many, truth, "binary", STAGE, map_parts=backwards) == whole
    assert waves == [6, 2, 2, 2]


def test_masks_of_images_to_do_are_not_strangers(tmp_path):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg")])
    (tmp_path / "run" / "manifest").mkdir()
    for number, name in enumerate(("a.jpg", "b.jpg")):
        part = pa.Table.from_pylist([{"image_id": name, "uri": "/x"}], MANIFEST)
        pq.write_table(part, tmp_path / "run" / "manifest" / f"part-{number:07d}.parquet")
    for name in "abc":
        write_truth(tmp_path / "truth" / f"{name}.png", *truths(), "binary")
    summary = evaluate(output, str(tmp_path / "truth"), "binary", STAGE)
    assert summary["parts_to_do"] == 1
    assert summary["left_out"]["masks_without_image"] == {"count": 1, "first": ["c.png"]}


def test_an_evaluation_that_cannot_be_written_is_named(tmp_path):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg")])
    write_truth(tmp_path / "truth" / "a.png", *truths(), "binary")
    (tmp_path / "run" / "evaluation").touch()
    with pytest.raises(StorageError, match=r"no access to .*/run/evaluation/pseudo_labels: "):
        evaluate(output, str(tmp_path / "truth"), "binary", STAGE)
