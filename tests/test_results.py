import csv
import hashlib
import html as markup
import json
import os
import re
import stat

import numpy as np
import PIL.Image
import pytest

from saff import images, metrics
from saff.errors import SettingsError, StorageError
from saff.evaluation import evaluate
from saff.images import decode_png, encode_png
from saff.results import export, export_path, picture, to_png, write_report
from saff.rows import original
from saff.runs import claim, stage_digest
from saff.shards import PREDICTIONS, PSEUDO_LABELS, read_all_rows, read_rows, write_rows
from saff.storage import Folder

STAGE = "pseudo_labels"
RNG = np.random.default_rng(3)
SHAPE = (6, 9)


def labelled(folder, image_id, confidence=None, content=None, **changes):
    """A row as a run writes it, for an image that is there."""
    shape = SHAPE if confidence is None else confidence.shape
    if content is None:
        content = encode_png(RNG.integers(0, 256, (*shape, 3), np.uint8))
    path = folder / "photos" / hashlib.sha256(image_id.encode()).hexdigest()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    if confidence is None:
        confidence = RNG.integers(0, 256, shape, np.uint8)
    row = dict.fromkeys(PSEUDO_LABELS.names)
    row |= {"image_id": image_id, "uri": str(path), "sha256": hashlib.sha256(content).hexdigest()}
    row |= {"height": shape[0], "width": shape[1], "confidence": encode_png(confidence)}
    row |= {"superpixels": encode_png(np.zeros(shape, np.uint16)), "features": [0.5] * 4}
    row |= {"weights": [0.25] * 5, "seeds_foreground": 3, "seeds_background": 4, "fallback": ""}
    return row | changes


def failed(image_id, kind="truncated", error="image is a truncated JPEG file"):
    row = dict.fromkeys(PSEUDO_LABELS.names)
    return row | {"image_id": image_id, "uri": "/x", "error": error, "error_kind": kind}


def a_run(folder, rows, shard=4):
    """A finished run of these rows, ``shard`` of them in a shard."""
    output = Folder.at(str(folder / "run"))
    claim(output, {"saff": "0.2.0", "config": {"gamma": 1.6}, "digest": "0f" * 32})
    for start in range(0, len(rows), shard):
        name = f"part-{start // shard:07d}.parquet"
        write_rows(output / STAGE, name, rows[start : start + shard], PSEUDO_LABELS)
    return output


def maps_of(output):
    stage = output / STAGE
    rows = [row for name in stage.names(".parquet") for row in read_rows(stage, name)]
    return {r["image_id"]: decode_png(r["confidence"]) for r in rows if r["confidence"]}


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def opened(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image)


# Pictures


def test_a_mask_is_black_and_white():
    confidence = np.array([[0, 127, 128, 255]], np.uint8)
    np.testing.assert_array_equal(picture("mask", confidence), [[0, 0, 255, 255]])
    np.testing.assert_array_equal(picture("confidence", confidence), confidence)


def test_a_cutout_is_the_image_with_the_confidence_as_alpha():
    image = RNG.integers(0, 256, (*SHAPE, 3), np.uint8)
    confidence = RNG.integers(0, 256, SHAPE, np.uint8)
    drawn = picture("cutout", confidence, image)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[..., :3], image)
    np.testing.assert_array_equal(drawn[..., 3], confidence)


def test_an_overlay_tints_the_foreground_darkens_the_rest_and_draws_the_border():
    image = np.full((40, 60, 3), 100, np.uint8)
    confidence = np.zeros((40, 60), np.uint8)
    confidence[10:30, 20:50] = 200
    before = image.copy(), confidence.copy()
    drawn = picture("overlay", confidence, image)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    inside, outside = drawn[12:28, 22:48], drawn[confidence == 0]
    colour = np.rint(0.45 * 100 + 0.55 * np.array([255, 40, 120]))
    np.testing.assert_array_equal(np.unique(inside.reshape(-1, 3), axis=0), [colour])
    np.testing.assert_array_equal(np.unique(outside.reshape(-1, 3), axis=0), [[45, 45, 45]])
    np.testing.assert_array_equal(drawn[10, 20:50], np.full((30, 3), 255))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(confidence, before[1])


