"""Everything that touches storage, against a real S3 server."""

import csv
import dataclasses
import io
import json
import os
from itertools import islice
from pathlib import Path

import fsspec
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from odd_server import serve_proxy
from saff import config, config_files, edges, saliency, semantic
from saff.access import Access
from saff.backbones.efficientnet_lite import packaged
from saff.cluster import LabelPart, describe_run, label_row, plan_stage
from saff.cluster.image_reading import ImageReader
from saff.cluster.predictions import PredictPart
from saff.config import Inference, Training
from saff.errors import ImageError, SettingsError, StorageError, UnreadableError, WeightsError
from saff.evaluation import evaluate
from saff.images import decode_png, encode_png
from saff.lists import read_manifest
from saff.manifests import extend_manifest
from saff.modelfile import shipped
from saff.picture_export import export_pictures
from saff.report.stored import write_report
from saff.runs import claim, read_run
from saff.samples import Cache, Loader, batches, open_corpus
from saff.shards import MANIFEST, PREDICTIONS, count_rows, read_column, read_rows, write_rows
from saff.sources import list_images
from saff.storage import Folder, read_bytes
from saff.trained import NetworkFolder, describe, start_network
from saff.training import train

pytestmark = pytest.mark.s3

NAMES = [
    "a b.jpg",
    "#1.jpg",
    "50%.jpg",
    "%41.jpg",
    "[x]/y.jpg",
    "été/写真 🐈.jpg",
    "q?.jpg",
    "star*.jpg",
    "back\\slash.jpg",
    "c:d&e=f;g+h.jpg",
    "quote'\".jpg",
    "deep/er/no extension",
]


@pytest.fixture
def put(s3_other):
    """Write an object as somebody else would: ``put(uri, content)``."""
    return s3_other.pipe_file


def rows_of(output):
    stage = output / "pseudo_labels"
    rows = [row for name in stage.names(".parquet") for row in read_rows(stage, name)]
    return {row["image_id"]: {k: v for k, v in row.items() if k != "uri"} for row in rows}


@pytest.fixture
def photos(bucket, corpus, put):
    """The corpus in a bucket."""
    for path in corpus.rglob("*"):
        if path.is_file():
            put(f"{bucket}/photos/{path.relative_to(corpus)}", path.read_bytes())
    return f"{bucket}/photos"


@pytest.fixture
def in_bucket(photos, bucket, label_folder):
    """A finished run whose images and output are both in a bucket."""
    return label_folder(photos, f"{bucket}/runs/first")


# Listings


def test_any_name_is_kept_and_leads_to_its_object(bucket, put):
    for name in [*NAMES, ".hidden.jpg", "deep/.thumbs/x.jpg"]:
        put(f"{bucket}/p/{name}", name.encode())
    for source in (f"{bucket}/p", f"{bucket}/p/"):
        rows = list(list_images(source))
        assert [row["image_id"] for row in rows] == sorted(NAMES)
        assert [row["uri"] for row in rows] == [f"{bucket}/p/{name}" for name in sorted(NAMES)]
    assert [read_bytes(row["uri"]).decode() for row in rows] == sorted(NAMES)
    whole = [row["image_id"] for row in list_images(bucket)]
    assert whole == [f"p/{name}" for name in sorted(NAMES)]


def test_globs_and_single_objects(bucket, put):
    for name in ("a.jpg", "b/c.jpg", "b/d.png", "e.jpg/f.jpg", "[x].jpg"):
        put(f"{bucket}/p/{name}", b"x")
    found = {
        "p/*.jpg": ["[x].jpg", "a.jpg"],  # e.jpg is a prefix
        "p/**/*.jpg": ["[x].jpg", "a.jpg", "b/c.jpg", "e.jpg/f.jpg"],
        "p/b/?.png": ["d.png"],
        "p/[x].jpg": ["[x].jpg"],
    }
    for pattern, names in found.items():
        assert [row["image_id"] for row in list_images(f"{bucket}/{pattern}")] == names, pattern


