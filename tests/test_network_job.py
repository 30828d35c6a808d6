"""Training, re-inference and the pipeline on a real Ray cluster."""

import dataclasses
import importlib.util
import io
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch
from skimage import data

from clusters import join, nodes, started, wait_for
from label_runs import ROOT
from saff import config, images
from saff.cluster import Share, map_parts
from saff.cluster.label_refresh import refresh
from saff.cluster.pipeline import Scale, mean_iou, refuse_begun, run_pipeline
from saff.cluster.predictions import PredictPart, encode_prediction, predict_corpus
from saff.cluster.resources import training_workers
from saff.cluster.training import Feed, train_network
from saff.config import Inference, Training
from saff.errors import SettingsError, TrainingError
from saff.evaluation import evaluate
from saff.inference import predict
from saff.layout import begun_rounds, part_name
from saff.manifests import extend_manifest
from saff.marks import Mark, add_marks
from saff.quality import foreground_found, to_levels
from saff.samples import Cache, Loader, open_corpus
from saff.shards import PSEUDO_LABELS, read_rows, write_rows
from saff.sources import list_images
from saff.storage import Folder
from saff.trained import load_trained
from saff.verification import verify

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_node")]

TRAINING = Training(
    crop_size=64, max_side=96, batch_size=4, steps=6, checkpoint_interval=2, warmup_steps=1
)
INFERENCE = Inference(input_sides=(96,), pseudo_label_share=0.0)
ALONE = dataclasses.replace(config.default(), inference=INFERENCE)  # no labels beside it
SETTINGS = {
    "encoder_side": 64,
    "superpixel_count": 60,
    "training": {
        "crop_size": 64,
        "max_side": 96,
        "batch_size": 4,
        "checkpoint_interval": 2,
        "warmup_steps": 1,
    },
    "inference": {"input_sides": [96], "pseudo_label_share": 0.0},
}


@pytest.fixture(scope="module")
def labelled(finished, tmp_path_factory):
    """A labelled run of four photographs and three bad files, to be copied."""
    folder = tmp_path_factory.mktemp("labelled") / "run"
    shutil.copytree(finished.path, folder)
    return folder


@pytest.fixture
def output(labelled, tmp_path):
    shutil.copytree(labelled, tmp_path / "run")
    return Folder.at(str(tmp_path / "run"))


