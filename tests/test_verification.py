"""Every fault that an output can have is planted in a copy of a good one, and named."""

import dataclasses
import io
import json
import re
import shutil
from functools import partial
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saff import config, verification
from saff.cluster import map_parts
from saff.cluster.labels import encode_label
from saff.cluster.predictions import PredictPart, describe_predictions, encode_prediction
from saff.config import Inference, Training
from saff.errors import SettingsError, StorageError
from saff.images import decode_png, encode_png
from saff.labeling import label_image
from saff.layout import run_file
from saff.runs import claim, stage_digest, with_digest
from saff.samples import open_corpus
from saff.shards import (
    MANIFEST,
    PREDICTIONS,
    PSEUDO_LABELS,
    open_writer,
    processor,
    read_rows,
    write_rows,
)
from saff.sources import list_images
from saff.storage import Folder
from saff.trained import NetworkFolder, describe, load_trained, start_network
from saff.verification import verify
from saff.verification.findings import MOST_FAULTS, shown
from saff.verification.parts import VerifyPart
from saff.verification.rows import digest, examine

FIRST, SECOND = "part-0000000.parquet", "part-0000001.parquet"
ID = "astronaut ü.png"  # of the first row of the first part
HEX = "0f" * 32


def shard(output, name=FIRST, stage="pseudo_labels"):
    return list(read_rows(output / stage, name))


def rewrite(output, rows, name=FIRST, stage="pseudo_labels"):
    schemas = {"manifest": MANIFEST, "predictions": PREDICTIONS, "pseudo_labels": PSEUDO_LABELS}
    with (output / stage).replacing(name) as path, open_writer(path, schemas[stage]) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schemas[stage]))


def change(output, **columns):
    """Change the first row of the first shard."""
    first, *others = shard(output)
    rewrite(output, [first | columns, *others])


def pixels(output, column):
    return decode_png(shard(output)[0][column])


def told(output, **how):
    """Faults of an output, without the summary at the end, each without the output's path."""
    verdict = verify(output, **how)
    assert not verdict.whole
    (found,) = verdict.outputs
    return [line.removeprefix(f"{output.uri}/") for line in found.faults.lines]


def told_of_first(output, **how):
    """The one fault, which is of the first row of the first shard."""
    (line,) = told(output, **how)
    start = f"pseudo_labels/{FIRST}: row 0 {ID!r}: "
    assert line.startswith(start)
    return line.removeprefix(start)


@pytest.fixture(scope="module")
def predicted(finished, tmp_path_factory):
    """A finished run with a network, untrained, and its predictions; not to change."""
    folder = tmp_path_factory.mktemp("predicted") / "run"
    shutil.copytree(finished.path, folder)
    output = Folder.at(str(folder))
    network, training = NetworkFolder(output / "network"), Training()
    labels = {"stage": "pseudo_labels", "digest": stage_digest(output, "pseudo_labels")}
    network.claim(describe(training, open_corpus(output / "pseudo_labels"), labels))
    network.finish(start_network(training).state_dict())
    inference = Inference(input_sides=(64,), pseudo_label_share=0.0)
    settings = dataclasses.replace(config.default(), inference=inference)
    claim(output / "predictions", describe_predictions(load_trained(output).sha256, settings))
    part = PredictPart(output, "predictions", output, settings)
    for name in (output / "manifest").names(".parquet"):
        part({"part": name})
    return output


@pytest.fixture
def predicted_copy(predicted, tmp_path):
    shutil.copytree(predicted.path, tmp_path / "predicted")
    return Folder.at(str(tmp_path / "predicted"))


# Whole


def test_a_finished_run_is_whole(finished):
    verdict = verify(finished, images=True)
    assert verdict.whole
    assert verdict.lines == [
        f"{finished.uri}: 7 images; pseudo_labels: 4 done, 3 failed, 0 to do; 0 faults"
    ]


def test_both_stages_are_verified_or_one(predicted):
    verdict = verify(predicted)
    assert verdict.whole
    assert verdict.lines == [
        f"{predicted.uri}: 7 images; pseudo_labels: 4 done, 3 failed, 0 to do; "
        "predictions: 4 done, 3 failed, 0 to do; 0 faults"
    ]
    assert [*verify(predicted, stage="predictions").outputs[0].stages] == ["predictions"]