def test_what_is_not_there_is_one_clear_line(bucket):
    for source in (f"{bucket}/nothing", f"{bucket}/nothing/*.jpg", "s3://no-such-bucket-of-ours/p"):
        with pytest.raises(SettingsError, match=r"no images (at|in) s3://") as caught:
            list_images(source)
        assert source in str(caught.value)
    with pytest.raises(SettingsError, match="no manifest at s3://"):
        read_manifest(f"{bucket}/m.parquet")


def test_what_others_write_is_seen_at_once(bucket, put):
    put(f"{bucket}/p/a.jpg", b"old")
    folder = Folder.at(f"{bucket}/p")

    def seen():
        return [row["image_id"] for row in list_images(f"{bucket}/p")], folder.names(".jpg")

    assert seen() == (["a.jpg"], ["a.jpg"])
    with pytest.raises(SettingsError, match="no images at"):
        list_images(f"{bucket}/p/sub")
    assert not folder.exists("b.jpg")
    put(f"{bucket}/p/a.jpg", b"new and longer")
    put(f"{bucket}/p/b.jpg", b"b")
    put(f"{bucket}/p/sub/c.jpg", b"c")
    assert seen() == (["a.jpg", "b.jpg", "sub/c.jpg"], ["a.jpg", "b.jpg"])
    assert [row["image_id"] for row in list_images(f"{bucket}/p/sub")] == ["c.jpg"]
    assert folder.exists("b.jpg")
    assert read_bytes(f"{bucket}/p/a.jpg") == folder.read("a.jpg") == b"new and longer"


def test_no_listing_of_the_images_stays_in_memory(bucket, put):
    put(f"{bucket}/p/a.jpg", b"x")
    rows = list_images(f"{bucket}/p")
    assert not fsspec.filesystem("s3").dircache
    assert len(list(rows)) == 1


def test_manifests_in_a_bucket(bucket, put):
    rows = [{"image_id": "ü 1.jpg", "uri": "../photos/ü 1.jpg"}]
    rows += [{"image_id": "2.jpg", "uri": "s3://elsewhere/2.jpg"}]
    expected = [rows[0] | {"uri": f"{bucket}/photos/ü 1.jpg"}, rows[1]]
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table)
    put(f"{bucket}/lists/m.parquet", table.getvalue())
    text = io.StringIO()
    writer = csv.DictWriter(text, ["image_id", "uri"])
    writer.writeheader()
    writer.writerows(rows)
    put(f"{bucket}/other/m.csv", text.getvalue().encode())
    for source in ("lists/m.parquet", "lists", "lists/", "other/m.csv"):
        assert list(read_manifest(f"{bucket}/{source}")) == expected, source


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_any_name_in_a_list_leads_to_its_object(bucket, put, kind):
    names = ["1+1 =2.jpg", *NAMES]
    for name in names:
        put(f"{bucket}/p/{name}", name.encode())
    rows = [{"image_id": name, "uri": f"{bucket}/p/{name}"} for name in names]
    if kind == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, ["image_id", "uri"])
        writer.writeheader()
        writer.writerows(rows)
        put(f"{bucket}/list.csv", text.getvalue().encode())
    else:
        table = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), table)
        put(f"{bucket}/list.parquet", table.getvalue())
    read = list(read_manifest(f"{bucket}/list.{kind}"))
    assert read == rows
    assert [read_bytes(row["uri"]).decode() for row in read] == names


# Writing


def test_an_object_appears_whole_or_not_at_all(bucket):
    folder = Folder.at(f"{bucket}/run")
    folder.write("old", b"old")

    def rows():
        yield {"image_id": "a", "uri": "a"}
        assert folder.names("") == ["old"]
        raise ConnectionError("reset by peer")

    for name in ("old", "new"):
        with pytest.raises(ConnectionError):
            write_rows(folder, name, rows(), MANIFEST)
    assert folder.names("") == ["old"]
    assert folder.read("old") == b"old"
    folder.write("old", b"newer")
    assert folder.read("old") == b"newer"


