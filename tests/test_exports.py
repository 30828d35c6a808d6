"""Every format is read back with a reader of somebody else's, and its masks compared."""

import contextlib
import io
import json
import os
import shutil
import sys
import warnings

import cv2
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from saff.errors import SettingsError
from saff.exports import ANNOTATIONS, FORMATS, hugging_face, run as exports_run
from saff.exports.label_studio import encode_brush
from saff.exports.results import Settings
from saff.exports.run import Export, export_here
from saff.rows import original, rows_of
from saff.shards import PSEUDO_LABELS, read_all_rows, write_rows
from saff.storage import Folder
from stored_runs import a_run, failed, files_below, labelled, predicted, write_predictions

# Of the readers: what NumPy deprecates, and files that they leave open.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
SHAPE = (40, 60)
IDS = (
    "cat.jpg",
    "a b/dog ü.png",
    "dog.jpg",
    "dog.png",
    "d.e/bird.1.jpg",
    'x&y<"z>.jpg',
    "none.jpg",
)


def a_mask(seed):
    """Blobs with holes and some single pixels."""
    rng = np.random.default_rng(seed)
    blobs = cv2.GaussianBlur(rng.random(SHAPE), (0, 0), 3) > 0.5
    return blobs ^ (rng.random(SHAPE) < 0.02)


def confidence_of(mask):
    return np.where(mask, 200, 50).astype(np.uint8)


@pytest.fixture(scope="module")
def masks():
    """Masks by image id, one of them empty."""
    found = {image_id: a_mask(number) for number, image_id in enumerate(IDS)}
    return found | {"none.jpg": np.zeros(SHAPE, bool)}


@pytest.fixture(scope="module")
def run(tmp_path_factory, masks):
    """A run of these images in parts of three, and of one that failed."""
    folder = tmp_path_factory.mktemp("exports")
    rows = [
        labelled(folder, image_id, confidence_of(mask), quality=0.25)
        for image_id, mask in masks.items()
    ]
    return a_run(folder, [*rows, failed("broken.jpg")], shard=3)


@pytest.fixture
def exported(run, tmp_path):
    """Export that run: ``exported("coco", ...)`` gives the folder."""

    def export(form, **options):
        to = tmp_path / form
        done = Export(output=run, to=Folder.at(str(to)), format=form, **options)
        export_here(done)
        summary = done.summary()
        assert (summary.written, summary.failed, summary.left_out) == (len(IDS), 1, 1)
        return to

    return export


def photographs(run):
    """Photographs of that run by image id, as arrays."""
    rows = rows_of(run, "pseudo_labels")
    return {row["image_id"]: original(row) for row in rows if row["error_kind"] is None}


def assert_same(found, masks):
    assert found.keys() == masks.keys()
    for image_id, mask in masks.items():
        np.testing.assert_array_equal(found[image_id], mask, image_id)


# COCO


def coco_masks(path):
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    found = {}
    for image in coco.imgs.values():
        mask = np.zeros((image["height"], image["width"]), bool)
        for annotation in coco.imgToAnns[image["id"]]:
            pixels = coco.annToMask(annotation) > 0
            assert not (mask & pixels).any()
            mask |= pixels
            assert annotation["area"] == pixels.sum()
            x, y, width, height = annotation["bbox"]
            assert cv2.boundingRect(pixels.astype(np.uint8)) == (x, y, width, height)
            assert annotation["iscrowd"] == 0
            assert coco.cats[annotation["category_id"]]["name"] == "foreground"
        found[image["file_name"]] = mask
    return coco, found


def test_coco_is_read_by_pycocotools(exported, masks):
    to = exported("coco")
    coco, found = coco_masks(to / "annotations.json")
    assert_same(found, masks)
    assert sorted(coco.imgs) == list(range(1, len(masks) + 1))
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    assert {image["quality"] for image in coco.imgs.values()} == {0.25}
    for part in sorted((to / "parts").iterdir()):  # each is a file of its own
        _, some = coco_masks(part)
        assert_same(some, {image_id: masks[image_id] for image_id in some})