def test_what_is_not_done_is_no_fault_but_not_whole(predicted_copy):
    (predicted_copy / "pseudo_labels").remove(FIRST)
    (predicted_copy / "predictions").remove(SECOND)
    verdict = verify(predicted_copy)
    assert not verdict.whole
    summary, *commands = verdict.lines
    assert summary.endswith(
        ": 7 images; pseudo_labels: 2 done, 3 failed, 2 to do; "
        "predictions: 3 done, 2 failed, 2 to do; 0 faults"
    )
    source = json.loads(predicted_copy.read("run.json"))["source"]
    where = f"--output {predicted_copy.uri}"
    assert [command.split(": ")[1] for command in commands] == [
        f"saff label --images {source} {where}",
        f"saff reinfer {where}",
    ]


def test_an_output_that_has_nothing_yet(corpus, finished, run_copy):
    for name in (run_copy / "pseudo_labels").names(".parquet"):
        (run_copy / "pseudo_labels").remove(name)
    found = verify(run_copy).outputs[0]
    assert (found.whole, found.stages["pseudo_labels"].to_do, found.faults.count) == (False, 7, 0)
    for name in (run_copy / "manifest").names(".parquet"):
        (run_copy / "manifest").remove(name)
    assert told(run_copy) == ["manifest: holds no images"]


def test_a_folder_that_is_no_output_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="is not the output of a run"):
        verify(Folder.at(str(tmp_path)))


@pytest.mark.parametrize("confidence", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_no_rounding_parts_the_mask_from_the_stored_confidence(confidence):
    near = np.nextafter(np.float32(confidence), np.array([-1, confidence, 2], np.float32))
    found = encode_prediction(np.clip(near, 0, 1)[None])
    row = dict.fromkeys(PREDICTIONS.names) | found | {"sha256": HEX, "height": 1, "width": 3}
    assert examine(row)[1] == []


def test_labels_of_large_and_thin_images_hold(small):
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 3), (1, 1300, 3), (1100, 40, 3)):
        labelled = encode_label(label_image(rng.integers(0, 256, shape, np.uint8), small))
        row = dict.fromkeys(PSEUDO_LABELS.names) | labelled
        row["features"] = row["features"].tolist()
        assert examine(row | {"sha256": HEX, "height": shape[0], "width": shape[1]})[1] == []


# Rows


def test_a_row_that_was_removed(run_copy):
    rewrite(run_copy, shard(run_copy)[1:])
    assert told(run_copy) == [f"pseudo_labels/{FIRST}: {ID!r} is missing"]
    assert verify(run_copy).outputs[0].stages["pseudo_labels"].done == 3


def test_a_row_that_was_doubled(run_copy):
    first, second = shard(run_copy)
    rewrite(run_copy, [first, second, first])
    assert told(run_copy) == [f"pseudo_labels/{FIRST}: {ID!r} occurs twice"]
    assert verify(run_copy).outputs[0].stages["pseudo_labels"].done == 4


def test_a_row_that_was_moved_to_another_shard(run_copy):
    first, second = shard(run_copy)
    rewrite(run_copy, [second])
    rewrite(run_copy, [*shard(run_copy, SECOND), first], SECOND)
    assert told(run_copy) == [
        f"pseudo_labels/{FIRST}: {ID!r} is missing",
        f"pseudo_labels/{SECOND}: {ID!r} is not in its part of the manifest",
    ]


def test_rows_in_another_order(run_copy):
    first, second = shard(run_copy)
    rewrite(run_copy, [second, first])
    assert told(run_copy) == [
        f"pseudo_labels/{FIRST}: row 0 is {second['image_id']!r}, expected {ID!r}: "
        "the rows are not in the order of the manifest"
    ]


def test_a_row_of_another_file(run_copy):
    change(run_copy, uri="/etc/hostname")
    assert told_of_first(run_copy, images=True) == "uri is not that of the manifest"


# Maps and numbers


@pytest.mark.parametrize("column", ["confidence", "pseudo_label", "superpixels"])
def test_a_map_that_is_cut_short(run_copy, column):
    change(run_copy, **{column: shard(run_copy)[0][column][:-30]})
    assert told_of_first(run_copy).startswith(f"{column} does not decode: ")