def test_a_piece_of_an_object_is_read_from_a_server_that_sends_the_whole_checksum(bucket):
    folder, rng = Folder.at(f"{bucket}/run"), np.random.default_rng(0)
    rows = [
        dict.fromkeys(PREDICTIONS.names) | {"image_id": f"{n}", "confidence": rng.bytes(10**6)}
        for n in range(8)
    ]
    assert write_rows(folder, "part", rows, PREDICTIONS) == (8, 0)
    assert count_rows(folder, "part") == (8, 0)  # by its footer alone
    assert read_column(folder, "part", "image_id") == [row["image_id"] for row in rows]


def test_an_object_is_created_once(bucket):
    folder = Folder.at(f"{bucket}/run")
    folder.create("a", b"one")
    folder.create("a", b"one")  # the same is no conflict
    with pytest.raises(FileExistsError):
        folder.create("a", b"two")
    assert folder.read("a") == b"one"


def test_a_run_in_a_bucket_gives_the_rows_of_a_local_one(in_bucket, finished, photos):
    assert rows_of(in_bucket) == rows_of(finished)
    stage = in_bucket / "pseudo_labels"
    uris = [r["uri"] for name in stage.names(".parquet") for r in read_rows(stage, name, ["uri"])]
    assert uris == [row["uri"] for row in list_images(photos)]
    assert in_bucket.uri.endswith("/runs/first")
    done = plan_stage(in_bucket)
    assert (done.images, done.done, done.failed, done.left) == (7, 7, 3, 0)


def test_a_run_is_resumed_and_retried(in_bucket, photos, small, corpus, put):
    first = rows_of(in_bucket)
    names = (in_bucket / "pseudo_labels").names(".parquet")
    in_bucket.fs.rm_file(f"{in_bucket.path}/pseudo_labels/{names[0]}")
    assert plan_stage(in_bucket).parts == names[:1]
    LabelPart(in_bucket, small)({"part": names[0]})
    assert rows_of(in_bucket) == first

    put(f"{photos}/page.jpg", (corpus / "rocket ü.png").read_bytes())
    put(f"{photos}/new.jpg", (corpus / "rocket ü.png").read_bytes())
    assert extend_manifest(in_bucket, list_images(photos)).added == 1
    todo = plan_stage(in_bucket, retry_failed=True)
    assert todo.left == 4
    for name in todo.parts:
        LabelPart(in_bucket, small)({"part": name})
    rows = rows_of(in_bucket)
    assert {i for i, r in rows.items() if r["error"]} == {"empty.jpg", "nested/text.png"}
    for name in ("page.jpg", "new.jpg"):
        assert rows[name]["confidence"] == rows["rocket ü.png"]["confidence"]


def test_a_run_in_a_bucket_belongs_to_its_settings(in_bucket, photos, small):
    run = describe_run(photos, small)
    assert read_run(in_bucket)["digest"] == run["digest"]
    claim(in_bucket, read_run(in_bucket))
    with pytest.raises(
        SettingsError, match=f"source is '{photos}' in that run and '/x' in this one"
    ):
        claim(in_bucket, run | {"source": "/x"})


def test_a_missing_object_is_a_row(bucket, small):
    row = label_row("a.jpg", f"{bucket}/p/a.jpg", small)
    assert (row["error_kind"], row["sha256"]) == ("not_found", None)


# Results


