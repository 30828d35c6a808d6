"""label_row, LabelPart and what surrounds them, called as plain functions: no Ray here."""

import dataclasses
import errno
import hashlib
import io
import os
import sys
import types

import cv2
import fsspec
import numpy as np
import PIL.Image
import pytest
from aiohttp import ClientResponseError, InvalidURL
from botocore.exceptions import ParamValidationError

import saff
from saff import images, saliency, semantic
from saff.cluster import LabelPart, describe_run, label_row, plan_stage, preview
from saff.cluster.image_rows import INFERENCE, LABELING, run_on_image
from saff.errors import SettingsError, StorageError
from saff.labeling import label_image, load_models
from saff.manifests import extend_manifest
from saff.shards import PSEUDO_LABELS, read_rows, write_rows
from saff.sources import list_images
from saff.storage import Folder

RESULTS = set(PSEUDO_LABELS.names) - {"image_id", "uri", "sha256", "height", "width"}
RESULTS -= {"error", "error_kind"}


def encoded(pixels, file_format="PNG", **options):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


def stored(output):
    stage = output / "pseudo_labels"
    return {r["image_id"]: r for n in stage.names(".parquet") for r in read_rows(stage, n)}


# One image


def test_a_row_holds_what_label_image_gives(tmp_path, photographs, small):
    pixels = photographs["chelsea"]
    path = tmp_path / "chelsea.png"
    path.write_bytes(encoded(pixels))
    row = label_row("chelsea.png", str(path), small)
    assert list(row) == PSEUDO_LABELS.names
    labeled = label_image(pixels, small)
    maps = {name: images.decode_png(row[name]) for name in ("confidence", "pseudo_label")}
    superpixels = images.decode_png(row["superpixels"])
    np.testing.assert_array_equal(maps["confidence"], np.rint(labeled.confidence * 255))
    np.testing.assert_array_equal(maps["pseudo_label"], labeled.pseudo_label)
    np.testing.assert_array_equal(maps["pseudo_label"], maps["confidence"] >= 128)
    np.testing.assert_array_equal(superpixels, labeled.superpixels)
    assert (maps["confidence"].dtype, maps["pseudo_label"].dtype) == (np.uint8, np.uint8)
    assert superpixels.dtype == np.uint16
    regions = labeled.superpixels.max() + 1
    features = np.reshape(row["features"], (regions, 4))  # row-major
    np.testing.assert_array_equal(features, labeled.features)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(row["weights"], [*labeled.weights, labeled.bias])
    assert (row["seeds_foreground"], row["seeds_background"], row["fallback"]) == (
        labeled.seeds_foreground,
        labeled.seeds_background,
        labeled.fallback,
    )
    assert row["quality"] == labeled.quality
    assert (row["image_id"], row["uri"]) == ("chelsea.png", str(path))
    assert (row["height"], row["width"]) == pixels.shape[:2]
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (row["error"], row["error_kind"]) == (None, None)


def test_the_size_is_that_of_the_image_as_displayed(tmp_path, photographs, small):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(np.rot90(photographs["coffee"]), "JPEG", exif=exif, quality=95))
    row = label_row("a.jpg", str(path), small)
    assert row["error"] is None
    assert (row["height"], row["width"]) == photographs["coffee"].shape[:2]
    for name in ("confidence", "pseudo_label", "superpixels"):
        assert images.decode_png(row[name]).shape == photographs["coffee"].shape[:2]


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3), (40, 40)])
def test_flat_tiny_and_thin_images_have_a_map(tmp_path, small, shape):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(np.full((*shape, 3), 77, np.uint8)))
    row = label_row("a.png", str(path), small)
    assert row["error"] is None
    assert images.decode_png(row["confidence"]).shape == shape
    assert np.isfinite([*row["features"], *row["weights"]]).all()


