import os
import re
import stat
import subprocess
import sys

import numpy as np
import pytest

from saff import images
from saff.errors import SettingsError, StorageError
from saff.images import decode_png, encode_png
from saff.picture_export import LISTED, ExportSummary, PictureNames, export_pictures
from saff.pictures import picture
from saff.storage import Folder
from stored_runs import (
    SHAPE,
    STAGE,
    a_run,
    failed,
    files_below,
    labelled,
    maps_of,
    opened,
    predicted,
    write_predictions,
)


def export(output, to, what="mask", stage=STAGE, **options):
    return export_pictures(output, Folder.at(str(to)), what, stage, **options)


def counts_of(summary):
    """Files written and images left out."""
    return summary.written, summary.left_out


def contents_of(folder):
    files = (name for name in files_below(folder) if (folder / name).is_file())
    return {name: (folder / name).read_bytes() for name in files}


@pytest.mark.parametrize("what", ["mask", "confidence", "overlay", "cutout"])
def test_every_labelled_image_is_a_file_of_its_size(finished, photographs, tmp_path, what):
    assert counts_of(export(finished, tmp_path, what)) == (4, 3)
    assert files_below(tmp_path) == [
        "astronaut ü.png",
        "chelsea ü.png",
        "nested/coffee ü.png",
        "rocket ü.png",
    ]
    for image_id, confidence in maps_of(finished).items():
        name = image_id.split("/")[-1].removesuffix(" ü.png")
        drawn = opened(tmp_path / image_id)
        assert drawn.shape[:2] == photographs[name].shape[:2]
        np.testing.assert_array_equal(drawn, picture(what, confidence, photographs[name]))
    if what == "mask":
        assert set(np.unique(drawn)) == {0, 255}


def test_images_that_share_a_stem_keep_their_extension(tmp_path):
    files = {
        "a.jpg": "a.jpg.png",
        "a.png": "a.png.png",
        "a.jpg.gif": "a.jpg.gif.png",  # its stem is the name of another
        "b.tar.jpg": "b.tar.png",
        "b.jpg": "b.png",
        "c": "c.png",
        "c.jpg": "c.jpg.png",
        "d/a.jpg": "d/a.png",
        "d.e/a.jpg": "d.e/a.png",
        "d.e/f": "d.e/f.png",
    }
    rows = [labelled(tmp_path, image_id) for image_id in files]
    output = a_run(tmp_path, rows)
    assert counts_of(export(output, tmp_path / "to", "confidence")) == (len(files), 0)
    assert files_below(tmp_path / "to") == sorted(files.values())
    for row in rows:
        drawn = opened(tmp_path / "to" / files[row["image_id"]])
        np.testing.assert_array_equal(drawn, decode_png(row["confidence"]))


@pytest.mark.parametrize(
    "image_id", ["../x.jpg", "/abs.jpg", "a/../../x.jpg", "a//b.jpg", "..", "."]
)
def test_ids_that_lead_outside_are_left_out(tmp_path, image_id):
    rows = [labelled(tmp_path, image_id), labelled(tmp_path, "fine.jpg")]
    output = a_run(tmp_path, rows)
    before = files_below(tmp_path)
    summary = export(output, tmp_path / "to" / "here", "mask")
    assert counts_of(summary) == (1, 1)
    assert summary.reasons == [
        (image_id, "its id is no relative path without '..' and empty parts")
    ]
    assert not summary.complete
    assert sorted({*files_below(tmp_path)} - {*before}) == ["to/here/fine.png"]


def test_a_link_inside_the_folder_is_followed(tmp_path):
    (tmp_path / "to" / "real").mkdir(parents=True)
    (tmp_path / "to" / "linked").symlink_to(tmp_path / "to" / "real")
    (tmp_path / "also").symlink_to(tmp_path / "to")  # the folder itself may be reached by a link
    output = a_run(tmp_path, [labelled(tmp_path, "linked/a.jpg")])
    assert counts_of(export(output, tmp_path / "also", "mask")) == (1, 0)
    assert (tmp_path / "to" / "real" / "a.png").exists()