def test_results_are_taken_out_of_a_bucket(in_bucket, bucket, tmp_path, photographs, put):
    for what in ("mask", "overlay"):
        summary = export_pictures(in_bucket, Folder.at(str(tmp_path / what)), what)
        assert (summary.written, summary.left_out) == (4, 3)
    with PIL.Image.open(tmp_path / "overlay" / "nested" / "coffee ü.png") as drawn:
        assert np.asarray(drawn).shape == photographs["coffee"].shape
    for path in (tmp_path / "mask").rglob("*.png"):
        put(f"{bucket}/truth/{path.relative_to(tmp_path / 'mask')}", path.read_bytes())
    summary = evaluate(in_bucket, f"{bucket}/truth", "binary", "pseudo_labels")
    assert (summary["images"], summary["iou"], summary["without_truth"]) == (4, 1.0, 0)
    folder = in_bucket / "evaluation" / "pseudo_labels"
    assert folder.names("") == ["curve.csv", "curve.svg", "metrics.json"]
    assert json.loads(folder.read("metrics.json")) == summary
    assert write_report(in_bucket).uri == f"{in_bucket.uri}/report/index.html"
    page = (in_bucket / "report").read("index.html").decode()
    assert page.count('<figure class="original">') == 4


def test_a_network_is_trained_and_asked_in_a_bucket(in_bucket, tmp_path):
    training = Training(
        crop_size=32, max_side=64, batch_size=2, steps=4, checkpoint_interval=2, keep_checkpoints=1
    )
    corpus = open_corpus(in_bucket / "pseudo_labels")
    results = NetworkFolder(in_bucket / "network")
    run = describe(training, corpus, {"stage": "pseudo_labels", "digest": "d"})
    results.claim(run)
    loader = Loader(corpus, training, Cache(corpus.labels, 64, tmp_path / "cache"))
    rows = []

    def keep(state):
        results.save(state, run["digest"], training.keep_checkpoints)
        results.write_metrics(rows)

    half = islice(batches(loader), 2)
    train(start_network(training), half, training, on_step=rows.append, on_checkpoint=keep)
    state = results.latest(run["digest"])
    assert state.step == 2
    rest = batches(loader, state.step)
    final = train(
        start_network(training),
        rest,
        training,
        state=state,
        on_step=rows.append,
        on_checkpoint=keep,
    )
    results.finish(final.weights())
    assert results.checkpoints.names("") == ["step-00000004.pt"]
    assert [row["step"] for row in results.read_metrics()] == [1, 2, 3, 4]

    inference = Inference(input_sides=(64,), pseudo_label_share=0.0)
    alone = dataclasses.replace(config.default(), inference=inference)
    part = PredictPart(in_bucket, "predictions", in_bucket, alone)
    counts = [part({"part": name}) for name in (in_bucket / "manifest").names(".parquet")]
    assert sum(c["images"] for c in counts) == 7
    assert sum(c["failed"] for c in counts) == 3
    results.clear()
    assert not results.is_done()
    assert results.checkpoints.names("") == []


def test_an_image_that_was_replaced_has_no_overlay(in_bucket, photos, tmp_path, put):
    stage = in_bucket / "pseudo_labels"
    confidence = {
        row["image_id"]: row["confidence"]
        for name in stage.names(".parquet")
        for row in read_rows(stage, name)
    }["chelsea ü.png"]
    put(f"{photos}/chelsea ü.png", encode_png(decode_png(confidence)))
    summary = export_pictures(in_bucket, Folder.at(str(tmp_path)), "overlay")
    assert (summary.written, summary.left_out, summary.photographs.changed) == (3, 4, 1)


# Settings and models


def test_settings_in_a_bucket_are_those_of_the_file(bucket, put, tmp_path):
    text = '{"encoder_side": 64, "saliency": "rbd", "training": {"steps": 7}}'
    (tmp_path / "ü 1.json").write_text(text)
    put(f"{bucket}/settings/ü 1.json", text.encode())
    found = config_files.read_config(f"{bucket}/settings/ü 1.json")
    assert found == config_files.read_config(str(tmp_path / "ü 1.json"))
    assert (found.encoder_side, found.training.steps) == (64, 7)
    with pytest.raises(SettingsError, match=r"^no configuration 's3://.*/settings/2\.json'; known"):
        config_files.read_config(f"{bucket}/settings/2.json")


