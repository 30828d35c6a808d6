"""Marks of a person, the ranking they are made from, and what honours them."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from saff.errors import SettingsError, StorageError
from saff.exports.run import Export, export_here
from saff.images import encode_png
from saff.marks import Mark, Only, add_marks, read_changes, read_marks
from saff.quality import mask_iou
from saff.ranking import rank
from saff.samples import draw, open_corpus
from saff.storage import Folder
from stored_runs import a_run, failed, files_below, labelled, predicted, write_predictions

RNG = np.random.default_rng(23)
IDS = [f"{name}.jpg" for name in "abcdef"]


def a_mask():
    return RNG.random((6, 9)) < 0.5


def with_mask(row, mask, **changes):
    return row | {"pseudo_label": encode_png(mask.astype(np.uint8))} | changes


@pytest.fixture
def run(tmp_path):
    """A run of six images and one that failed; quality falls with the letters."""
    rows = [
        with_mask(labelled(tmp_path, image_id), a_mask(), quality=1 - number / 10)
        for number, image_id in enumerate(IDS)
    ]
    return a_run(tmp_path, [*rows, failed("broken.jpg")], shard=3)


def table_of(output, stage="pseudo_labels"):
    return rank(output, stage, read_marks(output)).to_pylist()


# The ranking


def test_the_least_trustworthy_come_first_and_failures_last(run):
    table = table_of(run)
    assert [row["image_id"] for row in table] == [*reversed(IDS), "broken.jpg"]
    assert [row["trust"] for row in table[:6]] == [row["quality"] for row in table[:6]]
    assert (table[-1]["error_kind"], table[-1]["trust"]) == ("truncated", None)


def test_disagreement_of_label_and_network_lowers_trust(tmp_path):
    masks = {image_id: (a_mask(), a_mask()) for image_id in IDS}
    rows = [with_mask(labelled(tmp_path, i), masks[i][0], quality=0.5) for i in IDS]
    output = a_run(tmp_path, rows)
    write_predictions(
        output, [with_mask(predicted(row), masks[row["image_id"]][1], quality=0.8) for row in rows]
    )
    agreements = {image_id: mask_iou(*pair) for image_id, pair in masks.items()}
    for stage, quality in (("pseudo_labels", 0.5), ("predictions", 0.8)):
        table = table_of(output, stage)
        assert [row["image_id"] for row in table] == sorted(IDS, key=agreements.get)
        for row in table:
            assert row["agreement"] == agreements[row["image_id"]]
            assert row["trust"] == quality * row["agreement"]


def test_shapes_are_measured(tmp_path):
    mask = np.zeros((6, 9), bool)
    mask[:2, :3], mask[5, 8] = True, True
    rows = [
        with_mask(labelled(tmp_path, "a.jpg"), mask, quality=0.5),
        with_mask(labelled(tmp_path, "b.jpg"), np.zeros((6, 9), bool), quality=0.6),
    ]
    first, second = table_of(a_run(tmp_path, rows))
    assert (first["components"], first["largest_component"]) == (2, 6 / 54)
    assert first["foreground_share"] == 7 / 54
    assert (second["components"], second["largest_component"], second["trust"]) == (0, 0, 0.6)


def test_a_mask_of_another_size_is_named(tmp_path):
    row = with_mask(labelled(tmp_path, "a.jpg"), np.zeros((5, 9), bool), quality=0.5)
    with pytest.raises(StorageError, match=r"the mask of a\.jpg is not of the size of its image"):
        table_of(a_run(tmp_path, [row]))


# Marks


def test_later_marks_replace_earlier_ones(run):
    assert read_marks(run) == {}
    add_marks(run, {"a.jpg": Mark.ACCEPTED, "b.jpg": Mark.REJECTED}, IDS)
    add_marks(run, {"a.jpg": Mark.REJECTED, "b.jpg": None, "c.jpg": Mark.ACCEPTED}, IDS)
    assert read_marks(run) == {"a.jpg": Mark.REJECTED, "c.jpg": Mark.ACCEPTED}
    with pytest.raises(SettingsError, match=r"1 of the marked images are none of .*, 'x\.jpg'"):
        add_marks(run, {"x.jpg": Mark.ACCEPTED, "d.jpg": Mark.ACCEPTED}, IDS)
    assert "d.jpg" not in read_marks(run)


def test_ids_with_quotes_and_lines_are_kept(run):
    odd = 'a "b", c\n ü.jpg'
    add_marks(run, {odd: Mark.REJECTED}, [odd])
    assert read_marks(run) == {odd: Mark.REJECTED}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"image_id\na\n", "has no column mark"),
        (b"image_id,mark\na,fine\n", "has in line 2 what cannot be read"),
        (b"image_id,mark\n\xff,accepted\n", "is not UTF-8"),
        (b'image_id,mark\n"a,accepted\n', "what cannot be read .unexpected end of data"),
    ],
)
def test_a_list_that_cannot_be_meant_is_named(run, data, said):
    with pytest.raises(SettingsError, match=said):
        read_changes(data, "list.csv")
    (run / "review").write("marks.csv", data)
    with pytest.raises(StorageError, match="is damaged"):
        read_marks(run)


def test_a_list_may_say_nothing_of_an_image_or_take_a_mark_away():
    data = b"\xef\xbb\xbfmark,trust,image_id\naccepted,0.1,a\n,0.2,b\nUnmarked,0.3,c\n"
    assert read_changes(data, "list.csv") == {"a": Mark.ACCEPTED, "c": None}


def test_the_command_takes_the_ranking_back_with_marks(run, call, tmp_path):
    code, out, err = call("review", run.path, "--reject", "a.jpg", "--show", 2)
    assert (code, out.splitlines()) == (
        0,
        [f"{run.path}/review/ranking.parquet", f"{run.path}/review/ranking.csv"],
    )
    assert [line.split()[1] for line in err.splitlines()[:2]] == ["f.jpg", "e.jpg"]
    assert err.splitlines()[-1] == "7 images: 0 accepted, 1 rejected, 1 failed"
    with open(f"{run.path}/review/ranking.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["mark"] for line in lines if line["image_id"] == "a.jpg"] == ["rejected"]
    for line in lines:
        line["mark"] = {"f.jpg": "accepted", "a.jpg": "unmarked"}.get(line["image_id"], "")
    with open(tmp_path / "back.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    assert call("review", run.path, "--marks", tmp_path / "back.csv")[0] == 0
    assert read_marks(run) == {"f.jpg": Mark.ACCEPTED}
    table = pq.read_table(f"{run.path}/review/ranking.parquet").to_pylist()
    assert {row["image_id"]: row["mark"] for row in table if row["mark"]} == {"f.jpg": "accepted"}


def test_an_image_is_marked_once_by_one_command(run, call):
    code, _, err = call("review", run.path, "--accept", "a.jpg", "--reject", "a.jpg")
    assert (code, "'a.jpg' is accepted and rejected" in err) == (2, True)
    code, _, err = call("review", run.path, "--marks", "nowhere.csv")
    assert (code, "no list of marks at nowhere.csv" in err) == (2, True)


# What honours them


def exported(to, form):
    if form == "coco":
        content = json.loads((to / "annotations.json").read_text())
        return [image["file_name"] for image in content["images"]]
    names = {"mask": "*.png", "yolo": "labels/*.txt"}[form]
    return [f"{path.stem}.jpg" for path in sorted(to.glob(names))]


@pytest.mark.parametrize("form", ["coco", "yolo", "mask"])
def test_exports_follow_the_marks_and_their_changes(run, tmp_path, form):
    add_marks(run, {"a.jpg": Mark.ACCEPTED, "b.jpg": Mark.REJECTED, "f.jpg": Mark.ACCEPTED}, IDS)
    to = tmp_path / "to"
    export = Export(output=run, to=Folder.at(str(to)), format=form, only=Only.ACCEPTED)
    export_here(export)
    assert exported(to, form) == ["a.jpg", "f.jpg"]
    summary = export.summary()
    assert (summary.written, summary.not_chosen, summary.failed) == (2, 4, 1)
    assert "4 not chosen by their marks" in list(summary.lines("to"))[-1]
    add_marks(run, {"a.jpg": Mark.REJECTED, "c.jpg": Mark.ACCEPTED}, IDS)
    export_here(export)
    assert exported(to, form) == ["c.jpg", "f.jpg"]
    other = tmp_path / "other"
    export = Export(output=run, to=Folder.at(str(other)), format=form, only=Only.NOT_REJECTED)
    export_here(export)
    assert exported(other, form) == ["c.jpg", "d.jpg", "e.jpg", "f.jpg"]


def test_pictures_follow_the_marks(run, call, tmp_path):
    add_marks(run, {"a.jpg": Mark.ACCEPTED}, IDS)
    code, _, err = call("export", run.path, "--to", tmp_path / "to", "--only", "accepted")
    assert (code, files_below(tmp_path / "to")) == (0, ["a.png"])
    assert "5 not chosen by their marks" in err


def test_a_training_draws_no_image_that_is_rejected(run):
    corpus = open_corpus(run / "pseudo_labels")
    left = corpus.without(frozenset(["a.jpg", "e.jpg"]))
    assert (len(left), left.parts) == (4, corpus.parts)
    drawn = [left.parts.index(part) * 3 + row for part, row in (draw(left, 7, n) for n in range(4))]
    assert sorted(IDS[number] for number in drawn) == ["b.jpg", "c.jpg", "d.jpg", "f.jpg"]
    assert corpus.without(frozenset()).counts == corpus.counts
    only_last = left.within("1").without(frozenset(["d.jpg", "e.jpg"]))
    assert [draw(only_last, 0, n)[1] for n in range(len(only_last))] == [2]
    with pytest.raises(SettingsError, match=r"all images of .* are rejected"):
        corpus.without(frozenset(IDS))