@pytest.mark.parametrize("level", [0, 255])
def test_a_picture_without_a_border_is_drawn(level):
    drawn = picture("overlay", np.full((1, 1), level, np.uint8), np.zeros((1, 1, 3), np.uint8))
    assert drawn.shape == (1, 1, 3)


@pytest.mark.parametrize("what", ["overlay", "cutout"])
def test_a_picture_of_the_image_needs_it_in_its_size(what):
    confidence = np.zeros(SHAPE, np.uint8)
    for image in (None, np.zeros((9, 6, 3), np.uint8)):
        with pytest.raises(ValueError, match=f"a {what} needs the image, in the size"):
            picture(what, confidence, image)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_are_png_files_of_the_same_colours(channels, tmp_path):
    drawn = RNG.integers(0, 256, (*SHAPE, channels), np.uint8)
    drawn = drawn[..., 0] if channels == 1 else drawn
    (tmp_path / "a.png").write_bytes(to_png(drawn))
    np.testing.assert_array_equal(opened(tmp_path / "a.png"), drawn)


# Export


@pytest.mark.parametrize("what", ["mask", "confidence", "overlay", "cutout"])
def test_every_labelled_image_is_a_file_of_its_size(finished, photographs, tmp_path, what):
    assert export(finished, tmp_path, what) == (4, 3)
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


def test_exporting_again_replaces(finished, tmp_path):
    export(finished, tmp_path, "confidence")
    first = files_below(tmp_path)
    export(finished, tmp_path, "mask")
    assert files_below(tmp_path) == first
    assert set(np.unique(opened(tmp_path / "chelsea ü.png"))) == {0, 255}


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
    assert export(output, tmp_path / "to", "confidence") == (len(files), 0)
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
    assert export(output, tmp_path / "to" / "here", "mask") == (1, 1)
    assert sorted({*files_below(tmp_path)} - {*before}) == ["to/here/fine.png"]
    with pytest.raises(SettingsError, match=r"is not a relative path without '\.\.'"):
        export_path(tmp_path, image_id)


def test_links_that_lead_outside_are_refused(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file.png").write_bytes(b"precious")
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "folder").symlink_to(tmp_path / "outside")
    (tmp_path / "to" / "a.png").symlink_to(tmp_path / "outside" / "file.png")
    for image_id in ("folder/new.jpg", "folder/deep/new.jpg", "a.jpg"):
        home = tmp_path / image_id[:-4].replace("/", "-")
        home.mkdir()
        output = a_run(home, [labelled(home, image_id)])
        with pytest.raises(SettingsError, match=r"leads outside .*/to: remove the link in it"):
            export(output, tmp_path / "to", "mask")
    assert files_below(tmp_path / "outside") == ["file.png"]
    assert (tmp_path / "outside" / "file.png").read_bytes() == b"precious"


def test_a_link_inside_the_folder_is_followed(tmp_path):
    (tmp_path / "to" / "real").mkdir(parents=True)
    (tmp_path / "to" / "linked").symlink_to(tmp_path / "to" / "real")
    (tmp_path / "also").symlink_to(tmp_path / "to")  # the folder itself may be reached by a link
    output = a_run(tmp_path, [labelled(tmp_path, "linked/a.jpg")])
    assert export(output, tmp_path / "also", "mask") == (1, 0)
    assert (tmp_path / "to" / "real" / "a.png").exists()


@pytest.mark.parametrize("what", ["overlay", "cutout"])
def test_an_image_that_changed_or_went_is_left_out_of_pictures_of_it(tmp_path, what):
    rows = [labelled(tmp_path, f"{name}.jpg") for name in ("same", "changed", "gone", "folder")]
    output = a_run(tmp_path, [*rows, failed("bad.jpg")])
    _, changed, gone, folder = ((tmp_path / row["uri"]) for row in rows)
    changed.write_bytes(encode_png(np.zeros((*SHAPE, 3), np.uint8)))
    gone.unlink()
    folder.unlink()
    folder.mkdir()
    assert [original(row) is None for row in rows] == [False, True, True, True]
    assert export(output, tmp_path / "to", what) == (1, 4)
    assert files_below(tmp_path / "to") == ["same.png"]
    assert export(output, tmp_path / "masks", "mask") == (4, 1)  # these need no image