@pytest.mark.parametrize(
    "settings", [{"AWS_SECRET_ACCESS_KEY": "wrong"}, {"AWS_ACCESS_KEY_ID": "x"}]
)
def test_settings_that_may_not_be_read_are_one_clear_line(
    bucket, put, s3_user, call, corpus, tmp_path, settings
):
    put(f"{bucket}/small.json", b"{}")
    s3_user(**settings)
    words = ["label", corpus, "--config", f"{bucket}/small.json", "--output", tmp_path / "out"]
    code, out, err = call(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"saff: no access to {bucket}/small.json: ")
    assert "; check the credentials" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("load", "kind", "name"),
    [(saliency.load, "drfi", "saliency"), (edges.load, "learned", "edges")],
    ids=["saliency", "edges"],
)
def test_a_model_in_a_bucket_is_that_of_the_file(bucket, put, photographs, load, kind, name):
    uri, image = f"{bucket}/models/own {name}.safetensors", photographs["coffee"][:64, :96]
    put(uri, Path(shipped(name)).read_bytes())
    found = load(f"{kind}:{uri}")
    assert found.digest == load(kind).digest
    np.testing.assert_array_equal(found(image), load(kind)(image))
    with pytest.raises(WeightsError, match=f"^cannot read the weights {uri}.old: "):
        load(f"{kind}:{uri}.old")


def test_encoder_weights_in_a_bucket_are_those_of_the_file(bucket, put, photographs):
    name, uri = "efficientnet_lite0", f"{bucket}/models/own weights.pth"
    put(uri, Path(packaged(name)).read_bytes())
    local = semantic.load(name, side=64)
    found = semantic.load(name, side=64, weights=uri)
    assert found.digest == local.digest
    image = photographs["coffee"]
    np.testing.assert_array_equal(found(image).scores, local(image).scores)


# Refusals


def each_command(bucket, tmp_path):
    """Commands whose storage refuses, and what each of them cannot reach."""
    here = tmp_path / "photos"
    here.mkdir()
    (here / "a.jpg").touch()
    (tmp_path / "small.json").write_text('{"encoder_side": 64, "superpixel_count": 60}')
    settings = ["--config", tmp_path / "small.json"]
    photos, output = f"{bucket}/photos", f"{bucket}/run"
    yield photos, ["label", photos, "--output", tmp_path / "out"]
    yield photos, ["label", "--manifest", photos, "--output", tmp_path / "out"]
    yield output, ["label", here, "--output", output, *settings]
    yield output, ["label", here, "--output", output, "--dry-run", *settings]
    yield output, ["export", output, "--to", tmp_path / "to"]
    yield output, ["report", output]
    yield output, ["evaluate", output, "--truth", here]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "; check the credentials"),
        ({"AWS_ACCESS_KEY_ID": "nobody-we-know"}, "; check the credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, ": Could not connect to the endpoint URL"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, ": Unable to locate credentials"),
    ],
    ids=["wrong secret", "unknown key", "no server", "no credentials"],
)
def test_a_storage_that_refuses_is_one_clear_line(
    bucket, photos, s3_user, small, call, tmp_path, settings, said
):
    s3_user(**settings)
    for uri, words in each_command(bucket, tmp_path):
        code, out, err = call(*words)
        assert (code, out) == (2, ""), words
        line = err.splitlines()[-1]
        assert line.startswith(f"saff: no access to {uri}: "), words
        assert said in line
        assert "Traceback" not in err
    with pytest.raises(Exception, match=r".") as raised:  # in a task: an exception, not a row
        label_row("a.jpg", f"{photos}/chelsea ü.png", small)
    assert not isinstance(raised.value, SettingsError)