def bad_files(photograph):
    jpeg = encoded(photograph, "JPEG")
    png = encoded(photograph)
    return {
        "empty": b"",
        "text": b"dear diary\n",
        "html": b"<!doctype html><html><body>404</body></html>",
        "half a jpeg": jpeg[: len(jpeg) // 2],
        "half a png": png[: len(png) // 2],
        "a jpeg's header": jpeg[: jpeg.index(b"\xff\xda")],
        "a png's header": png[:33],
    }


SAID = {
    "empty": ("empty", "image is empty: 0 bytes"),
    "text": ("not_an_image", "image is text"),
    "html": ("not_an_image", "image is an HTML page"),
    "half a jpeg": ("truncated", "image is a truncated JPEG file"),
    "half a png": ("truncated", "image is a truncated PNG file"),
    "a jpeg's header": ("truncated", "image is a truncated JPEG file"),
    "a png's header": ("truncated", "image is a truncated PNG file"),
}


@pytest.mark.parametrize("name", SAID)
def test_a_file_that_is_at_fault_is_a_row_that_says_so(tmp_path, photographs, small, name):
    content = bad_files(photographs["rocket"])[name]
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    row = label_row("a.jpg", str(path), small)
    kind, text = SAID[name]
    assert row["error_kind"] == kind
    assert row["error"].startswith(text)
    assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert {row[column] for column in RESULTS} == {None}
    assert (row["image_id"], row["uri"]) == ("a.jpg", str(path))


def test_an_image_of_too_many_pixels_is_refused(tmp_path, photographs, small):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(photographs["rocket"]))
    row = label_row("a.png", str(path), dataclasses.replace(small, max_pixels=1000))
    assert row["error_kind"] == "too_many_pixels"
    assert "expected at most max_pixels=1000" in row["error"]


def test_what_is_no_file_is_a_row(tmp_path, small):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name in ("missing", "folder", "file/below", "circle", "broken", "x" * 300):
        row = label_row(name, f"{tmp_path}/{name}", small)
        assert row["error_kind"] == "not_found", name
        assert row["error"] == "there is no file at the image's uri"
        assert row["sha256"] is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_a_row(tmp_path, small):
    (tmp_path / "a.jpg").touch(0o000)
    row = label_row("a.jpg", str(tmp_path / "a.jpg"), small)
    assert row["error_kind"] == "not_readable"


def test_a_name_that_is_no_utf_8_is_a_row(tmp_path, small):
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg"), "wb") as file:
        file.write(b"x")
    (listed,) = list_images(str(tmp_path))
    row = label_row(listed["image_id"], listed["uri"], small)
    assert (row["image_id"], row["error_kind"]) == (r"caf\xe9.jpg", "not_found")


# The storage's fault


class Flaky(fsspec.AbstractFileSystem):
    """A storage that raises what the test wants."""

    protocol = "flaky"
    error: BaseException

    def cat_file(self, path, **options):
        raise self.error

    open = info = cat_file


class UnlikeOSError(Exception):
    """As botocore's are."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        ConnectionError("reset by peer"),
        TimeoutError("no answer"),
        PermissionError("the access key is wrong"),  # not one image's fault in an object store
        ValueError("an answer of the storage that makes no sense"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_storages_fault_is_raised(small, error, monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(Flaky, "error", error, raising=False)
    with pytest.raises(type(error)) as caught:
        label_row("a.jpg", "flaky://bucket/a.jpg", small)
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("8 GiB"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        cv2.error("no memory"),
    ],
    ids=str,
)
def test_a_machine_at_its_end_marks_no_image(error):
    if isinstance(error, cv2.error):
        error.code = cv2.Error.STS_NO_MEM

    def work(image):
        raise error

    with pytest.raises(type(error)):
        run_on_image(work, np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("doing", [LABELING, INFERENCE])
def test_a_defect_is_recorded_under_the_work_that_met_it(doing):
    def work(image):
        raise IndexError("no such plane")

    assert run_on_image(work, np.zeros((8, 8, 3), np.uint8), doing) == {
        "error": f"{doing} failed: IndexError: no such plane",
        "error_kind": f"{doing}_failed",
    }


def test_what_no_python_error_says_is_an_oserror(small, monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    error = UnlikeOSError("Unable to locate credentials")
    monkeypatch.setattr(Flaky, "error", error, raising=False)
    with pytest.raises(OSError, match=r"^Unable to locate credentials$") as caught:
        label_row("a.jpg", "flaky://bucket/a.jpg", small)
    assert caught.value.__cause__ is error


REQUEST = types.SimpleNamespace(real_url="http://example/a.jpg?signature=1")


class RefusedByS3(OSError):
    """As s3fs raises them, with botocore's own error for its cause."""

    def __init__(self, code):
        super().__init__(errno.EINVAL, "a message")
        self.__cause__ = UnlikeOSError()
        self.__cause__.response = {"Error": {"Code": code}}


@pytest.mark.parametrize(
    "error",
    [
        RefusedByS3("InvalidObjectState"),
        RefusedByS3("InvalidRequest"),
        ClientResponseError(REQUEST, (), status=403),
        ClientResponseError(REQUEST, (), status=410),
        ParamValidationError(report="Invalid bucket name"),
        InvalidURL("https:///x.jpg"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_store_says_of_one_image_is_its_row(small, error, monkeypatch):
    monkeypatch.setenv("SAFF_STORAGE_PATIENCE", "60")  # and at once
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(Flaky, "error", error, raising=False)
    row = label_row("a.jpg", "flaky://bucket/a.jpg", small)
    assert (row["error_kind"], row["sha256"]) == ("not_readable", None)


def test_an_address_that_is_none_is_a_row(small):
    for uri in ("http://[bad/x.jpg", "https:///x.jpg", "s3://Bad Bucket!/x.jpg"):
        assert label_row("a.jpg", uri, small)["error_kind"] == "not_readable", uri


def test_a_file_larger_than_any_image_is_not_read(small, tmp_path):
    with open(tmp_path / "film.mp4", "wb") as file:
        file.truncate(2**41)
    row = label_row("film.mp4", str(tmp_path / "film.mp4"), small)
    assert row["error"] == "a file of 2,199,023,255,552 bytes is no image"


def test_a_missing_object_is_a_row(small, monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(Flaky, "error", FileNotFoundError("no such key"), raising=False)
    assert label_row("a.jpg", "flaky://bucket/a.jpg", small)["error_kind"] == "not_found"


# The fault of a back end


@pytest.fixture(scope="module")
def encoder(small):
    return load_models(small).encoder


@pytest.fixture
def with_saliency(small, encoder, monkeypatch):
    """Settings whose saliency is a given function, as a user would name their own."""
    monkeypatch.setattr(semantic, "load", lambda *name, **options: encoder)  # loaded once
    module = types.ModuleType("users_back_ends")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def settings(back_end):
        name = f"factory_{len(vars(module))}_{id(back_end)}"
        setattr(module, name, lambda: back_end)
        return dataclasses.replace(small, saliency=f"{module.__name__}:{name}")

    return settings


def fail_with(error):
    def back_end(*_):
        raise error

    return back_end


def one_nan(image):
    pixels = np.linspace(0, 1, image[..., 0].size, dtype=np.float32).reshape(image.shape[:2])
    pixels[0, 0] = np.nan
    return pixels


DEFECTS = {
    "ValueError: of all things": fail_with(ValueError("of all things")),
    "KeyError: 'no such layer'": fail_with(KeyError("no such layer")),
    "RuntimeError: shapes cannot be multiplied": fail_with(
        RuntimeError("shapes cannot be multiplied")
    ),
    "error: resize.cpp: assertion failed": fail_with(cv2.error("resize.cpp: assertion failed")),
    "RuntimeError: half a pair \\udcff": fail_with(RuntimeError("half a pair \udcff")),
    "ValueError: the saliency back end gave NaN or infinity, expected [0, 1]": one_nan,
    "ValueError: the saliency back end must give (": lambda image: np.zeros((3, 3), np.float32),
}


@pytest.mark.parametrize("said", DEFECTS)
def test_a_defect_of_a_back_end_is_a_row(corpus, with_saliency, said, tmp_path):
    config = with_saliency(DEFECTS[said])
    row = label_row("a", f"{corpus}/chelsea ü.png", config)
    assert row["error_kind"] == "labeling_failed"
    assert row["error"].startswith(f"labeling failed: {said}")
    assert {row[column] for column in RESULTS} == {None}
    assert (row["height"], row["width"]) == (133, 200)
    folder = Folder.at(str(tmp_path))
    assert write_rows(folder, "s", [row], PSEUDO_LABELS) == (1, 1)  # Parquet takes the text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_nan_passes_silently(corpus, with_saliency, value):
    config = with_saliency(lambda image: np.full(image.shape[:2], value, np.float32))
    row = label_row("a", f"{corpus}/chelsea ü.png", config)
    assert row["error_kind"] == "labeling_failed"


@pytest.mark.parametrize("error", [MemoryError("16 GiB"), OSError("disk"), SettingsError("no")])
def test_the_machines_fault_in_a_back_end_is_raised(corpus, with_saliency, error):
    with pytest.raises(type(error)):
        label_row("a", f"{corpus}/chelsea ü.png", with_saliency(fail_with(error)))


def test_a_back_end_that_is_missing_on_a_worker_is_raised(corpus, small):
    config = dataclasses.replace(small, saliency="nowhere_installed:factory")
    with pytest.raises(SettingsError, match="nowhere_installed"):
        label_row("a", f"{corpus}/chelsea ü.png", config)


# One part


def test_every_row_of_the_manifest_has_one_row_in_the_shard_of_its_name(finished, corpus):
    names = (finished / "manifest").names(".parquet")
    assert (finished / "pseudo_labels").names(".parquet") == names
    assert len(names) > 1
    for name in names:
        manifest = list(read_rows(finished / "manifest", name))
        shard = list(read_rows(finished / "pseudo_labels", name))
        assert [{k: row[k] for k in ("image_id", "uri")} for row in shard] == manifest
    rows = stored(finished)
    assert list(rows) == [row["image_id"] for row in list_images(str(corpus))]
    assert {i: r["error_kind"] for i, r in rows.items() if r["error"]} == {
        "empty.jpg": "empty",
        "nested/text.png": "not_an_image",
        "page.jpg": "not_an_image",
    }


def test_a_part_says_what_it_did(corpus, small, tmp_path):
    output = Folder.at(str(tmp_path))
    extend_manifest(output, list_images(str(corpus)))
    did = [LabelPart(output, small)({"part": "part-0000000.parquet"}) for _ in "12"]
    first = {"part": "part-0000000.parquet", "images": 2, "failed": 0, "kept": 0}
    assert did == [first, first | {"kept": 2}]


def test_twice_gives_the_same_bytes(corpus, finished, label_folder, tmp_path):
    again = label_folder(corpus, tmp_path)
    assert stored(again) == stored(finished)
    for name in (finished / "pseudo_labels").names(".parquet"):
        first, second = ((run / "pseudo_labels").read(name) for run in (finished, again))
        assert first == second


def test_again_does_what_failed_and_keeps_the_rest(corpus, small, label_folder, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    whole = (corpus / "chelsea ü.png").read_bytes()
    for name in ("a.png", "b.png", "c.png"):
        (photos / name).write_bytes(whole)
    (photos / "b.png").write_bytes(whole[:500])
    output = label_folder(photos, tmp_path / "run")
    before = stored(output)
    assert [r["error_kind"] for r in before.values()] == [None, "truncated", None]

    (photos / "b.png").write_bytes((corpus / "rocket ü.png").read_bytes())
    for name in ("a.png", "c.png"):
        (photos / name).unlink()  # a second look at them would find nothing
    (part,) = plan_stage(output, retry_failed=True).parts
    assert LabelPart(output, small)({"part": part}) == {
        "part": part,
        "images": 2,
        "failed": 0,
        "kept": 1,
    }
    after = stored(output)
    repaired = after.pop("b.png")
    assert repaired["error_kind"] is None
    before.pop("b.png")
    assert after == before
    repaired["image_id"], repaired["uri"] = "rocket ü.png", f"{corpus}/rocket ü.png"
    rocket = label_row("rocket ü.png", f"{corpus}/rocket ü.png", small)
    assert repaired == {k: np.asarray(v).tolist() for k, v in rocket.items()}


def test_a_part_that_dies_leaves_no_shard(corpus, small, tmp_path, monkeypatch):
    output = Folder.at(str(tmp_path))
    extend_manifest(output, list_images(str(corpus)))
    monkeypatch.setattr(
        "saff.cluster.image_reading.read_bytes", fail_with(ConnectionError("reset by peer"))
    )
    with pytest.raises(ConnectionError):
        LabelPart(output, small)({"part": "part-0000000.parquet"})
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and "manifest" not in str(path)
    ]


# The run


def test_the_plan_is_what_is_missing(corpus, small, tmp_path):
    output = Folder.at(str(tmp_path))
    extend_manifest(output, list_images(str(corpus)))
    names = (output / "manifest").names(".parquet")
    before = plan_stage(output)
    assert (before.images, before.done, before.failed, before.left) == (7, 0, 0, 7)
    assert before.parts == names
    for name in names[1:3]:  # coffee, text.png, empty.jpg and page.jpg among them, by their order
        LabelPart(output, small)({"part": name})
    rows = stored(output)
    failed = sum(row["error"] is not None for row in rows.values())
    between = plan_stage(output)
    assert (between.images, between.done, between.failed, between.left) == (7, 4, failed, 3)
    assert between.parts == [names[0], names[3]]
    assert str(between) == (f"7 images: {4 - failed} labelled, {failed} failed, 3 to do in 2 parts")


def test_a_retry_does_the_parts_again_that_hold_failures(finished):
    done, again = plan_stage(finished), plan_stage(finished, retry_failed=True)
    assert (done.images, done.done, done.failed, done.left, done.parts) == (7, 7, 3, 0, [])
    rows = stored(finished)
    stage = finished / "pseudo_labels"
    expected = [
        name
        for name in stage.names(".parquet")
        if any(rows[r["image_id"]]["error"] for r in read_rows(stage, name))
    ]
    assert again.parts == expected
    assert (again.left, again.done) == (3, 7)


def test_a_preview_says_what_would_be_done_and_does_nothing(corpus, finished, small, tmp_path):
    photos = tmp_path / "photos"
    rows = list(list_images(str(corpus)))
    output = Folder.at(str(tmp_path / "run"))
    said = preview(str(photos), rows, output, small)
    assert said == f"7 images: 0 labelled, 0 failed, 7 to do, into {tmp_path}/run"
    assert os.listdir(tmp_path) == []

    def of_finished(rows, **options):
        return preview(str(corpus), rows, finished, small, **options).rpartition(", into")[0]

    assert of_finished(rows) == "7 images: 4 labelled, 3 failed, 0 to do"
    assert of_finished(rows, retry_failed=True) == "7 images: 4 labelled, 3 failed, 3 to do"
    other = [{"image_id": f"new {n}.jpg", "uri": "x"} for n in range(2)]
    assert of_finished(other + rows[3:]) == "9 images: 4 labelled, 3 failed, 2 to do"
    with pytest.raises(SettingsError, match="comes twice"):
        of_finished(rows + rows)


def test_a_preview_refuses_what_a_run_would(corpus, finished, small, tmp_path):
    rows = list(list_images(str(corpus)))
    with pytest.raises(
        SettingsError, match=r"config\.gamma is 1\.5 in that run and 2\.0 in this one"
    ):
        preview(str(corpus), rows, finished, dataclasses.replace(small, gamma=2.0))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=f"no access to {tmp_path}/file"):
        preview(str(corpus), rows, Folder.at(str(tmp_path / "file")), small)


def test_the_digest_holds_settings_weights_and_version(small, monkeypatch):
    run = describe_run("/photos", small)
    assert run["source"] == "/photos"
    assert run["saff"] == saff.__version__
    assert run["config"]["superpixel_count"] == 60
    assert run["weights"]["encoder"]
    assert describe_run("/photos", small) == run
    assert describe_run("/elsewhere", small)["digest"] == run["digest"]
    digests = {run["digest"]}
    digests.add(describe_run("/photos", dataclasses.replace(small, gamma=2.0))["digest"])
    with monkeypatch.context() as patch:
        patch.setattr(saff, "__version__", "99")
        digests.add(describe_run("/photos", small)["digest"])
    with monkeypatch.context() as patch:
        patch.setattr(saliency.RobustBackground, "digest", "1e", raising=False)
        other = dataclasses.replace(small, saliency="rbd")
        digests.add(describe_run("/photos", other)["digest"])
    assert len(digests) == 4


def test_settings_that_cannot_work_stop_before_anything_starts(with_saliency, small):
    config = dataclasses.replace(small, saliency="nowhere_installed:factory")
    with pytest.raises(SettingsError, match="nowhere_installed"):
        describe_run("/photos", config)