def test_a_missing_coder_of_coco_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    export = Export(output=run, to=Folder.at(str(tmp_path / "to")), format="coco")
    with pytest.raises(SettingsError, match=r"pip install 'saff\[coco\]'"):
        export.claim()
    assert not (tmp_path / "to").exists()


# YOLO


def test_yolo_is_read_by_supervision(exported, masks, run):
    import supervision

    to = exported("yolo")
    images = photographs(run)
    for image_id, mask in masks.items():
        stem = image_id if image_id.startswith("dog.") else image_id.rpartition(".")[0]
        folder, _, name = stem.rpartition("/")
        data = supervision.DetectionDataset.from_yolo(
            images_directory_path=str(to / "images" / folder),
            annotations_directory_path=str(to / "labels" / folder),
            data_yaml_path=str(to / "data.yaml"),
            force_masks=True,
        )
        assert data.classes == ["foreground"]
        path = str(to / "images" / folder / f"{name}.png")
        found = data.annotations[path].mask
        union = np.zeros(SHAPE, bool) if found is None else found.any(axis=0)
        np.testing.assert_array_equal(union, mask)
        with PIL.Image.open(path) as photograph:
            np.testing.assert_array_equal(np.asarray(photograph), images[image_id])


def test_yolo_labels_fill_to_the_mask_as_ultralytics_does(exported, masks):
    to = exported("yolo")
    for image_id, mask in masks.items():
        stem = image_id if image_id.startswith("dog.") else image_id.rpartition(".")[0]
        filled = np.zeros(SHAPE, np.uint8)
        for line in (to / "labels" / f"{stem}.txt").read_text().splitlines():
            number, *shares = line.split()
            points = np.array(shares, np.float32).reshape(-1, 2) * np.float32(SHAPE[::-1])
            cv2.fillPoly(filled, [points.astype(np.int32)], 1)
            assert number == "0"
        np.testing.assert_array_equal(filled > 0, mask)


# Label Studio


def label_studio_masks(path):
    from label_studio_sdk.converter.brush import decode_rle

    found = {}
    for task in json.loads(path.read_text()):
        (prediction,) = task["predictions"]
        mask = np.zeros(SHAPE, bool)
        for result in prediction["result"]:
            size = (result["original_height"], result["original_width"], 4)
            pixels = decode_rle(result["value"]["rle"]).reshape(size)
            assert (pixels == pixels[..., :1]).all()
            mask |= pixels[..., 3] == 255
        found[task["data"]["image_id"]] = mask
    return found


def test_label_studio_tasks_are_read_by_its_converter(exported, masks):
    to = exported("label-studio", settings=Settings(url_prefix="/data/local-files/?d=photos/"))
    assert_same(label_studio_masks(to / "tasks.json"), masks)
    task = json.loads((to / "tasks.json").read_text())[0]
    assert task["data"]["image"] == "/data/local-files/?d=photos/cat.jpg"
    assert task["predictions"][0]["score"] == 0.25


@given(st.lists(st.tuples(st.integers(1, 70_000), st.booleans()), min_size=1, max_size=6))
def test_brush_runs_of_all_lengths_are_read_by_the_converter(runs):
    from label_studio_sdk.converter.brush import decode_rle

    mask = np.concatenate([np.full(length, value) for length, value in runs])
    pixels = decode_rle(encode_brush(mask[None])).reshape(-1, 4)
    np.testing.assert_array_equal(pixels, np.repeat(mask[:, None] * np.uint8(255), 4, axis=1))


# CVAT


