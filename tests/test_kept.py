"""Runs that keep only some of the large columns, and what still can be done with them."""

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.dataset import dataset

from label_runs import stored
from saff import config, semantic
from saff.cluster import LabelPart, describe_run
from saff.cluster.training import train_network
from saff.config import Training
from saff.errors import SettingsError, StorageError
from saff.evaluation import evaluate
from saff.images import read
from saff.kept import BY_DEFAULT, Large, check_kept, read_kept, without_others
from saff.labeling import label_image, load_models
from saff.manifests import extend_manifest
from saff.picture_export import export_pictures
from saff.report.stored import write_report
from saff.runs import claim, is_claimed
from saff.shards import PSEUDO_LABELS, read_rows, with_embedding, write_rows
from saff.sources import list_images
from saff.storage import Folder
from saff.verification import verify

MASK = frozenset([Large.PSEUDO_LABEL])
LARGE = [str(column) for column in BY_DEFAULT]


@pytest.fixture(scope="module")
def masks_only(corpus, small, tmp_path_factory):
    """The finished run again, of which only the masks are kept."""
    output = Folder.at(str(tmp_path_factory.mktemp("kept") / "run"))
    claim(output, describe_run(str(corpus), small, MASK))
    extend_manifest(output, list_images(str(corpus)))
    for name in (output / "manifest").names(".parquet"):
        LabelPart(output, small, kept=MASK)({"part": name})
    return output


def test_rows_are_those_of_a_whole_run_but_for_what_is_left_out(masks_only, finished):
    whole, rows = stored(finished.path), stored(masks_only.path)
    assert rows.keys() == whole.keys()
    for image_id, row in rows.items():
        expected = whole[image_id] | dict.fromkeys(set(LARGE) - {"pseudo_label"})
        assert row == expected
    assert any(row["pseudo_label"] for row in rows.values())


def test_masks_alone_are_less_than_a_tenth_of_the_bytes(masks_only, finished):
    def large(output):
        rows = stored(output.path).values()
        numbers = sum(4 * len(row["features"] or ()) for row in rows)  # float32
        return numbers + sum(len(row[c] or b"") for row in rows for c in LARGE if c != "features")

    assert large(masks_only) < large(finished) / 10


def test_the_run_says_what_it_keeps_and_takes_no_other(masks_only, finished, corpus, small):
    assert read_kept(masks_only) == MASK
    assert json.loads(masks_only.read("run.json"))["keep"] == ["pseudo_label"]
    assert read_kept(finished) == BY_DEFAULT
    assert "keep" not in json.loads(finished.read("run.json"))
    with pytest.raises(SettingsError, match=r"keep is \['pseudo_label'\] in that run and not set"):
        is_claimed(masks_only, describe_run(str(corpus), small))


def test_it_is_whole_and_a_mask_that_is_missing_is_not(masks_only, tmp_path):
    assert verify(masks_only).whole
    shutil.copytree(masks_only.path, tmp_path / "run")
    stage = Folder.at(str(tmp_path / "run")) / "pseudo_labels"
    name = stage.names(".parquet")[0]
    rows = [row | {"pseudo_label": None} for row in read_rows(stage, name)]
    write_rows(stage, name, rows, PSEUDO_LABELS)
    assert not verify(Folder.at(str(tmp_path / "run"))).whole


@pytest.mark.parametrize("what", ["mask", "overlay"])
def test_its_masks_are_exported_as_those_of_a_whole_run(masks_only, finished, tmp_path, what):
    for output, name in ((masks_only, "some"), (finished, "all")):
        summary = export_pictures(output, Folder.at(str(tmp_path / name)), what)
        assert (summary.written, summary.failed) == (4, 3)
    for path in (tmp_path / "all").rglob("*.png"):
        other = tmp_path / "some" / path.relative_to(tmp_path / "all")
        assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("form", ["coco", "webdataset"])
def test_its_annotations_are_those_of_a_whole_run(masks_only, finished, tmp_path, form, call):
    for output, name in ((masks_only, "some"), (finished, "all")):
        code, _, err = call("export", output.path, "--to", tmp_path / name, "--format", form)
        assert code == 0, err
    files = [path for path in (tmp_path / "all").glob("*.*") if path.is_file()]
    assert files
    for path in files:
        assert (tmp_path / "some" / path.name).read_bytes() == path.read_bytes()


def test_what_needs_more_says_so_at_once(masks_only, tmp_path):
    to = Folder.at(str(tmp_path / "to"))
    needs = {
        "confidence from 0.5 on needs the confidence": lambda: export_pictures(
            masks_only, to, "confidence"
        ),
        "mask from 0.7 on needs the confidence": lambda: export_pictures(
            masks_only, to, "mask", threshold=0.7
        ),
        "a report needs the features": lambda: write_report(masks_only),
        "an evaluation needs the confidence": lambda: evaluate(
            masks_only, str(tmp_path), "binary", "pseudo_labels"
        ),
        "a training needs the confidence": lambda: train_network(masks_only, Training()),
    }
    for said, call in needs.items():
        with pytest.raises(SettingsError, match=f"^{said} of the pseudo labels.*without --keep$"):
            call()
    assert not (tmp_path / "to").exists()


def test_a_choice_without_any_mask_is_refused(call, corpus, tmp_path):
    with pytest.raises(SettingsError, match="--keep superpixels keeps no mask; add pseudo_label"):
        check_kept([Large.SUPERPIXELS])
    assert check_kept([]) == BY_DEFAULT
    words = ["label", corpus, "--output", tmp_path / "out", "--keep", "features", "--dry-run"]
    code, _, err = call(*words)
    assert (code, "keeps no mask" in err) == (2, True)