@pytest.mark.parametrize("what", ["mask", "cutout"])
def test_images_above_the_default_limit_are_drawn(tmp_path, monkeypatch, what):
    monkeypatch.setattr(images, "DEFAULT_MAX_PIXELS", 10)
    monkeypatch.setitem(images.decode.__kwdefaults__, "max_pixels", 10)
    monkeypatch.setitem(images.decode_png.__kwdefaults__, "max_pixels", 10)
    output = a_run(tmp_path, [labelled(tmp_path, "large.jpg")])  # a run may raise max_pixels
    assert counts_of(export(output, tmp_path / "to", what)) == (1, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(finished, tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(StorageError, match="no right to write there"):
        export(finished, tmp_path, "mask")
    tmp_path.chmod(0o700)


def test_what_is_no_run_or_has_no_results_is_named(finished, tmp_path):
    with pytest.raises(SettingsError, match=r"is not the output of a run: it has no run\.json"):
        export(Folder.at(str(tmp_path)), tmp_path / "to")
    with pytest.raises(SettingsError, match="has no predictions yet; run that job first"):
        export(finished, tmp_path / "to", "mask", "predictions")
    assert not (tmp_path / "to").exists()


# Files that are there


def test_the_same_export_again_is_no_conflict(finished, tmp_path):
    export(finished, tmp_path, "confidence")
    first = contents_of(tmp_path)
    os.remove(tmp_path / "chelsea ü.png")  # as if the first had been interrupted
    summary = export(finished, tmp_path, "confidence")
    assert (summary.written, summary.complete) == (4, True)
    assert contents_of(tmp_path) == first


def test_another_content_is_replaced_only_when_that_is_meant(finished, tmp_path):
    export(finished, tmp_path, "confidence")
    os.remove(tmp_path / "chelsea ü.png")
    first = contents_of(tmp_path)
    summary = export(finished, tmp_path, "mask")
    assert (summary.written, summary.not_written, summary.complete) == (1, 3, False)
    reason = "a file with another content exists; --overwrite replaces it"
    assert {why for _, why in summary.reasons} == {reason}
    assert first.items() <= contents_of(tmp_path).items()
    summary = export(finished, tmp_path, "mask", overwrite=True)
    assert (summary.written, summary.complete) == (4, True)
    for name in files_below(tmp_path):
        assert set(np.unique(opened(tmp_path / name))) == {0, 255}


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_images_that_reach_one_file_do_not_replace_each_other(tmp_path, overwrite):
    (tmp_path / "to" / "real").mkdir(parents=True)
    (tmp_path / "to" / "alias").symlink_to("real")  # as two names do where case does not count
    rows = [labelled(tmp_path, image_id) for image_id in ("alias/a.jpg", "b.jpg", "real/a.jpg")]
    if overwrite:
        (tmp_path / "to" / "real" / "a.png").write_bytes(b"an earlier export")
    summary = export(a_run(tmp_path, rows), tmp_path / "to", "confidence", overwrite=overwrite)
    assert (summary.written, [name for name, _ in summary.reasons]) == (2, ["real/a.jpg"])
    drawn = opened(tmp_path / "to" / "real" / "a.png")
    np.testing.assert_array_equal(drawn, decode_png(rows[0]["confidence"]))


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_draft_is_left_and_every_file_appears_whole(finished, tmp_path, overwrite):
    """What the operating system is told: every file is synced before it gets its name."""
    if not os.path.exists("/usr/bin/strace"):
        pytest.skip("no strace here (Debian: strace)")
    code = (
        "import sys; from saff.picture_export import export_pictures as e; "
        "from saff.storage import Folder as F; "
        f"e(F.at(sys.argv[1]), F.at(sys.argv[2]), 'mask', overwrite={overwrite})"
    )
    trace, to = tmp_path / "trace", tmp_path / "to"
    watched = "trace=fsync,fdatasync,rename,renameat,renameat2,link,linkat,openat"
    command = ["strace", "-f", "-y", "-e", watched, "-o", trace]
    subprocess.run([*command, sys.executable, "-c", code, finished.path, to], check=True)
    calls = [line for line in trace.read_text(errors="replace").splitlines() if str(to) in line]
    assert not [c for c in calls if "openat" in c and "O_WRONLY" in c and ".tmp" not in c]
    named = [n for n, c in enumerate(calls) if re.search(r"\b(rename|link)(at2?)?\(", c)]
    assert len(named) == 4
    for place in named:
        draft = re.search(r"/([.0-9a-f]+\.tmp)", calls[place])[1]
        assert any("sync(" in c and draft in c for c in calls[:place])
    folders = [n for n, c in enumerate(calls) if "sync(" in c and ".tmp" not in c]
    assert len(folders) == len({os.path.dirname(name) for name in files_below(to)})  # each once
    assert folders[0] > named[-1]
    assert not [name for name in files_below(to) if name.endswith(".tmp")]


# Names that cannot be


def test_files_beside_a_photograph_do_not_change_its_name(tmp_path):
    rows = [labelled(tmp_path, "a.jpg"), failed("a.json"), failed("a.xmp"), failed("a")]
    rows += [labelled(tmp_path, "b.tar.gz.jpg"), failed("b.tar.gz.txt"), failed("a.png/x.txt")]
    summary = export(a_run(tmp_path, rows), tmp_path / "to")
    assert files_below(tmp_path / "to") == ["a.png", "b.tar.gz.png"]
    assert (summary.failed, summary.complete) == (5, True)
    assert list(summary.lines("to")) == ["2 files in to; 5 images left out: 5 failed in the run"]


def test_an_image_named_as_a_folder_of_others_keeps_its_extension(tmp_path):
    rows = [labelled(tmp_path, image_id) for image_id in ("frames.jpg", "frames.png/001.jpg")]
    assert counts_of(export(a_run(tmp_path, rows), tmp_path / "to")) == (2, 0)
    assert files_below(tmp_path / "to") == ["frames.jpg.png", "frames.png/001.png"]


def test_names_and_folders_of_all_depths_are_apart():
    ids = ["x.jpg", "x.png/y.png/z.jpg", "x.png/y.gif", "x.jpg.png/a.jpg", "q.png/r"]
    names = PictureNames(ids)
    assert [names.name(i) for i in ids] == [
        "x.jpg.png",  # is a folder, too: no name is left, and its file is refused when it comes
        "x.png/y.png/z.png",
        "x.png/y.gif.png",
        "x.jpg.png/a.png",
        "q.png/r.png",
    ]


@pytest.mark.parametrize("overwrite", [False, True])
def test_one_name_does_not_stop_the_rest(tmp_path, overwrite):
    to = tmp_path / "to"
    to.mkdir()
    (to / "folder.png").mkdir()
    (to / "file").write_bytes(b"a file where a folder should be")
    (to / "link.png").symlink_to(tmp_path / "precious.png")
    (to / "out").symlink_to(tmp_path)
    (to / "circle").symlink_to("circle")
    (tmp_path / "precious.png").write_bytes(b"precious")
    bad = {
        252 * "n" + ".jp": "File name too long",  # only with .png
        "folder.jpg": "a folder is in its place",
        "file/a.jpg": "a file or a broken link is in the place of its folder",
        "file/deep/er/a.jpg": "a file or a broken link is in the place of its folder",
        "link.jpg": "a link is in its place; remove the link",
        "out/new.jpg": "a link in its folder leads outside; remove the link",
        "out/deep/new.jpg": "a link in its folder leads outside; remove the link",
        "circle/a.jpg": "a file or a broken link is in the place of its folder",
        250 * "d" + "/" + 300 * "e" + "/a.jpg": "File name too long",
    }
    rows = [labelled(tmp_path, image_id) for image_id in ("a.jpg", *bad, "z.jpg")]
    output = a_run(tmp_path, rows)
    before = contents_of(tmp_path)
    summary = export(output, to, overwrite=overwrite)
    assert dict(summary.reasons) == bad
    assert (summary.written, summary.not_written, summary.complete) == (2, len(bad), False)
    after = contents_of(tmp_path)
    assert {*after} - {*before} == {"to/a.png", "to/z.png"}
    assert before.items() <= after.items()


def test_a_damaged_map_does_not_stop_the_rest(tmp_path):
    rows = [labelled(tmp_path, f"{n}.jpg") for n in range(3)]
    rows[1]["confidence"] = rows[1]["confidence"][:50]
    summary = export(a_run(tmp_path, rows), tmp_path / "to")
    assert files_below(tmp_path / "to") == ["0.png", "2.png"]
    ((image_id, reason),) = summary.reasons
    assert (image_id, summary.complete) == ("1.jpg", False)
    assert "the confidence of 1.jpg is damaged" in reason


def test_a_row_of_a_shape_that_is_not_that_of_its_map_does_not_stop_the_rest(tmp_path):
    rows = [labelled(tmp_path, f"{n}.jpg") for n in range(2)]
    rows[0]["confidence"] = encode_png(np.zeros((SHAPE[1], SHAPE[0]), np.uint8))
    summary = export(a_run(tmp_path, rows), tmp_path / "to", "overlay")
    assert files_below(tmp_path / "to") == ["1.png"]
    assert "needs the image, in the size of its confidence map" in summary.reasons[0][1]


def test_an_image_of_a_million_pixels_a_side_is_a_whole_file(tmp_path):
    row = labelled(tmp_path, "wide.jpg", np.zeros((1, 1_000_001), np.uint8))
    assert counts_of(export(a_run(tmp_path, [row]), tmp_path / "to", "cutout")) == (1, 0)
    assert opened(tmp_path / "to" / "wide.png").shape == (1, 1_000_001, 4)


def test_only_the_first_that_cannot_be_written_are_named():
    summary = ExportSummary(written=1_000, failed=3)
    for number in range(LISTED + 5):
        summary.refuse(f"{number}.jpg", "why")
    *names, rest, last = summary.lines("to")
    assert names == [f"not written: {n}.jpg: why" for n in range(LISTED)]
    assert rest == "not written: 5 more"
    assert last == (
        f"1,000 files in to; {LISTED + 8} images left out: 3 failed in the run, "
        f"{LISTED + 5} could not be written"
    )


# Photographs that are lost


@pytest.mark.parametrize("what", ["overlay", "cutout"])
def test_an_image_that_changed_or_went_is_left_out_of_pictures_of_it(tmp_path, what):
    rows = [labelled(tmp_path, f"{name}.jpg") for name in ("same", "changed", "gone", "folder")]
    output = a_run(tmp_path, [*rows, failed("bad.jpg")])
    _, changed, gone, folder = ((tmp_path / row["uri"]) for row in rows)
    changed.write_bytes(encode_png(np.zeros((*SHAPE, 3), np.uint8)))
    gone.unlink()
    folder.unlink()
    folder.mkdir()
    summary = export(output, tmp_path / "to", what)
    assert files_below(tmp_path / "to") == ["same.png"]
    assert list(summary.lines("to")) == [
        "1 file in to; 4 images left out: 1 failed in the run, 2 photographs are gone, "
        "1 photograph has changed"
    ]
    assert summary.complete  # the same command would find no more
    assert counts_of(export(output, tmp_path / "masks")) == (4, 1)  # these need no image


def test_a_server_that_is_down_is_counted_and_the_export_not_complete(tmp_path):
    rows = [labelled(tmp_path, "a.jpg"), labelled(tmp_path, "b.jpg")]
    rows[0]["uri"] = "http://127.0.0.1:9/a.jpg"
    summary = export(a_run(tmp_path, rows), tmp_path / "to", "overlay")
    assert files_below(tmp_path / "to") == ["b.png"]
    assert (summary.photographs.unreachable, summary.complete) == (1, False)


# Inputs: test_overwriting.py has every way to name them


def test_nothing_is_written_where_a_photograph_would_be_lost(tmp_path):
    photos = tmp_path / "photos"
    rows = [labelled(tmp_path, image_id) for image_id in ("dog.jpg", "cat.png", "bird.jpg")]
    for row in rows:
        os.rename(row["uri"], photos / row["image_id"])
        row["uri"] = str(photos / row["image_id"])
    output = a_run(photos, rows)  # inside the images
    before = contents_of(tmp_path)
    for overwrite in (False, True):
        for to in (photos, photos / "run" / "..", photos / "run"):
            if to.name != "run":
                with pytest.raises(SettingsError, match=r"cat\.png would be written over .*cat\.p"):
                    export(output, to, overwrite=overwrite)
    with pytest.raises(SettingsError, match="lies among the results of the run itself"):
        export(output, photos / "run" / "pseudo_labels")
    assert contents_of(tmp_path) == before
    assert not [p for p in photos.rglob("*.png") if p.is_dir()]


def test_predictions_of_a_run_do_not_replace_its_photographs(tmp_path):
    row = labelled(tmp_path, "cat.png")
    os.rename(row["uri"], tmp_path / "photos" / "cat.png")
    row["uri"] = str(tmp_path / "photos" / "cat.png")
    output = a_run(tmp_path, [row])
    write_predictions(output, [predicted(row)])
    with pytest.raises(SettingsError, match="would be written over"):
        export(output, tmp_path / "photos", "mask", "predictions")


def test_images_in_which_nothing_was_found_have_an_empty_mask_and_are_counted(tmp_path):
    rows = [labelled(tmp_path, f"{name}.png") for name in "abc"]
    output, full = a_run(tmp_path, rows), encode_png(np.full(SHAPE, 255, np.uint8))
    found = [True, False, None]  # the last one has failed
    answers = [
        predicted(r, confidence=full, foreground_found=f) for r, f in zip(rows, found, strict=True)
    ]
    answers[2] |= {"confidence": None, "error": "no", "error_kind": "corrupt"}
    write_predictions(output, answers)
    summary = export(output, tmp_path / "masks", "mask", "predictions")
    assert [opened(tmp_path / "masks" / f"{n}.png").max() for n in "ab"] == [255, 0]
    assert [*summary.lines("masks")] == [
        "no foreground found in 1 image: the mask is empty",
        "2 files in masks; 1 image left out: 1 failed in the run",
    ]


# Places


def test_a_folder_that_cannot_be_written_is_named(finished, tmp_path):
    (tmp_path / "file").touch()
    for to in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match=f"no access to {to}: "):
            export(finished, to)


@pytest.mark.s3
def test_pictures_are_written_to_an_object_store(finished, photographs, bucket, s3_other):
    to = f"{bucket}/a/masks"
    assert counts_of(export(finished, to, "confidence")) == (4, 3)
    names = {path.removeprefix(to[5:] + "/") for path in s3_other.find(to)}
    expected = maps_of(finished)
    assert names == {*expected}
    for name in names:
        np.testing.assert_array_equal(decode_png(s3_other.cat_file(f"{to}/{name}")), expected[name])
    assert counts_of(export(finished, to, "confidence")) == (4, 3)  # the same again
    summary = export(finished, to, "mask")
    assert (summary.written, summary.not_written) == (0, 4)
    assert "--overwrite replaces it" in summary.reasons[0][1]
    assert counts_of(export(finished, to, "mask", overwrite=True)) == (4, 3)
    assert set(np.unique(decode_png(s3_other.cat_file(f"{to}/chelsea ü.png")))) == {0, 255}


@pytest.mark.s3
def test_photographs_in_an_object_store_are_not_written_over(tmp_path, bucket, s3_other):
    row = labelled(tmp_path, "cat.png")
    s3_other.put_file(row["uri"], f"{bucket}/photos/cat.png")
    output = a_run(tmp_path, [row | {"uri": f"{bucket}/photos/cat.png"}])
    before = s3_other.cat_file(f"{bucket}/photos/cat.png")
    with pytest.raises(SettingsError, match="would be written over s3://"):
        export(output, f"{bucket}/photos", overwrite=True)
    assert s3_other.cat_file(f"{bucket}/photos/cat.png") == before


@pytest.mark.s3
def test_a_store_that_refuses_everything_ends_the_export(finished, s3_user, bucket):
    with pytest.raises(StorageError, match="no access to s3://no-such-bucket-at-all/to"):
        export(finished, "s3://no-such-bucket-at-all/to")
    s3_user(AWS_SECRET_ACCESS_KEY="wrong")
    with pytest.raises(StorageError, match=rf"no access to {bucket}/to.*check the credentials"):
        export(finished, f"{bucket}/to")


@pytest.mark.s3
def test_a_key_that_is_too_long_does_not_stop_the_rest(tmp_path, bucket, s3_other):
    long = f"{'n' * 252}.jp"  # this server keeps its objects as files
    rows = [labelled(tmp_path, image_id) for image_id in (long, "a.jpg", "b.jpg")]
    summary = export(a_run(tmp_path, rows), f"{bucket}/to")
    assert [image_id for image_id, _ in summary.reasons] == [long]
    assert (summary.written, summary.complete) == (2, False)
    for name in ("a.png", "b.png"):
        assert decode_png(s3_other.cat_file(f"{bucket}/to/{name}")).shape == SHAPE
