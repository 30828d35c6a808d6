"""Runs that keep only some of the large columns, and what still can be done with them."""

import json
import shutil

import pytest

from label_runs import stored
from saff.cluster import LabelPart, describe_run
from saff.cluster.training import train_network
from saff.config import Training
from saff.errors import SettingsError
from saff.evaluation import evaluate
from saff.kept import ALL, Large, check_kept, read_kept, without_others
from saff.manifests import extend_manifest
from saff.picture_export import export_pictures
from saff.report.stored import write_report
from saff.runs import claim, is_claimed
from saff.shards import PSEUDO_LABELS, read_rows, write_rows
from saff.sources import list_images
from saff.storage import Folder
from saff.verification import verify

MASK = frozenset([Large.PSEUDO_LABEL])
LARGE = [str(column) for column in Large]


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
    assert read_kept(finished) == ALL
    assert "keep" not in json.loads(finished.read("run.json"))
    with pytest.raises(SettingsError, match=r"keep is \['pseudo_label'\] in that run and None"):
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
    assert check_kept([]) == ALL
    words = ["label", corpus, "--output", tmp_path / "out", "--keep", "features", "--dry-run"]
    code, _, err = call(*words)
    assert (code, "keeps no mask" in err) == (2, True)


def test_a_row_that_keeps_everything_is_the_row():
    row = {"confidence": b"1", "superpixels": b"2"}
    assert without_others(row, ALL) is row