@pytest.mark.parametrize("what", ["mask", "cutout"])
def test_images_above_the_default_limit_are_drawn(tmp_path, monkeypatch, what):
    monkeypatch.setattr(images, "DEFAULT_MAX_PIXELS", 10)
    monkeypatch.setitem(images.decode.__kwdefaults__, "max_pixels", 10)
    monkeypatch.setitem(images.decode_png.__kwdefaults__, "max_pixels", 10)
    output = a_run(tmp_path, [labelled(tmp_path, "large.jpg")])  # a run may raise max_pixels
    assert export(output, tmp_path / "to", what) == (1, 0)
    assert "large.jpg" in page_of(output)


def test_a_folder_that_cannot_be_written_is_named(finished, tmp_path):
    (tmp_path / "file").touch()
    for to in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match=f"no access to {to}/"):
            export(finished, to, "mask")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(finished, tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(SettingsError, match="Permission denied"):
        export(finished, tmp_path, "mask")
    tmp_path.chmod(0o700)


def test_what_is_no_run_or_has_no_results_is_named(finished, tmp_path):
    with pytest.raises(SettingsError, match=r"is not the output of a run: it has no run\.json"):
        export(Folder.at(str(tmp_path)), tmp_path / "to", "mask")
    with pytest.raises(SettingsError, match="has no predictions yet; run that job first"):
        export(finished, tmp_path / "to", "mask", "predictions")
    assert not (tmp_path / "to").exists()


# Evaluation


def truths(shape=SHAPE):
    """Truth with foreground, some of it void."""
    truth = RNG.random(shape) < 0.4
    truth[0, :3] = True
    valid = RNG.random(shape) < 0.9
    valid[0, :3] = True
    return truth, valid


def write_truth(path, truth, valid, truth_format):
    path.parent.mkdir(parents=True, exist_ok=True)
    if truth_format == "binary":
        path.write_bytes(encode_png(np.where(truth, 200, 30).astype(np.uint8)))
        return np.ones_like(valid)
    classes = np.where(truth, RNG.integers(1, 21, truth.shape), 0)
    mask = PIL.Image.fromarray(np.where(valid, classes, 255).astype(np.uint8), "L")
    mask.putpalette(bytes(range(256)) * 3)
    mask.save(path)
    return valid


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
    output = a_run(tmp_path, rows)
    summary = evaluate(output, str(tmp_path / "truth"), truth_format, STAGE, normalise=normalise)
    assert summary == expected.summary() | {
        "failed": 2,
        "without_truth": 1,
        "parts_to_do": 0,
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
    nothing = np.zeros(SHAPE, bool)
    write_truth(tmp_path / "truth" / "a.png", nothing, None, "binary")
    with pytest.raises(SettingsError, match="1 have a mask without foreground"):
        evaluate(output, str(tmp_path / "truth"), "binary", STAGE)
    write_truth(tmp_path / "truth" / "b.png", *truths(), "binary")
    summary = evaluate(output, str(tmp_path / "truth"), "binary", STAGE)
    assert (summary["images"], summary["skipped"]) == (1, 1)


def test_nothing_to_measure_is_said(finished, tmp_path):
    for name in ("missing", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(SettingsError, match=f"no masks at {tmp_path}/{name}"):
            evaluate(finished, str(tmp_path / name), "binary", STAGE)
    write_truth(tmp_path / "truth" / "stranger.png", *truths(), "binary")
    with pytest.raises(SettingsError, match="nothing to measure: 4 images have no mask in "):
        evaluate(finished, str(tmp_path / "truth"), "binary", STAGE)
    assert not (finished / "evaluation").names("")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (encode_png(np.full((9, 6), 255, np.uint8)), r"truth must have the shape \(6, 9\)"),
        (b"", "truth must be a PNG mask"),
        (encode_png(np.full(SHAPE, 255, np.uint8))[:50], "cannot be read"),
    ],
    ids=["another size", "no picture", "half a picture"],
)
def test_a_mask_that_does_not_fit_is_named(tmp_path, content, said):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg")])
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "a.png").write_bytes(content)
    with pytest.raises(SettingsError, match=rf"mask a\.png of {tmp_path}/truth: .*{said}"):
        evaluate(output, str(tmp_path / "truth"), "binary", STAGE)
    assert not (tmp_path / "run" / "evaluation").exists()