def test_cvat_is_read_by_datumaro(masks, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from datumaro import Dataset

    ids = [image_id for image_id in IDS if image_id != "dog.png"]  # it takes no two of one stem
    rows = [labelled(tmp_path, image_id, confidence_of(masks[image_id])) for image_id in ids]
    output, task = a_run(tmp_path, rows), tmp_path / "task"
    export_here(Export(output=output, to=Folder.at(str(tmp_path / "to")), format="cvat"))
    for row in rows:
        path = task / "images" / row["image_id"]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(row["uri"], path)
    shutil.copy(tmp_path / "to" / "annotations.xml", task)
    found = {}
    for item in Dataset.import_from(str(task), "cvat"):
        mask = np.zeros(SHAPE, bool)
        for annotation in item.annotations:
            mask |= np.asarray(annotation.image) > 0
        found[os.path.relpath(item.media.path, task / "images")] = mask
    assert_same(found, {image_id: masks[image_id] for image_id in ids})


def test_an_id_that_xml_cannot_hold_is_left_out_with_a_reason(tmp_path):
    rows = [labelled(tmp_path, "a\x01.jpg"), labelled(tmp_path, "b\u2028\n.jpg")]
    export = Export(output=a_run(tmp_path, rows), to=Folder.at(str(tmp_path / "to")), format="cvat")
    export_here(export)
    assert export.summary().reasons == [("a\x01.jpg", "its id holds '\\x01', which XML cannot")]
    from defusedxml import ElementTree

    tree = ElementTree.parse(tmp_path / "to" / "annotations.xml")
    assert [(e.get("name"), e.get("id")) for e in tree.iter("image")] == [("b\u2028\n.jpg", "0")]


# Hugging Face


def test_a_hugging_face_folder_shows_pictures(exported, masks, run, tmp_path):
    import datasets

    to = exported("hugging-face")
    for source in (
        {"path": str(to)},
        {"path": "parquet", "data_files": str(to / "data" / "*.parquet")},
    ):
        data = datasets.load_dataset(**source, split="train", cache_dir=str(tmp_path / "cache"))
        assert isinstance(data.features["image"], datasets.Image)
        assert isinstance(data.features["mask"], datasets.Image)
        assert_same({row["image_id"]: np.asarray(row["mask"]) == 255 for row in data}, masks)
        images = photographs(run)
        for row in data:
            np.testing.assert_array_equal(np.asarray(row["image"]), images[row["image_id"]])
            assert set(np.unique(np.asarray(row["mask"]))) <= {0, 255}


def test_row_groups_of_large_photographs_are_small(exported, masks, monkeypatch):
    monkeypatch.setattr(hugging_face, "BYTES_PER_GROUP", 10_000)  # two photographs of 7 kB
    to = exported("hugging-face")
    tables = [pq.ParquetFile(path).metadata for path in sorted((to / "data").iterdir())]
    rows = [[t.row_group(g).num_rows for g in range(t.num_row_groups)] for t in tables]
    assert rows == [[2, 1], [2, 1], [1]]


# WebDataset


def test_tar_files_are_read_by_webdataset(exported, masks, run):
    import webdataset

    to = exported("webdataset")
    urls = [str(path) for path in sorted(to.glob("*.tar"))]
    assert len(urls) == 3
    found, images = {}, photographs(run)
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    for sample in samples:
        about = json.loads(sample["json"])
        found[about["image_id"]] = np.asarray(PIL.Image.open(io.BytesIO(sample["mask.png"]))) == 255
        photograph = PIL.Image.open(io.BytesIO(sample["png"]))
        np.testing.assert_array_equal(np.asarray(photograph), images[about["image_id"]])
    assert len(samples) == len(masks)
    assert_same(found, masks)


# All formats


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_was_stopped_goes_on_and_ends_with_the_same_bytes(run, tmp_path, form):
    once = Export(output=run, to=Folder.at(str(tmp_path / "once")), format=form)
    export_here(once)
    again = Export(output=run, to=Folder.at(str(tmp_path / "again")), format=form)
    again.claim()
    first, second, third = again.tasks(again.plan().parts)
    again.do_part(second)
    again.do_part(first)
    os.remove(tmp_path / "again" / "_export" / "part-0000000.json")  # killed just before it
    assert again.finish() == []  # a part is missing
    assert again.plan().parts == [first["part"], third["part"]]
    export_here(again)
    assert (again.plan().parts, again.plan().left) == ([], 0)
    for folder in ("once", "again"):
        shutil.rmtree(tmp_path / folder / "_export")
    names = files_below(tmp_path / "once")
    assert names
    assert files_below(tmp_path / "again") == names
    for name in names:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_a_part_whose_results_have_changed_is_exported_again(tmp_path, form, masks):
    rows = [labelled(tmp_path, f"{number}.jpg", confidence_of(masks[IDS[0]])) for number in (0, 1)]
    output = a_run(tmp_path, rows, shard=1)
    export = Export(output=output, to=Folder.at(str(tmp_path / "to")), format=form)
    export_here(export)
    before = contents(tmp_path / "to")
    changed = [labelled(tmp_path, "1.jpg", confidence_of(masks[IDS[1]]))]
    write_rows(output / "pseudo_labels", "part-0000001.parquet", changed, PSEUDO_LABELS)
    assert export.plan().parts == ["part-0000001.parquet"]
    export_here(export)
    after = contents(tmp_path / "to")
    assert after.keys() == before.keys()
    moved = {name for name in after if after[name] != before[name]}
    moved -= {"annotations.json", "_export/_finished.json"}
    assert moved
    assert all("1" in name.rpartition("/")[2] for name in moved)


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"\xff", b'{"version": 1'])
def test_a_part_whose_record_is_damaged_is_done_again(run, tmp_path, damage):
    to = tmp_path / "to"
    export = Export(output=run, to=Folder.at(str(to)), format="coco")
    export_here(export)
    before = contents(to)
    for name in ("part-0000001.json", "_finished.json"):
        (to / "_export" / name).write_bytes(damage)
    assert export.plan().parts == ["part-0000001.parquet"]
    export_here(export)
    assert contents(to) == before


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