@pytest.mark.parametrize("column", ["confidence", "pseudo_label", "superpixels"])
def test_a_map_of_another_size_or_kind_or_none(run_copy, column):
    found = pixels(run_copy, column)
    change(run_copy, **{column: encode_png(found[:, 1:])})
    height, width = found.shape
    assert told_of_first(run_copy) == (
        f"{column} is {found.dtype} {(height, width - 1)}, expected {found.dtype} {(height, width)}"
    )
    other = np.uint8 if found.dtype == np.uint16 else np.uint16
    change(run_copy, **{column: encode_png(found.astype(other))})
    assert told_of_first(run_copy).startswith(f"{column} is {np.dtype(other)} ")
    change(run_copy, **{column: None})
    assert told_of_first(run_copy) == f"{column} is missing, and there is no error"


def test_a_value_that_no_mask_has(run_copy):
    mask = pixels(run_copy, "pseudo_label")
    mask[3, 4] = 2
    change(run_copy, pseudo_label=encode_png(mask))
    assert told_of_first(run_copy) == "pseudo_label holds the value 2, expected 0 and 1"


def test_a_mask_that_is_not_its_confidence(run_copy):
    mask = pixels(run_copy, "pseudo_label")
    mask[3, :2] ^= 1
    change(run_copy, pseudo_label=encode_png(mask))
    assert told_of_first(run_copy) == (
        "pseudo_label is not confidence from one half on, at 2 pixels"
    )


def test_what_a_prediction_says_of_itself_follows_from_its_map():
    levels = np.random.default_rng(0).integers(0, 250, (20, 30), np.uint8)
    of_image = dict.fromkeys(PREDICTIONS.names) | {"sha256": HEX, "height": 20, "width": 30}

    def faults(found=True, **changes):
        columns = encode_prediction(np.float32(levels / 255), found)
        return examine(of_image | columns | changes)[1]

    assert faults() == faults(found=False) == []
    pixels = np.count_nonzero(levels >= 128)
    quality = encode_prediction(np.float32(levels / 255))["quality"]
    mask = encode_png((levels >= 128).astype(np.uint8))
    assert faults(foreground_found=None)[:1] == [
        "foreground_found is missing, and there is no error"
    ]
    assert faults(found=False, pseudo_label=mask) == [
        f"pseudo_label holds {pixels} pixels, and foreground_found is false",
        "foreground_found is False, and the mask says otherwise",
    ]
    assert faults(foreground_found=False, quality=0.0)[:1] == [
        f"pseudo_label holds {pixels} pixels, and foreground_found is false"
    ]
    assert faults(quality=0.25) == [f"quality is 0.25, and the confidence gives {quality}"]
    assert faults(quality=None)[-1] == "quality must be in [0, 1], got None"


def test_a_superpixel_without_pixels(run_copy):
    superpixels = pixels(run_copy, "superpixels")
    last = superpixels.max()
    superpixels[superpixels == 7] = 8
    change(run_copy, superpixels=encode_png(superpixels))
    assert told_of_first(run_copy) == f"superpixels skips 1 labels of 0..{last}, the first is 7"


def test_features_and_weights(run_copy):
    row = shard(run_copy)[0]
    features, weights, regions = row["features"], row["weights"], len(row["features"]) // 4
    for wrong in (float("nan"), -0.1, 1.5, None):
        change(run_copy, features=[wrong, *features[1:]])
        assert told_of_first(run_copy) == "features holds numbers outside [0, 1], or NaN"
    change(run_copy, features=features[:-4])
    assert told_of_first(run_copy) == (
        f"features holds {4 * regions - 4} numbers, expected 4 for each of {regions} superpixels"
    )
    for wrong in ([*weights[1:], float("inf")], weights[1:], None):
        change(run_copy, features=features, weights=wrong)
        assert told_of_first(run_copy).startswith("weights must be 5 finite numbers, got ")


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("sha256", "0F" * 32, "sha256 must be 64 hexadecimal digits, got '0F0F"),
        ("sha256", None, "sha256 must be 64 hexadecimal digits, got None"),
        ("seeds_foreground", -1, "seeds_foreground must be at least 0, got -1"),
        ("seeds_background", None, "seeds_background must be at least 0, got None"),
        ("fallback", None, "fallback is missing"),
        ("quality", float("nan"), "quality must be in [0, 1], got nan"),
    ],
)
def test_other_columns(run_copy, column, value, said):
    change(run_copy, **{column: value})
    assert told_of_first(run_copy).startswith(said)


