import html as markup
import http.server
import json
import os
import re
import socketserver
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from saff import metrics
from saff.errors import SettingsError, StorageError
from saff.evaluation import evaluate
from saff.images import decode_png, encode_png
from saff.report.stored import write_report
from saff.runs import claim
from saff.shards import PREDICTIONS, read_all_rows, write_rows
from saff.storage import Folder
from stored_runs import (
    SHAPE,
    STAGE,
    a_run,
    failed,
    labelled,
    maps_of,
    predicted,
    truths,
    write_csv,
    write_predictions,
    write_steps,
    write_truth,
)


def page_of(output, **options):
    report = write_report(output, **options)
    assert report.uri == f"{output.uri}/report/index.html"
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

    monkeypatch.setattr("saff.report.stored.read_all_rows", counting)
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


def label_ious_of(page):
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', page, re.S)
    return {card["name"]: card["label_iou"] for card in json.loads(found[1])["cards"]}


def iou_of(row, other):
    first, second = (decode_png(r["confidence"]) >= 128 for r in (row, other))
    return round(np.sum(first & second) / np.sum(first | second), 4)


def totals_of(page):
    return re.findall(r"<li><b>([\d,]+)</b><span>(.*?)</span>", page)


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
    expected |= {rows[n]["image_id"]: iou_of(rows[n], others[n]) for n in (0, 3, 4, 7)}
    page = page_of(output)
    assert label_ious_of(page) == expected
    assert totals_of(page) == [
        ("12", "images"),
        ("11", "labelled"),
        ("1", "failed"),
        ("5", "predicted"),
    ]
    assert "out of luck" not in page
    few = label_ious_of(page_of(output, max_cards=4))
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
        assert len(re.findall('id="precision-recall-series-', page_of(output))) == len(figures)
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
        ("evaluation/predictions/metrics.json", "[]", "TypeError"),
        ("evaluation/predictions/metrics.json", "{}", "KeyError: 'beta_squared'"),
        ("evaluation/predictions/metrics.json", '{"beta_squared": 0.3}', "KeyError: 'mean_pr'"),
        (
            "evaluation/predictions/metrics.json",
            '{"beta_squared": 0.3, "mean_pr": {"max_f": "<script>"}}',
            "ValueError",
        ),
        ("evaluation/predictions/metrics.json", 9_999 * "[", "RecursionError"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, said):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg")])
    write_csv(output, "evaluation/predictions/curve.csv", [{"precision": 1, "recall": 0}])
    summary = metrics.Evaluation()
    summary.add(np.array([[0, 255]], np.uint8), np.array([[False, True]]))
    text = json.dumps(summary.summary() | {"beta_squared": 0.3})
    (tmp_path / "run/evaluation/predictions/metrics.json").write_text(text)
    (tmp_path / "run/network").mkdir()
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(StorageError, match=rf"/run/{name} is damaged: {said}.*; put back a copy"):
        write_report(output)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": [0.5]}, "weights must be 5 finite numbers"),
        ({"features": [float("nan")] * 4}, "features must be finite"),
        ({"features": []}, "superpixels must be"),
        ({"superpixels": encode_png(np.zeros((2, 2), np.uint16))}, "superpixels must be"),
        ({"seeds_foreground": None}, "int"),
    ],
)
def test_a_damaged_row_is_named(tmp_path, changes, said):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg"), labelled(tmp_path, "b.jpg", **changes)])
    name = r"/pseudo_labels/part-0000000\.parquet"
    with pytest.raises(StorageError, match=rf"row of b\.jpg in .*{name} is damaged: .*{said}"):
        write_report(output)


# Report: photographs that are lost