@pytest.mark.parametrize("form", ANNOTATIONS)
def test_a_folder_of_other_files_or_of_another_export_is_refused(run, tmp_path, form):
    to = tmp_path / "to"
    to.mkdir()
    (to / "mine.txt").write_text("precious")
    export = Export(output=run, to=Folder.at(str(to)), format=form)
    with pytest.raises(SettingsError, match=r"holds files that are not of this export.*mine\.txt"):
        export_here(export)
    os.remove(to / "mine.txt")
    export_here(export)
    other = Export(output=run, to=Folder.at(str(to)), format=form, settings=Settings(threshold=0.9))
    with pytest.raises(SettingsError, match=r"threshold is 0\.5 in that run and 0\.9 in this one"):
        export_here(other)


def test_another_export_that_is_replaced_leaves_no_parts_behind(run, tmp_path):
    to = Folder.at(str(tmp_path / "to"))
    export_here(Export(output=run, to=to, format="webdataset"))
    small = a_run(tmp_path, [labelled(tmp_path, "one.jpg")])
    export_here(Export(output=small, to=to, format="hugging-face", overwrite=True))
    found = [name for name in files_below(tmp_path / "to") if not name.startswith("_export")]
    assert found == ["README.md", "data/train-0000000.parquet"]


def test_what_the_network_finds_empty_has_no_objects(tmp_path):
    rows = [labelled(tmp_path, f"{number}.jpg") for number in (0, 1)]
    output = a_run(tmp_path, rows)
    write_predictions(output, [predicted(rows[0], foreground_found=False), predicted(rows[1])])
    to = Folder.at(str(tmp_path / "to"))
    export = Export(output=output, to=to, format="coco", stage="predictions")
    export_here(export)
    coco, _ = coco_masks(tmp_path / "to" / "annotations.json")
    assert coco.imgToAnns[1] == []
    assert coco.imgToAnns[2]
    assert export.summary().nothing_found == 1