def test_an_image_without_a_size(run_copy):
    change(run_copy, height=None)
    lines = told(run_copy)
    assert lines[0].endswith("height and width must be at least 1, got None and 200")
    assert len(lines) == 4


def test_a_row_that_failed_and_did_not(run_copy):
    change(run_copy, error="truncated", error_kind=None)
    first, *others = (line.partition(f"{ID!r}: ")[2] for line in told(run_copy))
    assert first == "error and error_kind go together, got 'truncated' and None"
    results = [name for name in PSEUDO_LABELS.names[5:] if not name.startswith("error")]
    assert others == [f"has an error and yet {name}" for name in results]


# Files


def damage(folder, name, how):
    path = Path(folder.path) / name
    path.write_bytes(how(path.read_bytes()))


@pytest.mark.parametrize(
    "how",
    [
        lambda data: data[:-100],
        lambda data: data[: len(data) // 2] + data[-2000:],
        lambda data: b"",
        lambda data: b"PAR1" + bytes(range(256)) * 8 + b"PAR1",
        lambda data: data[:200] + bytes(2000) + data[2200:],
    ],
    ids=["cut", "cut inside", "empty", "garbage", "zeros"],
)
@pytest.mark.parametrize("stage", ["pseudo_labels", "manifest"])
def test_a_damaged_file_is_a_line(run_copy, stage, how):
    if stage == "manifest":  # too small for the damage
        rewrite(run_copy, [{"image_id": f"{i}{HEX}", "uri": HEX} for i in range(500)], stage=stage)
    damage(run_copy / stage, FIRST, how)
    (line,) = told(run_copy)
    assert re.match(rf"{stage}/{FIRST}: cannot be read: \S", line)


def test_a_shard_and_a_part_too_many_or_too_few(run_copy):
    labels, manifest = run_copy / "pseudo_labels", run_copy / "manifest"
    shutil.copy(f"{labels.path}/{FIRST}", f"{labels.path}/part-0000009.parquet")
    assert told(run_copy) == [
        "pseudo_labels/part-0000009.parquet: the manifest has no part of this name"
    ]
    labels.remove("part-0000009.parquet")
    for folder in (labels, manifest):
        folder.remove(SECOND)
    assert told(run_copy) == [f"manifest/{SECOND}: is missing, parts are numbered from 0"]


def test_another_schema(run_copy):
    path = Path(run_copy.path) / "pseudo_labels" / FIRST
    whole = pq.read_table(path)
    for table, said in (
        (whole.drop_columns("weights"), "has no column weights"),
        (whole.append_column("more", whole["height"]), "has the unknown column more"),
        (
            whole.set_column(3, "height", whole["height"].cast(pa.int64())),
            "has a column height of type int64, expected int32",
        ),
        (whole.select(whole.column_names[::-1]), "has its columns in the order error_kind, error,"),
    ):
        pq.write_table(table, path)
        (line,) = told(run_copy)
        assert line.startswith(f"pseudo_labels/{FIRST}: {said}")


def test_an_image_that_is_there_twice(run_copy):
    rows = [*shard(run_copy, SECOND, "manifest"), shard(run_copy, FIRST, "manifest")[0]]
    rewrite(run_copy, rows, SECOND, "manifest")
    rewrite(run_copy, [*shard(run_copy, SECOND), shard(run_copy)[0]], SECOND)
    assert told(run_copy) == [f"manifest: {ID!r} is in {FIRST} and in {SECOND}; ids must be unique"]


def test_an_image_without_a_name(run_copy):
    said = f"manifest/{FIRST}: row 0 has no image_id or no uri"
    rows = shard(run_copy, FIRST, "manifest")
    change(run_copy, uri=None)
    rewrite(run_copy, [rows[0] | {"uri": None}, rows[1]], stage="manifest")
    assert told(run_copy, images=True) == [said]
    rewrite(run_copy, [rows[0] | {"image_id": None}, rows[1]], stage="manifest")
    assert said in told(run_copy)


# run.json


@pytest.mark.parametrize("folder", ["", "predictions", "network"])
def test_a_description_that_was_edited_or_damaged_or_removed(predicted_copy, folder):
    home = predicted_copy / folder if folder else predicted_copy
    where = f"{folder}/{run_file(home)}".lstrip("/")
    run = json.loads(home.read(run_file(home)))
    for content, said in (
        (json.dumps(run | {"saff": "9.9"}), "has a digest that is not that of its content: "),
        (json.dumps(run | {"digest": HEX}), "has a digest that is not that of its content: "),
        ("[]", "is damaged: expected a JSON object"),
        ("{", "is damaged: Expecting property name"),
        ("[" * 100_000, "is damaged: "),
        (None, "is missing"),
    ):
        if content is None:
            home.remove(run_file(home))
        else:
            home.write(run_file(home), content.encode())
        assert any(line.startswith(f"{where}: {said}") for line in told(predicted_copy))


def test_the_source_may_be_another(run_copy):
    run = json.loads(run_copy.read("run.json"))
    run_copy.write("run.json", json.dumps(run | {"source": "elsewhere"}).encode())
    assert verify(run_copy).whole


def test_predictions_of_another_network(predicted_copy, predicted, tmp_path):
    network = NetworkFolder(predicted_copy / "network")
    network.finish({"weight": next(iter(start_network(Training()).state_dict().values()))})
    said = "predictions/_run.json: the predictions are not of the network "
    assert told(predicted_copy) == [f"{said}{network.folder.uri}/weights.pt"]
    assert verify(predicted_copy, stage="pseudo_labels").whole
    assert verify(predicted_copy, network=predicted).whole
    with pytest.raises(SettingsError, match="there is no trained network at"):
        verify(predicted_copy, network=Folder.at(str(tmp_path)))


def describe_again(folder, **changes):
    """Change what a run.json says, its digest with it."""
    run = json.loads(folder.read(run_file(folder)))
    run = with_digest({k: v for k, v in (run | changes).items() if k != "digest"})
    folder.write(run_file(folder), json.dumps(run).encode())


def test_a_network_of_other_labels(predicted_copy):
    network = predicted_copy / "network"
    labels = json.loads(network.read("run.json"))["labels"]
    for found, said in (
        (labels | {"digest": HEX}, "has not learnt from the pseudo_labels of this output"),
        (labels | {"stage": "../else"}, "does not say which labels the network has learnt from"),
        ("all", "does not say which labels the network has learnt from"),
    ):
        describe_again(network, labels=found)
        (line,) = told(predicted_copy)
        assert line.startswith("network/run.json: ")
        assert line.endswith(said)


def test_rounds_before_the_last_are_verified_too(predicted, predicted_copy):
    home = Path(predicted_copy.path) / "rounds" / "1"
    for stage in ("network", "predictions"):
        shutil.copytree(Path(predicted.path) / stage, home / stage)
    shutil.copytree(home / "predictions", home / "labels")
    output, labels = predicted_copy, predicted_copy / "rounds/1/labels"
    there = json.loads((output / "rounds/1/predictions").read("_run.json"))["digest"]
    labels.write("_run.json", json.dumps(with_digest({"predictions": there})).encode())
    learnt = {"stage": "rounds/1/labels", "digest": with_digest({"predictions": there})["digest"]}
    describe_again(output / "network", labels=learnt)
    verdict = verify(output)
    assert verdict.whole
    stages = ["pseudo_labels", "rounds/1/predictions", "rounds/1/labels", "predictions"]
    assert [*verdict.outputs[0].stages] == stages
    labels.remove(FIRST)
    verdict = verify(output)
    assert not verdict.whole
    (command,) = verdict.outputs[0].commands
    assert command.startswith("saff run --images ")
    damage(output / "rounds/1/predictions", SECOND, lambda data: data[:50])
    describe_again(labels, predictions=HEX)
    assert [line.partition(": ")[::2] for line in told(output)] == [
        ("rounds/1/labels/_run.json", f"the labels are not of the predictions {home}/predictions"),
        ("network/run.json", "the network has not learnt from the rounds/1/labels of this output"),
        (f"rounds/1/predictions/{SECOND}", ANY),
    ]


def test_a_prediction_is_verified_like_a_label(predicted_copy):
    first, *others = shard(predicted_copy, stage="predictions")
    rows = [first | {"confidence": first["confidence"][:-30]}, *others]
    rewrite(predicted_copy, rows, stage="predictions")
    (line,) = told(predicted_copy)
    assert line.startswith(f"predictions/{FIRST}: row 0 {ID!r}: confidence does not decode: ")


# Images


def test_images_that_changed_or_are_gone(corpus, label_folder, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(corpus, photos)
    output = label_folder(photos, tmp_path / "out")
    assert verify(output, images=True).whole
    damage(Folder.at(str(photos)), ID, lambda data: data + b" ")
    damage(Folder.at(str(photos)), "empty.jpg", lambda data: b"no longer")
    (photos / "rocket ü.png").unlink()
    assert verify(output).whole
    lines = [line.partition(": row ")[2] for line in told(output, images=True)]
    assert lines == [
        f"0 {ID!r}: its image has changed since",
        "0 'empty.jpg': its image has changed since",
        "0 'rocket ü.png': its image is gone",
    ]


def test_a_sha256_that_is_not_the_images(run_copy):
    change(run_copy, sha256=HEX)
    assert verify(run_copy).whole
    assert told_of_first(run_copy, images=True) == "its image has changed since"


# Lines


def test_names_cannot_steer_a_terminal(run_copy):
    name = "a\x1b[2J\n\u202eb  c.png"
    first, *others = shard(run_copy)
    rewrite(run_copy, [first | {"image_id": name}, *others])
    lines = told(run_copy)
    assert f"pseudo_labels/{FIRST}: {name!r} is not in its part of the manifest" in lines
    assert all(line.isprintable() for line in lines)
    assert shown("ü \x07\n") == r"ü \x07\n"


def test_many_faults_are_counted(run_copy):
    labels = (run_copy / "pseudo_labels").names(".parquet")
    for name in labels:
        rows = [r | {"image_id": f"{name} {i}"} for i in range(9) for r in shard(run_copy, name)]
        rewrite(run_copy, rows, name)
    found = verify(run_copy).outputs[0]
    assert len(found.faults.lines) == MOST_FAULTS + 1
    assert found.faults.lines[-1] == f"... and {found.faults.count - MOST_FAULTS:,} more"
    assert found.lines[-1].endswith(f"; {found.faults.count:,} faults")
    backwards = verify(
        run_copy, map_parts=lambda task, parts: [task({"part": p}) for p in parts[::-1]]
    )
    assert backwards.lines == verify(run_copy).lines


# Two outputs


@pytest.fixture
def split_otherwise(finished, tmp_path):
    """The finished run, its images over other parts in another order, its maps encoded anew."""
    output = Folder.at(str(tmp_path / "other"))
    output.write("run.json", finished.read("run.json"))
    names = (finished / "manifest").names(".parquet")
    rows = [row for name in names for row in shard(finished, name)][::-1]
    for row in rows:
        row["uri"] = f"/elsewhere/{row['image_id']}"
        for column in ("confidence", "pseudo_label", "superpixels"):
            if row[column]:
                row[column] = other_bytes(row[column])
    for number, part in enumerate((rows[:3], rows[3:])):
        name = f"part-{number:07d}.parquet"
        rewrite(output, [{k: r[k] for k in MANIFEST.names} for r in part], name, "manifest")
        write_rows(output / "pseudo_labels", name, part, PSEUDO_LABELS)
    return output


def other_bytes(png):
    """Another PNG file of the same pixels."""
    stream = io.BytesIO()
    PIL.Image.fromarray(decode_png(png)).save(stream, "PNG")
    assert stream.getvalue() != png
    return stream.getvalue()


def test_the_same_content_in_other_parts_is_the_same(finished, split_otherwise):
    verdict = verify(finished, split_otherwise)
    assert verdict.whole
    assert verdict.lines[-1] == "same content"
    assert len(verdict.lines) == 3


def test_one_pixel_is_a_difference(finished, split_otherwise):
    rows = shard(split_otherwise)
    (place,) = [i for i, row in enumerate(rows) if row["image_id"] == "rocket ü.png"]
    grey = decode_png(rows[place]["confidence"])
    grey[0, 0] ^= 1  # on the same side of one half
    rows[place] |= {"confidence": encode_png(grey), "quality": 0.125}
    rewrite(split_otherwise, rows)
    verdict = verify(finished, split_otherwise)
    assert [found.whole for found in verdict.outputs] == [True, True]
    assert not verdict.whole
    assert verdict.lines[-2:] == [
        "'rocket ü.png': pseudo_labels differ in confidence, quality",
        "other content: 1 image",
    ]


def test_how_far_two_outputs_lie_apart_is_measured(finished, split_otherwise):
    pixels = changed = apart = 0
    shares = []
    for name in (FIRST, SECOND):
        rows = shard(split_otherwise, name)
        for number, row in enumerate(rows[:2]):
            if row["error"]:
                continue
            before = decode_png(row["confidence"])
            after = before.copy()
            after[number, : 9 + number] = 255 - after[number, : 9 + number]
            row |= {"confidence": encode_png(after)}
            row |= {"pseudo_label": encode_png((after >= 128).astype(np.uint8))}
            flipped = np.count_nonzero((before >= 128) != (after >= 128))
            pixels, changed = pixels + before.size, changed + flipped
            shares.append(flipped / before.size)
            apart = max(apart, np.abs(after.astype(int) - before).max())
        rewrite(split_otherwise, rows, name)
    assert len(shares) > 1
    verdict = verify(finished, split_otherwise)
    (said,) = [line for line in verdict.lines if "measured" in line]
    assert said == (
        f"pseudo_labels: {len(shares)} images measured: masks differ at {changed / pixels:.4%} of "
        f"their pixels, at most {max(shares):.4%} of one image; confidence differs by at most "
        f"{apart} of 255"
    )
    assert verdict.lines.index(said) == 2


def test_a_limited_number_of_images_is_measured(finished, split_otherwise, monkeypatch):
    monkeypatch.setattr(verification, "MOST_MEASURED", 1)
    for name in (FIRST, SECOND):
        rows = shard(split_otherwise, name)
        changes = [{} if row["error"] else {"fallback": "another"} for row in rows]
        rewrite(split_otherwise, [a | b for a, b in zip(rows, changes, strict=True)], name)
    verdict = verify(finished, split_otherwise)
    assert verdict.differing > 1
    assert verdict.distances["pseudo_labels"].images == 1


def test_an_image_that_one_lacks(finished, split_otherwise):
    for stage in ("manifest", "pseudo_labels"):
        rewrite(split_otherwise, shard(split_otherwise, FIRST, stage)[1:], FIRST, stage)
    for one, other in ((finished, split_otherwise), (split_otherwise, finished)):
        verdict = verify(one, other)
        assert all(found.whole for found in verdict.outputs)
        assert verdict.differences == [f"'rocket ü.png' is not in {split_otherwise.uri}"]
        assert verdict.differing == 1
        assert not verdict.whole


def test_a_stage_that_one_lacks(finished, predicted):
    verdict = verify(finished, predicted)
    assert verdict.differing == 7
    assert verdict.differences[0] == f"{ID!r}: predictions are not in {finished.uri}"
    assert verify(finished, predicted, stage="pseudo_labels").whole


def test_ten_differences_are_named_and_all_counted(finished, split_otherwise):
    for number in range(2):
        name = f"part-{number:07d}.parquet"
        for stage in ("manifest", "pseudo_labels"):
            rows = shard(split_otherwise, name, stage)
            others = [row | {"image_id": f"new {row['image_id']}"} for row in rows]
            rewrite(split_otherwise, others, name, stage)
    verdict = verify(finished, split_otherwise)
    assert all(found.whole for found in verdict.outputs)
    assert (verdict.differing, len(verdict.differences)) == (14, 10)
    assert verdict.lines[-2:] == ["... and 4 more", "other content: 14 images"]


def test_a_digest_tells_shapes_and_columns_apart():
    flat = np.zeros((2, 3), np.uint8)
    contents = [{"a": flat}, {"a": flat.T}, {"a": flat.astype(np.uint16)}, {"b": flat}, {"a": None}]
    contents += [
        {"a": "x", "b": "y"},
        {"a": "x\nb 'y'"},
        {"a": [0.1]},
        {"a": [np.nextafter(0.1, 1)]},
    ]
    assert len({digest(content) for content in contents}) == len(contents)
    assert digest({"a": 1, "uri": "x"}) == digest({"uri": "y", "a": 1})


# The command


@pytest.fixture
def call(call):
    return partial(call, "verify")


def test_the_command_ends_with_0_1_or_2(call, finished, run_copy, tmp_path):
    code, out, err = call(finished.path, "--images")
    assert (code, out.count("\n")) == (0, 1)
    assert out.endswith("; 0 faults\n")
    assert err.startswith("verify: 4 of 4 parts, 0 faults, ")
    code, out, _ = call(finished.path, run_copy.path, "--stage", "pseudo_labels")
    assert (code, out.splitlines()[-1]) == (0, "same content")

    change(run_copy, fallback="another")
    code, out, _ = call(finished.path, run_copy.path)
    assert code == 1
    assert out.splitlines()[-2] == f"{ID!r}: pseudo_labels differ in fallback"
    change(run_copy, sha256="x")
    code, out, _ = call(run_copy.path)
    assert (code, out.count("sha256 must be 64 hexadecimal digits")) == (1, 1)

    for words in ([tmp_path / "none"], [finished.path, tmp_path / "none"]):
        code, out, err = call(*words)
        assert (code, out) == (2, "")
        assert err.splitlines()[-1].startswith(f"saff: {tmp_path / 'none'} is not the output of")
    code, out, err = call(finished.path, "--network", tmp_path)
    assert (code, out) == (2, "")
    assert err == f"saff: --network is of predictions, and {finished.uri} has none\n"


# Elsewhere


@pytest.mark.s3
def test_an_output_in_a_bucket(bucket, s3_user, s3_other, corpus, finished, label_folder, tmp_path):
    for path in corpus.rglob("*"):
        if path.is_file():
            s3_other.pipe_file(f"{bucket}/photos/{path.relative_to(corpus)}", path.read_bytes())
    output = label_folder(f"{bucket}/photos", f"{bucket}/run")
    assert verify(output, finished, images=True).whole
    assert next(row["image_id"] for row in list_images(f"{bucket}/photos")) == ID

    shard_there = f"{bucket}/run/pseudo_labels/{FIRST}"
    whole = s3_other.cat_file(shard_there)
    s3_other.pipe_file(shard_there, whole[:-100])
    s3_other.pipe_file(f"{bucket}/photos/chelsea ü.png", b"another")
    s3_other.rm_file(f"{bucket}/photos/rocket ü.png")
    lines = told(output, images=True)
    assert lines[0].startswith(f"pseudo_labels/{FIRST}: cannot be read: ")
    assert [line.partition("png': ")[2] for line in lines[1:]] == ["its image is gone"]
    s3_other.pipe_file(shard_there, whole)
    assert [line.partition("png': ")[2] for line in told(output, images=True)] == [
        "its image has changed since",
        "its image is gone",
    ]
    s3_user(AWS_SECRET_ACCESS_KEY="wrong")
    refused = Folder.at(output.uri)
    with pytest.raises(StorageError, match="no access to s3://"):
        verify(refused)
    with pytest.raises(StorageError, match="no access to s3://"):  # and in the middle of a run
        VerifyPart(refused, ("pseudo_labels",))({"part": FIRST})


@pytest.mark.ray
def test_a_cluster_finds_the_same(run_copy, one_node):
    change(run_copy, sha256="x")
    rewrite(run_copy, shard(run_copy, SECOND)[::-1], SECOND)
    assert verify(run_copy, map_parts=map_parts).lines == verify(run_copy).lines


def test_a_flipped_bit_is_found_wherever_it_is_and_the_part_is_named(run_copy):
    rng = np.random.default_rng(0)
    for stage in ("manifest", "pseudo_labels"):
        name = (run_copy / stage).names(".parquet")[0]
        whole = (run_copy / stage).read(name)
        for bit in rng.integers(0, 8 * len(whole), 25).tolist():
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            (run_copy / stage).write(name, bytes(changed))
            verdict = verify(run_copy)
            assert not verdict.whole, f"bit {bit} of {stage}/{name}"
            assert any(f"{stage}/{name}" in line for line in verdict.lines)
        (run_copy / stage).write(name, whole)
    assert verify(run_copy).whole


def test_a_part_says_on_which_kind_of_processor_it_was_made(finished):
    folder = finished / "pseudo_labels"
    path = f"{folder.path}/{folder.names('.parquet')[0]}"
    notes = pq.read_schema(path).metadata
    assert notes[b"saff.processor"].decode() == processor()