def test_an_evaluation_that_cannot_be_written_is_named(tmp_path):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg")])
    write_truth(tmp_path / "truth" / "a.png", *truths(), "binary")
    (tmp_path / "run" / "evaluation").touch()
    with pytest.raises(StorageError, match=r"no access to .*/run/evaluation/pseudo_labels: "):
        evaluate(output, str(tmp_path / "truth"), "binary", STAGE)


# Report


def page_of(output, **options):
    uri = write_report(output, **options)
    assert uri == f"{output.uri}/report/index.html"
    return (output / "report").read("index.html").decode()


def cards_of(page):
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', page, re.S)
    return [card["name"] for card in json.loads(found[1])["cards"]] if found else []


def test_the_report_has_a_card_for_each_labelled_image(run_copy, photographs):
    page = page_of(run_copy)
    assert cards_of(page) == list(maps_of(run_copy))
    for image_id in maps_of(run_copy):
        name = image_id.split("/")[-1].removesuffix(" ü.png")
        height, width = photographs[name].shape[:2]
        assert re.search(rf"{width}\s*×\s*{height}", page)
    words = markup.unescape(re.sub("<[^>]+>", "", page))
    for text in ("empty.jpg", "page.jpg", "nested/text.png", "image is an HTML page"):
        assert text in words
    run = json.loads(run_copy.read("run.json"))
    assert run["digest"] in page


def test_cards_are_spread_evenly_over_the_run(tmp_path):
    ids = [f"{n:02}.jpg" for n in range(22)]
    rows = [labelled(tmp_path, image_id) for image_id in ids]
    for place in (0, 0, 7, 11, 25):  # these take no card's place
        rows.insert(place, failed(f"failed {place}"))
    output = a_run(tmp_path, rows, shard=5)
    assert cards_of(page_of(output)) == ids
    for most, step in ((22, 1), (21, 2), (11, 2), (10, 3), (4, 6), (1, 22)):
        assert cards_of(page_of(output, max_cards=most)) == ids[::step], most


def test_shards_without_a_card_are_not_read(tmp_path, monkeypatch):
    rows = [labelled(tmp_path, f"{n}.jpg") for n in range(20)]
    output = a_run(tmp_path, rows, shard=2)
    read = []

    def counting(folder, name, columns=None):
        read.extend([name] if columns is None else [])
        return read_all_rows(folder, name, columns)

    monkeypatch.setattr("saff.results.read_all_rows", counting)
    assert cards_of(page_of(output, max_cards=3)) == ["0.jpg", "7.jpg", "14.jpg"]
    assert read == [f"part-000000{n}.parquet" for n in (0, 3, 7)]


def test_failed_and_changed_images_have_no_card(tmp_path):
    rows = [labelled(tmp_path, "a.jpg"), failed("b.jpg"), labelled(tmp_path, "c.jpg", sha256="0")]
    page = page_of(a_run(tmp_path, rows))
    assert cards_of(page) == ["a.jpg"]
    assert "truncated JPEG" in page


def test_a_run_in_which_everything_failed_has_a_report(tmp_path):
    page = page_of(a_run(tmp_path, [failed("<b>.jpg", error="<script>alert(1)</script>")]))
    assert cards_of(page) == []
    assert "&lt;b&gt;.jpg" in page
    assert "<script>alert(1)" not in page


def test_a_report_that_cannot_be_written_is_named(tmp_path):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg")])
    (tmp_path / "run" / "report").touch()
    with pytest.raises(StorageError, match=r"no access to .*/run/report: "):
        write_report(output)


# Report: predictions, evaluation, training