class Down(http.server.BaseHTTPRequestHandler):
    """A web server that closes every connection without an answer."""

    def do_GET(self):
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def down():
    """Address of that server."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Down) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def lost_on(page):
    found = re.search(r'id="lost">Not shown: (.*?)\.</p>', page)
    return found[1] if found else ""


def test_lost_photographs_are_counted_on_the_page_and_in_the_answer(tmp_path):
    names = ("kept", "gone", "broken", "circle", "changed", "also changed")
    rows = [labelled(tmp_path, f"{name}.jpg") for name in names]
    _, gone, broken, circle, *changed = (Path(row["uri"]) for row in rows)
    for path in (gone, broken, circle):
        path.unlink()
    broken.symlink_to(tmp_path / "nowhere")
    circle.symlink_to(circle)
    for path in changed:
        path.write_bytes(b"another content")
    output = a_run(tmp_path, rows)
    report = write_report(output)
    said = "3 photographs are gone, 2 photographs have changed"
    assert report.lost_photographs == said
    page = Path(report.uri).read_text()
    assert (cards_of(page), lost_on(page)) == (["kept.jpg"], said)
    assert totals_of(page)[:2] == [("6", "images"), ("6", "labelled")]  # they were
    Path(rows[0]["uri"]).unlink()
    page = Path(write_report(output).uri).read_text()
    assert (cards_of(page), lost_on(page)[:1]) == ([], "4")
    assert "No image can be shown." in page


def test_nothing_is_said_where_nothing_is_lost(tmp_path):
    report = write_report(a_run(tmp_path, [labelled(tmp_path, "a.jpg"), failed("b.jpg")]))
    assert (report.lost_photographs, lost_on(Path(report.uri).read_text())) == ("", "")


@pytest.mark.parametrize("patience", ["0", "600"])
def test_a_server_that_is_down_does_not_keep_a_report_from_being_made(
    tmp_path, down, monkeypatch, patience
):
    monkeypatch.setenv("SAFF_STORAGE_PATIENCE", patience)
    monkeypatch.setattr("saff.photographs.BRIEF", 0.5)  # of ten seconds, to be quick
    monkeypatch.setattr("saff.photographs.SECONDS_LOST", 1.5)
    rows = [labelled(tmp_path, f"{n}.jpg") for n in range(30)]
    for number, row in enumerate(rows[:-1]):
        row["uri"] = f"{down}/{number}.jpg"
    start = time.monotonic()
    report = write_report(a_run(tmp_path, rows))
    assert time.monotonic() - start < 20
    assert report.lost_photographs == "29 photographs cannot be reached"
    assert cards_of(Path(report.uri).read_text()) == ["29.jpg"]


# Report: elsewhere


@pytest.mark.parametrize(
    ("to", "page"),
    [
        ("new/folder", "new/folder/index.html"),
        ("there", "there/index.html"),
        ("there/", "there/index.html"),
        ("page.html", "page.html"),
        ("deep/er/Page.HTM", "deep/er/Page.HTM"),
        ("run/report", "run/report/index.html"),
    ],
)
def test_a_report_is_written_where_it_is_wanted(tmp_path, to, page):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg")])
    (tmp_path / "there").mkdir()
    before = {path: path.stat().st_mtime_ns for path in Path(output.path).rglob("*")}
    for _ in range(2):  # its own report it replaces
        assert write_report(output, to=f"{tmp_path}/{to}").uri == f"{tmp_path}/{page}"
    assert [*tmp_path.rglob("*.[hH][tT][mM]*")] == [tmp_path / page]
    if not to.startswith("run/"):
        assert {path: path.stat().st_mtime_ns for path in Path(output.path).rglob("*")} == before


def test_a_page_that_is_no_report_is_not_replaced(tmp_path):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg")])
    (tmp_path / "index.html").write_text("<title>my own pages</title>")
    for to in (tmp_path, tmp_path / "index.html"):
        with pytest.raises(SettingsError, match=r"/index\.html exists and is no report of saff"):
            write_report(output, to=str(to))
    assert (tmp_path / "index.html").read_text() == "<title>my own pages</title>"


def test_a_report_is_not_written_over_an_input(tmp_path):
    page = tmp_path / "photos" / "index.html"
    page.parent.mkdir()
    write_report(a_run(tmp_path, [labelled(tmp_path, "a.jpg")]), to=str(page))
    (tmp_path / "other").mkdir()
    output = a_run(tmp_path / "other", [failed("index.html") | {"uri": str(page)}])
    before = page.read_bytes()
    with pytest.raises(SettingsError, match="would be written over"):
        write_report(output, to=str(page.parent))
    assert page.read_bytes() == before


def test_a_report_that_cannot_be_written_names_the_option(tmp_path):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg")])
    (tmp_path / "run" / "report").touch()
    said = (
        r"no access to .*/run/report: .*; name a place that can be written for the report with --to"
    )
    with pytest.raises(StorageError, match=said):
        write_report(output)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="name another place for the report with --to"):
        write_report(output, to=str(tmp_path / "file" / "below"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_output_has_a_report_elsewhere(tmp_path):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg")])
    (tmp_path / "run").chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(StorageError, match=r"Permission denied.* with --to"):
            write_report(output)
        report = write_report(output, to=str(tmp_path / "to"))
        assert cards_of(Path(report.uri).read_text()) == ["a.jpg"]
    finally:
        (tmp_path / "run").chmod(0o700)


@pytest.mark.s3
def test_a_report_of_a_folder_is_written_to_an_object_store(tmp_path, bucket, s3_other):
    output = a_run(tmp_path, [labelled(tmp_path, "a.jpg")])
    for to, page in ((f"{bucket}/look", "look/index.html"), (f"{bucket}/a.html", "a.html")):
        assert write_report(output, to=to).uri == f"{bucket}/{page}"
        assert cards_of(s3_other.cat_file(f"{bucket}/{page}").decode()) == ["a.jpg"]