@pytest.mark.parametrize("form", ["yolo", "hugging-face", "webdataset"])
def test_photographs_that_are_lost_are_counted(tmp_path, form):
    rows = [labelled(tmp_path, f"{name}.jpg") for name in ("same", "changed", "gone")]
    output = a_run(tmp_path, rows)
    with open(rows[1]["uri"], "ab") as file:
        file.write(b"more")
    os.remove(rows[2]["uri"])
    export = Export(output=output, to=Folder.at(str(tmp_path / "to")), format=form)
    export_here(export)
    assert list(export.summary().lines("to", "image")) == [
        "1 image in to; 2 images left out: 1 photograph is gone, 1 photograph has changed"
    ]


def test_a_photograph_is_never_written_over(tmp_path):
    row = labelled(tmp_path, "cat.jpg")
    photos = tmp_path / "yolo" / "images"
    photos.mkdir(parents=True)
    os.rename(row["uri"], photos / "cat.png")
    row["uri"] = str(photos / "cat.png")
    before = (photos / "cat.png").read_bytes()
    to = Folder.at(str(tmp_path / "yolo"))
    export = Export(output=a_run(tmp_path, [row]), to=to, format="yolo", overwrite=True)
    with pytest.raises(SettingsError, match="would be written over"):
        export_here(export)
    assert (photos / "cat.png").read_bytes() == before


def test_a_format_that_is_not_known_is_named(run, tmp_path):
    export = Export(output=run, to=Folder.at(str(tmp_path / "to")), format="voc")
    with pytest.raises(SettingsError, match="no format 'voc' of an export; known: mask, "):
        export.claim()


# The command


def test_the_command_names_what_it_has_written(run, tmp_path, call):
    to = tmp_path / "to"
    code, out, err = call("export", run.path, "--to", to, "--format", "coco", "--smallest", 4)
    assert (code, out) == (0, f"{to}/annotations.json\n")
    assert err.splitlines()[-1] == f"7 images in {to}; 1 image left out: 1 failed in the run"
    coco, _ = coco_masks(to / "annotations.json")
    assert min(annotation["area"] for annotation in coco.anns.values()) >= 4
    again = call("export", run.path, "--to", to, "--format", "coco", "--smallest", 4)
    assert again == (0, out, err.splitlines()[-1] + "\n")  # nothing is left to do


def test_ids_are_read_once_when_an_export_begins_and_once_for_its_tasks(run, tmp_path, monkeypatch):
    read = []

    def counted(folder, part, columns):
        read.append(part)
        return read_all_rows(folder, part, columns)

    monkeypatch.setattr(exports_run, "read_all_rows", counted)
    export = Export(output=run, to=Folder.at(str(tmp_path / "to")), format="yolo")
    parts = (run / "pseudo_labels").names(".parquet")
    export.claim()
    assert sorted(read) == parts
    tasks = export.tasks(parts)
    assert sorted(read) == sorted(2 * parts)
    kept = {name for task in tasks for name in json.loads(task["keep_extension"])}
    assert kept == {"dog.jpg", "dog.png"}


def test_an_image_that_has_no_place_is_named_and_the_exit_code_is_1(tmp_path, call):
    rows = [labelled(tmp_path, "a\x01.jpg"), labelled(tmp_path, "b.jpg")]
    output, to = a_run(tmp_path, rows), tmp_path / "to"
    code, out, err = call("export", output.path, "--to", to, "--format", "cvat")
    assert (code, out) == (1, f"{to}/annotations.xml\n")
    assert "not written: a\\x01.jpg: its id holds '\\x01', which XML cannot" in err
    assert len((to / "annotations.xml").read_text().split("<image ")) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "coco", "--what", "mask"], "--what and --matting choose a picture"),
        (["--format", "yolo", "--matting"], "--what and --matting choose a picture"),
        (["--smallest", 2], "--smallest and --url-prefix are of annotation files"),
        (["--url-prefix", "http://x/"], "--smallest and --url-prefix are of annotation files"),
    ],
)
def test_options_of_other_formats_are_refused(run, tmp_path, call, words, said):
    code, _, err = call("export", run.path, "--to", tmp_path / "to", *words)
    assert code == 2
    assert said in err
    assert not (tmp_path / "to").exists()