def predicted(row, **changes):
    """A row of predictions for the image of a labelled row."""
    confidence = RNG.integers(0, 256, (row["height"], row["width"]), np.uint8)
    kept = {name: row[name] for name in PREDICTIONS.names}
    return kept | {"confidence": encode_png(confidence), "pseudo_label": None} | changes


def write_predictions(output, rows, shard=4):
    for start in range(0, len(rows), shard):
        name = f"part-{start // shard:07d}.parquet"
        write_rows(output / "predictions", name, rows[start : start + shard], PREDICTIONS)


def agreements_of(page):
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', page, re.S)
    return {card["name"]: card["agreement"] for card in json.loads(found[1])["cards"]}


def agreement_of(row, other):
    first, second = (decode_png(r["confidence"]) >= 128 for r in (row, other))
    return round(np.sum(first & second) / np.sum(first | second), 4)


def totals_of(page):
    return re.findall(r"<li><b>([\d,]+)</b><span>(.*?)</span>", page)


def write_csv(output, name, lines):
    path = output.path + "/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def write_steps(output, name, steps, loss=0.5):
    names = ("step", "loss", "accuracy", "learning_rate", "gradient_norm", "samples", "seconds")
    lines = [(n, loss / n, 0.75, 0.01, 1.0, 8, 0.25) for n in range(1, steps + 1)]
    write_csv(
        output, name + "/metrics.csv", [dict(zip(names, line, strict=True)) for line in lines]
    )


def section_of(page, name):
    found = re.search(rf'<section class="{name}".*?</section>', page, re.S)
    return " ".join(markup.unescape(re.sub("<[^>]+>", " ", found[0])).split()) if found else None


def test_predictions_stand_beside_the_labels_of_the_same_image(tmp_path):
    rows = [labelled(tmp_path, f"{n}.jpg") for n in range(12)]
    rows[1] = failed("1.jpg")
    output = a_run(tmp_path, rows)
    others = [predicted(row | {"height": SHAPE[0], "width": SHAPE[1]}) for row in rows]
    others[2] |= {"confidence": None, "error": "out of luck", "error_kind": "odd"}
    others[5]["sha256"] = "another file by then"
    rest = [o for o in others if o["image_id"] != "6.jpg"]
    for part, present in enumerate((rest[:4], rest[4:7])):  # of the third part there is none
        write_rows(output / "predictions", f"part-{part:07d}.parquet", present, PREDICTIONS)
    expected = {row["image_id"]: None for row in rows if row["error_kind"] is None}
    expected |= {rows[n]["image_id"]: agreement_of(rows[n], others[n]) for n in (0, 3, 4, 7)}
    page = page_of(output)
    assert agreements_of(page) == expected
    assert totals_of(page) == [
        ("12", "images"),
        ("11", "labelled"),
        ("1", "failed"),
        ("5", "predicted"),
    ]
    assert "out of luck" not in page
    few = agreements_of(page_of(output, max_cards=4))
    assert few == {name: expected[name] for name in ("0.jpg", "4.jpg", "7.jpg", "10.jpg")}


def test_of_predictions_only_those_drawn_are_decoded(tmp_path, monkeypatch):
    rows = [labelled(tmp_path, f"{n}.jpg") for n in range(20)]
    output = a_run(tmp_path, rows, shard=5)
    write_predictions(output, [predicted(row) for row in rows], shard=5)
    decoded = []

    def counting(data, **options):
        decoded.append(data)
        return decode_png(data, **options)

    monkeypatch.setattr("saff.images.decode_png", counting)
    page_of(output, max_cards=2)
    assert len(decoded) == 2 * 3  # confidence, superpixels, prediction