@pytest.fixture(scope="module")
def trained_once(labelled, ray_address, tmp_path_factory):
    """The run with a network, trained by one worker without interruption; not to change."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    shutil.copytree(labelled, folder)
    output = Folder.at(str(folder))
    join(ray_address)
    train_network(output, TRAINING)
    return output


def weights_of(output):
    return torch.load(io.BytesIO((output / "network").read("weights.pt")), weights_only=True)


def predictions_of(output, stage="predictions"):
    rows = [r for n in (output / stage).names(".parquet") for r in read_rows(output / stage, n)]
    assert len({r["image_id"] for r in rows}) == len(rows), "an image is there twice"
    return {r["image_id"]: r for r in rows}


# Training


def test_a_training_leaves_what_it_should(trained_once):
    folder = trained_once / "network"
    assert folder.names("") == [
        "checkpoints",
        "metrics.csv",
        "run.json",
        "tensorboard",
        "weights.pt",
    ]
    assert (folder / "checkpoints").names("") == ["step-00000004.pt", "step-00000006.pt"]
    lines = folder.read("metrics.csv").decode().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "1", "2", "3", "4", "5", "6"]
    run = json.loads(folder.read("run.json"))
    assert run["labels"]["images"] == 4
    before = (Path(folder.path) / "weights.pt").stat().st_mtime_ns
    train_network(trained_once, TRAINING)  # the same command when done does nothing
    assert (Path(folder.path) / "weights.pt").stat().st_mtime_ns == before


def test_labels_made_since_a_training_began_do_not_change_it(trained_once, tmp_path, caplog):
    output = Folder.at(str(shutil.copytree(trained_once.path, tmp_path / "run")))
    network = output / "network"
    for name in ("weights.pt", "checkpoints/step-00000006.pt"):  # as it was at step 4
        network.remove(name)
    name = part_name(99)
    row = next(r for r in predictions_of(output, "pseudo_labels").values() if r["confidence"])
    late = row | {"image_id": "late.png"}
    write_rows(output / "pseudo_labels", name, [late], PSEUDO_LABELS)
    train_network(output, TRAINING)
    for key, value in weights_of(trained_once).items():
        assert torch.equal(weights_of(output)[key], value)
    said = "learns from the 4 images that were labelled when its training began, not from the 1"
    assert said in caplog.text
    (output / "pseudo_labels").remove(open_corpus(output / "pseudo_labels").parts[0])
    train_network(output, TRAINING)  # done is done
    network.remove("weights.pt")
    with pytest.raises(
        SettingsError, match=r"labels\.images is 4 in that run and \d in this one; .*--restart"
    ):
        train_network(output, TRAINING)
    with pytest.raises(SettingsError, match="is under way, and images that are tried again may"):
        refuse_begun(output)
    network.write("run.json", b'{"labels": {"images": 5}}')
    with pytest.raises(SettingsError, match="does not say which labels it learns from"):
        train_network(output, TRAINING)


def test_images_that_a_person_rejects_are_not_learnt_from(output):
    ids = [r["image_id"] for r in predictions_of(output, "pseudo_labels").values() if r["height"]]
    add_marks(output, {ids[0]: Mark.REJECTED, ids[1]: Mark.ACCEPTED}, ids)
    train_network(output, TRAINING)
    labels = json.loads((output / "network").read("run.json"))["labels"]
    assert (labels["images"], len(ids)) == (3, 4)
    add_marks(output, {ids[2]: Mark.REJECTED}, ids)
    train_network(output, TRAINING)  # done is done
    (output / "network").remove("weights.pt")
    with pytest.raises(SettingsError, match=r"labels\.rejected is .*--restart"):
        train_network(output, TRAINING)


def test_what_a_training_cannot_read_ends_it_with_one_line(output):
    labels = output / "pseudo_labels"
    path = Path(labels.path) / open_corpus(labels).parts[-1]
    data = bytearray(path.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little") + 8
    data[4:-footer] = bytes(len(data) - footer - 4)  # its counts stay, its pages do not
    path.write_bytes(data)
    with pytest.raises(TrainingError, match=rf"^{path} is damaged"):
        train_network(output, TRAINING)


def test_images_that_are_circular_links_are_passed_over_in_training(output, tmp_path):
    labels, loop = output / "pseudo_labels", tmp_path / "loop"
    loop.symlink_to(loop)
    for name in labels.names(".parquet"):
        rows = [row | {"uri": str(loop)} for row in read_rows(labels, name)]
        write_rows(labels, name, rows, PSEUDO_LABELS)
    cache = Cache(labels, TRAINING.max_side, tmp_path / "cache")
    row = Feed(Loader(open_corpus(labels), TRAINING, cache), start=2)({"id": 1})
    assert row["fault"] == ""
    assert not row["valid"].any()
    assert row["image"].shape == (4, 64, 64, 3)  # as of any other step


def test_photographs_that_are_gone_are_named_and_not_counted(output, caplog):
    labels, gone = output / "pseudo_labels", []
    for name in labels.names(".parquet"):
        rows = list(read_rows(labels, name))
        for row in rows[:1]:
            gone += [row["image_id"]] if row["error_kind"] is None else []
            row["uri"] = "/gone"
        write_rows(labels, name, rows, PSEUDO_LABELS)
    train_network(output, TRAINING)
    count, whole = len(gone), len(open_corpus(labels))
    assert 0 < count < whole
    (said,) = [r.message for r in caplog.records if r.message.startswith("not learnt from")]
    assert f"labelled: {count} of {whole} photographs: {', '.join(gone[:3])}" in said
    metrics = np.genfromtxt(f"{output.path}/network/metrics.csv", delimiter=",", names=True)
    assert 0 < metrics["samples"].sum() < TRAINING.steps * TRAINING.batch_size


def test_two_workers_train_the_same_network(trained_once, output):
    train_network(output, TRAINING, workers=2)
    for name, value in weights_of(trained_once).items():
        torch.testing.assert_close(weights_of(output)[name], value, rtol=1e-2, atol=1e-4)
    one, two = (
        np.genfromtxt(Path(o.path) / "network" / "metrics.csv", delimiter=",", names=True)
        for o in (trained_once, output)
    )
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-4)
    np.testing.assert_array_equal(one["samples"], two["samples"])


def test_a_killed_worker_is_replaced_and_changes_nothing(
    trained_once, output, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    track = importlib.util.find_spec("mlflow") is not None
    training = dataclasses.replace(TRAINING, steps=6)
    checkpoints = Path(output.path) / "network" / "checkpoints"
    metrics = Path(output.path) / "network" / "metrics.csv"

    @ray.remote(num_cpus=0)
    def kill_once():
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if checkpoints.exists() and any(checkpoints.glob("step-*.pt")):
                for process in psutil.Process().parent().children():
                    if "TrainWorker" in " ".join(process.cmdline()):
                        steps = metrics.read_text()
                        process.kill()
                        return steps
            time.sleep(0.05)
        return ""

    killed = kill_once.remote()
    train_network(output, training, track=track)
    steps = ray.get(killed)
    assert len(steps.splitlines()) > 2
    assert metrics.read_text().startswith(steps)  # with their seconds: none was done again
    rows = (output / "network").read("metrics.csv").decode().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3", "4", "5", "6"]
    for name, value in weights_of(trained_once).items():
        torch.testing.assert_close(weights_of(output)[name], value, rtol=0, atol=0)
    if track:
        from mlflow import MlflowClient

        run_id = json.loads((output / "network").read("mlflow.json"))["run_id"]
        steps = MlflowClient().get_metric_history(run_id, "loss")
        assert [m.step for m in steps] == [1, 2, 3, 4, 5, 6]


def test_what_no_repetition_mends_ends_it_with_one_line(output):
    wild = dataclasses.replace(TRAINING, optimiser="sgd", learning_rate=1e30, warmup_steps=0)
    with pytest.raises(TrainingError, match=r"^the loss is .* set a lower training\.learning_rate"):
        train_network(output, wild)
    assert not (output / "network").exists("weights.pt")
    with pytest.raises(
        SettingsError, match=r"belongs to another run: .*training\.optimiser is 'sgd'"
    ):
        train_network(output, TRAINING)
    one = dataclasses.replace(TRAINING, steps=1)
    train_network(output, one, restart=True)
    assert (output / "network").exists("weights.pt")
    with pytest.raises(SettingsError, match="--gpus 1 is more than the 0 GPUs of this machine"):
        train_network(output, one, gpus=1, restart=True)
    assert (output / "network").exists("weights.pt")  # nothing is forgotten for what cannot work


def test_workers_and_gpus_are_checked():
    assert training_workers(None, None, 8) == (1, False)
    assert training_workers(3, None, 8) == (3, False)
    assert training_workers(2, 0, 8) == (2, False)
    with pytest.raises(SettingsError, match="--gpus 1 is more than the 0 GPUs of this machine"):
        training_workers(None, 1, 8)
    with pytest.raises(SettingsError, match="9 workers cannot share batches of 8"):
        training_workers(9, None, 8)
    assert (
        Scale(workers=2, patience=5).of_training(8).items()
        >= {"workers": 2, "gpus": 0, "patience": 5}.items()
    )
    assert (
        Scale(workers=2, patience=5).of_inference(8).items()
        >= {"workers": 4, "gpus": 0, "patience": 5}.items()
    )


# Re-inference


def test_predictions_are_those_of_the_network_alone(trained_once):
    done = predict_corpus(trained_once, trained_once, ALONE, workers=2)
    assert (done.images, done.done, done.failed, done.left) == (7, 7, 3, 0)
    network = load_trained(trained_once).network
    rows = predictions_of(trained_once)
    labels = predictions_of(trained_once, "pseudo_labels")
    assert rows.keys() == labels.keys()
    for image_id, row in rows.items():
        for column in ("uri", "sha256", "height", "width", "error", "error_kind"):
            assert row[column] == labels[image_id][column], column
        if row["error_kind"] is None:
            image = images.read(row["uri"])
            confidence = predict(network, image, INFERENCE)
            plain = predict(network, image, dataclasses.replace(INFERENCE, refinement="none"))
            found = foreground_found(to_levels(plain), INFERENCE.foreground_found_above)
            expected = encode_prediction(confidence, found)
            assert expected.items() <= row.items()
    with pytest.raises(SettingsError, match=r"horizontal_flip is True in that run and False"):
        predict_corpus(
            trained_once,
            trained_once,
            dataclasses.replace(
                ALONE, inference=dataclasses.replace(INFERENCE, horizontal_flip=False)
            ),
        )
    with pytest.raises(SettingsError, match="--gpus 1 is more than"):
        predict_corpus(trained_once, trained_once, ALONE, gpus=1, restart=True)
    assert predictions_of(trained_once) == rows


def test_new_images_need_the_network_alone(trained_once, corpus, tmp_path):
    output = Folder.at(str(tmp_path / "new"))
    rows = [r for r in list_images(str(corpus)) if "chelsea" in r["image_id"]]
    for _ in range(2):  # the second time it is done
        done = predict_corpus(output, trained_once, ALONE, source=(str(corpus), rows))
        assert (done.images, done.done, done.failed) == (1, 1, 0)
    (found,) = predictions_of(output).values()
    expected = predict(load_trained(trained_once).network, images.read(rows[0]["uri"]), INFERENCE)
    np.testing.assert_array_equal(
        images.decode_png(found["confidence"]), np.rint(expected * 255).astype(np.uint8)
    )


def test_several_jobs_share_new_images(trained_once, corpus, tmp_path):
    output = Folder.at(str(tmp_path / "new"))
    source = (str(corpus), list(list_images(str(corpus))))
    with pytest.raises(SettingsError, match="has no images yet; before any share is done"):
        predict_corpus(output, trained_once, ALONE, source=source, share=Share(1, 2))
    with pytest.raises(SettingsError, match="forgets the work of all shares"):
        predict_corpus(output, trained_once, ALONE, restart=True, share=Share(1, 2))
    extend_manifest(output, source[1])
    for number, whole in ((1, False), (2, True)):
        share = Share(number, 2)
        done = predict_corpus(output, trained_once, ALONE, source=source, share=share)
        assert done.left == 0
        assert (len(predictions_of(output)) == 7) == whole
    assert verify(output, network=trained_once).whole


def test_an_image_that_breaks_the_network_is_a_row(trained_once, tmp_path, monkeypatch):
    shutil.copytree(trained_once.path, tmp_path / "run")
    output = Folder.at(str(tmp_path / "run"))
    part = PredictPart(output, "again", output, ALONE)
    whole = part.network.forward

    def fragile(x):
        if x.shape[3] < x.shape[2]:
            raise RuntimeError("tall")
        return whole(x)

    monkeypatch.setattr(part.network, "forward", fragile)
    rows = [r for n in (output / "manifest").names("") for r in read_rows(output / "manifest", n)]
    found = part.rows(rows)
    kinds = {r["image_id"]: r["error_kind"] for r in found}
    tall = {r["image_id"] for r in found if r["height"] and r["height"] > r["width"]}
    assert {i for i, kind in kinds.items() if kind == "inference_failed"} == tall
    assert sum(r["confidence"] is not None for r in found) == 4 - len(tall)


# The pipeline


def config_of():
    short = SETTINGS["training"] | {"steps": 12}  # enough to be killed among them
    return config.from_json(json.dumps(SETTINGS | {"training": short}))


def pipeline(corpus, output, **options):
    said = []
    page = run_pipeline(
        str(corpus), list_images(str(corpus)), output, config_of(), say=said.append, **options
    )
    return page, said


@pytest.fixture(scope="module")
def two_rounds(corpus, ray_address, tmp_path_factory):
    """The output of a whole pipeline on one node, its report, and what was said."""
    output = Folder.at(str(tmp_path_factory.mktemp("two rounds") / "run"))
    join(ray_address)
    return output, *pipeline(corpus, output, rounds=2, scale=Scale(workers=1))


@pytest.mark.timeout(600)
def test_two_rounds_from_images_to_a_report(corpus, two_rounds):
    output, page, said = two_rounds
    assert Path(page).exists()
    assert len(said) == 4
    assert said[1].startswith("refreshed labels: mean IoU with the pseudo labels")
    for folder in ("network", "rounds/1/network"):
        assert (output / folder).exists("weights.pt")
    second = json.loads((output / "network").read("run.json"))["labels"]
    assert second["stage"] == "rounds/1/labels"
    labels = predictions_of(output, "rounds/1/labels")
    first = predictions_of(output, "pseudo_labels")
    for image_id, row in predictions_of(output, "rounds/1/predictions").items():
        assert labels[image_id]["error_kind"] == row["error_kind"]
        if row["error_kind"] is None:
            old, new = (
                np.float32(images.decode_png(r["confidence"]) / 255) for r in (first[image_id], row)
            )
            mixed = refresh(images.read(row["uri"]), old, new, config_of())
            assert labels[image_id]["confidence"] == encode_prediction(mixed)["confidence"]
    assert predictions_of(output).keys() == labels.keys()
    moved = mean_iou(output, "rounds/1/labels", "predictions")
    assert said[3].endswith(f"mean IoU with the labels it learnt from {moved:.3f}")
    assert mean_iou(output, "predictions", "predictions") == 1.0
    files = {p: p.stat().st_mtime_ns for p in Path(output.path).rglob("*") if p.is_file()}
    pipeline(corpus, output, rounds=2)  # when done it does nothing but the report
    after = {p: p.stat().st_mtime_ns for p in Path(output.path).rglob("*") if p.is_file()}
    assert {p for p in files if files[p] != after.get(p)} == {Path(page)}


@pytest.mark.timeout(600)
def test_new_photographs_are_labelled_and_inferred_and_networks_stay(corpus, two_rounds, tmp_path):
    output = Folder.at(str(shutil.copytree(two_rounds[0].path, tmp_path / "run")))
    new = tmp_path / "new.png"
    new.write_bytes(images.encode_png(data.rocket()[::4, ::4]))
    rows = [*list_images(str(corpus)), {"image_id": "new.png", "uri": str(new)}]

    def run_again(**options):
        said = []
        run_pipeline(str(corpus), rows, output, config_of(), say=said.append, **options)

    def trained_on():
        return json.loads((output / "network").read("run.json"))["labels"]

    known, before = trained_on(), weights_of(output)
    run_again(rounds=2)
    stages = [f"rounds/{n}/{name}" for n in (0, 1) for name in ("predictions", "labels")]
    for stage in ("pseudo_labels", *stages, "predictions"):
        assert predictions_of(output, stage)["new.png"]["confidence"] is not None
    assert trained_on() == known
    assert all(torch.equal(weights_of(output)[name], before[name]) for name in before)
    with pytest.raises(SettingsError, match=r"labels\.stage is 'rounds/1/labels' .*--restart"):
        run_again(rounds=1)
    run_again(rounds=1, restart=True)
    assert trained_on()["stage"] == "rounds/0/labels"
    assert trained_on()["images"] == known["images"] + 1
    assert verify(output).whole
    assert begun_rounds(output) == ["rounds/0"]


def test_evaluation_on_a_cluster_is_that_of_one_process(trained_once, tmp_path):
    for row in predictions_of(trained_once, "pseudo_labels").values():
        if row["confidence"]:
            mask = images.decode_png(row["confidence"]) > 99
            path = (tmp_path / row["image_id"]).with_suffix(".png")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(images.encode_png(mask.astype(np.uint8) * 255))
    arguments = (trained_once, str(tmp_path), "binary", "pseudo_labels")
    alone = evaluate(*arguments)
    assert evaluate(*arguments, map_parts=map_parts) == alone
    assert alone["images"] == 4


@pytest.mark.s3
@pytest.mark.timeout(600)
def test_three_nodes_and_a_bucket_give_the_pipeline_of_one_and_a_disk(
    corpus, two_rounds, s3_user, s3_other
):
    s3_other.mkdir("three-nodes")
    s3_other.put(f"{corpus}/", "three-nodes/photos/", recursive=True, batch_size=1)
    output = Folder.at("s3://three-nodes/run")
    with nodes(1, 1, 1):
        assert len(ray.nodes()) == 3
        page, _ = pipeline("s3://three-nodes/photos", output, rounds=1, scale=Scale(workers=1))
    assert page == "s3://three-nodes/run/report/index.html"
    assert verify(output).whole
    is_first_round_of(output, two_rounds[0])


def is_first_round_of(output, whole):
    """A pipeline of one round has given what the first of several gives, to the last bit."""
    one, other = weights_of(output), weights_of(whole / "rounds" / "1")
    assert all(torch.equal(one[name], other[name]) for name in other)
    for stage, same in (("predictions", "rounds/1/predictions"), ("pseudo_labels",) * 2):
        found, expected = predictions_of(output, stage), predictions_of(whole, same)
        for row in (*found.values(), *expected.values()):
            del row["uri"]
        assert found == expected


@pytest.mark.timeout(900)
def test_a_killed_pipeline_continues_where_it_was(corpus, two_rounds, ray_address, tmp_path):
    """The driver is killed in the middle of training; the same command gives the same network."""
    settings, output, log = tmp_path / "settings.json", tmp_path / "killed", tmp_path / "log"
    settings.write_text(config_of().to_json())
    command = [sys.executable, str(ROOT / "jobs" / "pipeline.py"), "--images", str(corpus)]
    command += ["--output", str(output), "--config", str(settings), "--rounds", "1", "--gpus", "0"]
    environment = os.environ | {"RAY_ADDRESS": ray_address}
    checkpoints = output / "network" / "checkpoints"
    with open(log, "ab") as stream, started(command, environment, stream) as process:
        wait_for(lambda: list(checkpoints.glob("step-*.pt")), process, 400)
        steps = (output / "network" / "metrics.csv").read_text()
        process.kill()
        process.wait()
    assert not (output / "network" / "weights.pt").exists()
    with open(log, "ab") as stream, started(command, environment, stream) as process:
        assert process.wait(200) == 0, log.read_text()
    assert len(steps.splitlines()) > 2
    assert (output / "network" / "metrics.csv").read_text().startswith(steps)  # not done again
    is_first_round_of(Folder.at(str(output)), two_rounds[0])