def test_a_bucket_that_is_not_there_cannot_be_written_to(s3_user, call, corpus, tmp_path):
    (tmp_path / "small.json").write_text('{"encoder_side": 64, "superpixel_count": 60}')
    words = ["label", corpus, "--config", tmp_path / "small.json", "--output"]
    code, _, err = call(*words, "s3://no-such-bucket-of-ours/run")
    assert code == 2
    assert err.splitlines()[-1].startswith("saff: no access to s3://no-such-bucket-of-ours/run: ")


def test_a_dry_run_over_a_bucket(photos, bucket, call, tmp_path):
    (tmp_path / "small.json").write_text('{"encoder_side": 64, "superpixel_count": 60}')
    words = [
        "label",
        photos,
        "--config",
        tmp_path / "small.json",
        "--dry-run",
        "--sample",
        0,
        "--output",
    ]
    said = f"7 images: 0 labelled, 0 failed, 7 to do, into {bucket}/run\n"
    assert call(*words, f"{bucket}/run") == (0, said, "")
    assert Folder.at(f"{bucket}/run").names("") == []
    assert not Path("s3:").exists()


# What is not there, and what may not be read


def test_a_version_of_an_object_is_what_its_address_names(bucket, put, monkeypatch):
    """The server here keeps no versions: what is asked for is looked at, by a proxy."""
    with serve_proxy(b"version") as (proxy, asked):
        monkeypatch.setenv("http_proxy", proxy)
        s3fs.S3FileSystem.clear_instance_cache()
        assert read_bytes(f"{bucket}/p/a?b.jpg?versionId=a%2F1") == b"version"
    (url,) = asked
    assert url.endswith("/p/a%3Fb.jpg?versionId=a%252F1")
    s3fs.S3FileSystem.clear_instance_cache()


def test_the_proxy_of_the_environment_is_used(bucket, put, monkeypatch):
    put(f"{bucket}/a.jpg", b"direct")
    name = bucket.removeprefix("s3://")
    with serve_proxy(b"by proxy") as (proxy, asked):
        monkeypatch.setenv("http_proxy", proxy)
        s3fs.S3FileSystem.clear_instance_cache()
        assert read_bytes(f"{bucket}/a.jpg") == b"by proxy"
        assert asked == [f"{os.environ['AWS_ENDPOINT_URL']}/{name}/a.jpg"]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        s3fs.S3FileSystem.clear_instance_cache()
        assert read_bytes(f"{bucket}/a.jpg") == b"direct"
        assert len(asked) == 1
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_object_larger_than_any_image_is_not_read(bucket, put):
    put(f"{bucket}/a.jpg", bytes(1000))
    assert len(read_bytes(f"{bucket}/a.jpg", Access(largest=1000))) == 1000
    with pytest.raises(UnreadableError, match="a file of more than 999 bytes is no image"):
        read_bytes(f"{bucket}/a.jpg", Access(largest=999))


def test_a_missing_object_among_others_is_a_row(bucket, put, tmp_path):
    put(f"{bucket}/a.jpg", b"x")
    output = Folder.at(str(tmp_path))
    names = ("a", "b")
    extend_manifest(output, [{"image_id": n, "uri": f"{bucket}/{n}.jpg"} for n in names])
    reader = ImageReader(Access(), output)
    assert reader.read(f"{bucket}/a.jpg") == b"x"
    with pytest.raises(ImageError) as caught:
        reader.read(f"{bucket}/b.jpg")
    assert caught.value.kind == "not_found"


def test_credentials_that_are_refused_end_the_job_and_name_the_object(
    bucket, put, tmp_path, s3_user
):
    put(f"{bucket}/a.jpg", b"x")
    output = Folder.at(str(tmp_path))
    names = ("a", "b", "c")
    extend_manifest(output, [{"image_id": n, "uri": f"{bucket}/{n}.jpg"} for n in names])
    s3_user(AWS_SECRET_ACCESS_KEY="another")
    with pytest.raises((StorageError, OSError)) as caught:
        ImageReader(Access(), output).read(f"{bucket}/a.jpg")
    assert not isinstance(caught.value, ImageError)