def test_a_run_of_predictions_alone_has_a_report(tmp_path):
    rows = [labelled(tmp_path, f"{n}.jpg") for n in range(5)]
    others = [predicted(row) for row in rows]
    others[3] |= {"confidence": None, "error": "cut short", "error_kind": "truncated"}
    output = Folder.at(str(tmp_path / "new"))
    claim(output, {"saff": "0.2.0", "network": "ab" * 32, "digest": "0e" * 32, "source": "photos"})
    write_predictions(output, others, shard=2)
    claim(output / "predictions", {"inference": {"scales": [0.5, 1.0]}, "digest": "0d" * 32})
    page = page_of(output)
    assert cards_of(page) == ["0.jpg", "1.jpg", "2.jpg", "4.jpg"]
    assert totals_of(page) == [("5", "images"), ("4", "predicted"), ("1", "failed")]
    assert "cut short" in page
    assert "ab" * 32 in page
    assert "scales" in page
    assert "None" not in page
    assert cards_of(page_of(output, max_cards=2)) == ["0.jpg", "2.jpg"]
    nothing = Folder.at(str(tmp_path / "nothing"))
    claim(nothing, {"saff": "0.2.0", "digest": "0e" * 32})
    with pytest.raises(SettingsError, match="has no pseudo_labels yet; run that job first"):
        write_report(nothing)


def test_the_report_shows_the_evaluation_of_each_stage(tmp_path):
    rows = [labelled(tmp_path, f"{n}.jpg") for n in range(3)]
    output = a_run(tmp_path, rows)
    write_predictions(output, [predicted(row) for row in rows])
    for row in rows:
        path = tmp_path / "truth" / row["image_id"].replace("jpg", "png")
        write_truth(path, *truths(), "binary")
    assert section_of(page_of(output), "evaluation") is None
    figures = {}
    for stage, name in (("predictions", "Predictions"), (STAGE, "Pseudo labels")):
        summary = evaluate(output, str(tmp_path / "truth"), "binary", stage)
        values = [summary[key]["max_f"] for key in ("mean_pr", "mean_f", "max_f")]
        values += [summary["iou"], summary["mae"]]
        figures[name] = " ".join([name, "3", *(f"{value:.3f}" for value in values)])
        words = section_of(page_of(output), "evaluation")
        assert all(row in words for row in figures.values())
        assert len(re.findall("<polyline", page_of(output))) == len(figures)
    assert words.index("Pseudo labels") < words.index("Predictions")
    (tmp_path / "run" / "evaluation" / STAGE / "curve.csv").unlink()  # half an evaluation is none
    assert "Pseudo labels" not in section_of(page_of(output), "evaluation")


def test_the_report_shows_the_training(tmp_path):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg")])
    assert section_of(page_of(output), "training") is None
    write_steps(output, "network", 4)
    claim(output / "network", {"training": {"optimiser": "of choice"}, "digest": "0c" * 32})
    page = page_of(output)
    assert "Network 4 1.0 s 0.1250 0.7500 32.0" in section_of(page, "training")
    assert "of choice" in page
    write_steps(output, "rounds/1/network", 2, loss=0.3)
    write_steps(output, "rounds/2/network", 3, loss=0.6)
    write_steps(output, "rounds/4/network", 3)  # of something older: there is no third
    words = section_of(page_of(output), "training")
    assert "Round 1 2 0.5 s 0.1500" in words
    assert "Round 2 3 0.8 s 0.2000" in words
    assert "Round 3 4 1.0 s 0.1250" in words
    assert "Round 4" not in words
    (tmp_path / "run" / "network" / "metrics.csv").unlink()  # the last has not begun
    words = section_of(page_of(output), "training")
    assert ("Round 2" in words, "Round 3" in words) == (True, False)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("network/metrics.csv", "step,loss\n1,0.5\n", "KeyError: 'accuracy'"),
        ("network/metrics.csv", "step,loss,accuracy,samples,seconds\n1,x,1,1,1\n", "ValueError"),
        ("evaluation/predictions/curve.csv", "precision,recall\n0.5\n", "TypeError"),
        ("evaluation/predictions/metrics.json", "{", "JSONDecodeError"),
        ("evaluation/predictions/metrics.json", "{}", "KeyError: 'beta_squared'"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, said):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg")])
    write_csv(output, "evaluation/predictions/curve.csv", [{"precision": 1, "recall": 0}])
    (tmp_path / "run/evaluation/predictions/metrics.json").write_text('{"beta_squared": 0.3}')
    (tmp_path / "run/network").mkdir()
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(SettingsError, match=rf"/run/{name} is damaged: {said}"):
        write_report(output)