def test_a_row_that_keeps_everything_is_the_row():
    row = {"confidence": b"1", "superpixels": b"2"}
    assert without_others(row, BY_DEFAULT) is row


# Embeddings

EMBEDDED = frozenset([Large.PSEUDO_LABEL, Large.EMBEDDING])


@pytest.fixture(scope="module")
def embedded(corpus, small, tmp_path_factory):
    """The finished run again, of which the masks and the embeddings are kept."""
    output = Folder.at(str(tmp_path_factory.mktemp("kept") / "run"))
    claim(output, describe_run(str(corpus), small, EMBEDDED))
    extend_manifest(output, list_images(str(corpus)))
    for name in (output / "manifest").names(".parquet"):
        LabelPart(output, small, kept=EMBEDDED)({"part": name})
    return output


def test_an_embedding_is_a_column_of_runs_that_keep_it_and_changes_no_other(
    embedded, masks_only, finished
):
    rows, others = stored(embedded.path), stored(masks_only.path)
    found = {image_id: row.pop("embedding") for image_id, row in rows.items()}
    assert rows == others  # which have no such column
    schema = dataset(f"{finished.path}/pseudo_labels").schema
    assert "embedding" not in schema.names  # nor is it one of the default
    for image_id, row in rows.items():
        assert (found[image_id] is None) == (row["error"] is not None)
    vectors = np.array([vector for vector in found.values() if vector is not None])
    assert vectors.shape == (4, 1280)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    table = dataset(f"{embedded.path}/pseudo_labels").to_table(columns=["embedding"])
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: halffloat>[1280]"


def test_an_embedding_is_the_root_mean_square_of_the_last_level(embedded, corpus, small):
    image = read(corpus / "chelsea ü.png")
    (level,) = load_models(small).encoder(image).levels[-1:]
    pooled = np.array([np.linalg.norm(channel) for channel in level])  # of as many cells each
    expected = pooled / np.linalg.norm(pooled)
    found = stored(embedded.path)["chelsea ü.png"]["embedding"]
    assert np.allclose(found, expected, atol=1e-3)


def test_a_mirrored_and_a_smaller_copy_are_nearer_than_any_other_image(photographs, small):
    vectors = {name: label_image(p, small).embedding for name, p in photographs.items()}
    for name, pixels in photographs.items():
        half = cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        for copy in (np.ascontiguousarray(pixels[:, ::-1]), half):
            near = {n: float(label_image(copy, small).embedding @ v) for n, v in vectors.items()}
            assert max(near, key=near.get) == name


def test_a_run_with_embeddings_is_whole_and_one_without_a_vector_is_not(embedded, tmp_path):
    assert verify(embedded).whole
    faults = {
        "embedding is missing": None,
        "embedding has the L2 norm 0.5, expected 1": [0.5] + [0.0] * 1279,
        "embedding has the L2 norm nan, expected 1": [np.nan] * 1280,
    }
    for number, (said, vector) in enumerate(faults.items()):
        shutil.copytree(embedded.path, tmp_path / str(number))
        stage = Folder.at(str(tmp_path / str(number))) / "pseudo_labels"
        for name in stage.names(".parquet"):
            rows = list(read_rows(stage, name))
            new = [row if row["error"] else row | {"embedding": vector} for row in rows]
            write_rows(stage, name, new, with_embedding(1280))
        verdict = verify(Folder.at(str(tmp_path / str(number))))
        assert not verdict.whole
        assert any(said in line for line in verdict.lines)


def test_an_embedding_of_a_run_that_keeps_none_is_a_fault(masks_only, embedded, tmp_path):
    shutil.copytree(embedded.path, tmp_path / "run")
    shutil.copy(f"{masks_only.path}/run.json", tmp_path / "run" / "run.json")
    verdict = verify(Folder.at(str(tmp_path / "run")))
    assert any("embedding is there, and its run keeps none" in line for line in verdict.lines)


def test_runs_with_and_without_embeddings_differ_in_this_column(masks_only, embedded):
    verdict = verify(embedded, masks_only)
    assert not verdict.whole
    assert any("pseudo_labels differ in embedding" in line for line in verdict.lines)


def test_failed_images_of_a_run_with_embeddings_are_tried_again(embedded, small, tmp_path):
    shutil.copytree(embedded.path, tmp_path / "run")
    output = Folder.at(str(tmp_path / "run"))
    before = stored(output.path)
    for name in (output / "pseudo_labels").names(".parquet"):
        LabelPart(output, small, kept=EMBEDDED)({"part": name})
    assert stored(output.path) == before


def test_a_column_of_another_type_is_no_embedding(embedded, tmp_path):
    other = pa.table({"image_id": ["a"], "embedding": pa.array([[1.0]], pa.list_(pa.float16()))})
    pq.write_table(other, tmp_path / "part-0000000.parquet")
    with pytest.raises(StorageError, match="column embedding is of type list<"):
        list(read_rows(Folder.at(str(tmp_path)), "part-0000000.parquet"))


def without_levels():
    """An encoder that gives class scores alone."""
    encoder = semantic.load(config.default().encoder, side=64)
    return lambda image: dataclasses.replace(encoder(image), levels=())


def test_an_encoder_without_levels_has_no_embedding(small, corpus):
    classes = {"semantic_affinity": "classes", "semantic_unary": "max_class"}
    alone = dataclasses.replace(small, encoder="test_kept:without_levels", **classes)
    with pytest.raises(SettingsError, match="gives no feature levels, so that there is no embed"):
        describe_run(str(corpus), alone, EMBEDDED)
    assert describe_run(str(corpus), alone, MASK)["keep"] == ["pseudo_label"]
