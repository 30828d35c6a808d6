"""Pages of a review: what they show, and what a person does on them in a real browser."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from saff import review_pages
from saff.images import encode_png
from saff.marks import Mark, add_marks, read_changes, read_marks
from saff.ranking import rank
from saff.review_pages import write_pages
from saff.shards import read_all_rows
from stored_runs import a_run, failed, labelled

RNG = np.random.default_rng(29)
SHAPE = (40, 60)
IDS = [
    "cat.jpg",
    'a "b", c.jpg',
    "<img src=x onerror=alert(1)>.jpg",
    "</script><script>alert(1)</script>.jpg",
    "line\nbreak.jpg",
    "lost.jpg",
    "photo\u202egpj.exe",
]


@pytest.fixture
def run(tmp_path):
    """Images whose quality rises in this order, a lost photograph and a failure among them."""
    rows = []
    for number, image_id in enumerate(IDS):
        confidence = RNG.integers(0, 256, SHAPE, np.uint8)
        mask = encode_png((confidence > 127).astype(np.uint8))
        row = labelled(tmp_path, image_id, confidence, quality=number / 10)
        rows.append(row | {"pseudo_label": mask})
    os.remove(rows[IDS.index("lost.jpg")]["uri"])
    return a_run(tmp_path, [*rows, failed("broken.jpg")], shard=3)


def pages_of(run, count=9, per_page=4):
    table = rank(run, "pseudo_labels", read_marks(run))
    return write_pages(run, "pseudo_labels", table, count, per_page=per_page)


def test_pages_are_as_many_as_are_wanted_and_needed(run):
    folder = f"{run.path}/review"
    assert pages_of(run) == [f"{folder}/page-0001.html", f"{folder}/page-0002.html"]
    assert pages_of(run, count=1) == [f"{folder}/page-0001.html"]
    assert pages_of(run, count=0) == []
    text = Path(f"{folder}/page-0002.html").read_text()
    assert "images 5 to 7 of 7" in text
    assert text.count('class="card"') == 3
    assert text.count("Mask; the photograph is lost") == 1
    assert "broken.jpg" not in text


def test_a_part_is_read_once_for_all_pages_that_have_its_images(run, monkeypatch):
    read = []

    def counted(folder, part, columns):
        read.append(part)
        return read_all_rows(folder, part, columns)

    table = rank(run, "pseudo_labels", {})
    monkeypatch.setattr(review_pages, "read_all_rows", counted)
    parts = (run / "pseudo_labels").names(".parquet")
    write_pages(run, "pseudo_labels", table, 9, per_page=1)
    assert sorted(read) == parts
    whole = [Path(f"{run.path}/review/page-{n:04}.html").read_text() for n in range(1, 8)]
    monkeypatch.setattr(review_pages, "READ_AT_ONCE", 2)  # pages in several readings are the same
    write_pages(run, "pseudo_labels", table, 9, per_page=1)
    assert whole == [Path(f"{run.path}/review/page-{n:04}.html").read_text() for n in range(1, 8)]
    assert len(read) > 2 * len(parts)


def test_the_command_writes_pages(run, call):
    code, out, _ = call("review", run.path, "--pages", 3)
    assert (code, out.splitlines()[2:]) == (0, [f"{run.path}/review/page-0001.html"])


# In a browser


@pytest.fixture
def page(browser):
    browser.get_log("browser")  # forget the page before
    yield browser
    assert browser.get_log("browser") == []  # no error, nothing refused
    browser.execute_script("localStorage.clear()")


def click(page, number, value):
    card = page.find_elements("css selector", ".card")[number]
    card.find_element("css selector", f"button[value={value}]").click()


def shown(page):
    cards = page.find_elements("css selector", ".card")
    return [card.get_attribute("data-mark") for card in cards]


def saved(page):
    """What the button would have the browser save."""
    page.execute_script(
        """
        window.saved = null;
        URL.createObjectURL = (blob) => {
          blob.text().then((text) => { window.saved = text; });
          return "#";
        };
        URL.revokeObjectURL = () => {};
        document.querySelector("#save").click();
        """
    )
    end = time.monotonic() + 10
    while (text := page.execute_script("return window.saved")) is None:
        assert time.monotonic() < end, "nothing was saved"
        time.sleep(0.02)
    return text.encode()


@pytest.mark.browser
def test_marks_are_kept_from_page_to_page_and_taken_in(run, page):
    add_marks(run, {IDS[0]: Mark.ACCEPTED, IDS[3]: Mark.REJECTED}, IDS)
    first, _ = pages_of(run)
    page.get(Path(first).as_uri())
    assert shown(page) == ["accepted", "unmarked", "unmarked", "rejected"]
    click(page, 0, "rejected")
    click(page, 1, "rejected")
    click(page, 2, "accepted")
    click(page, 3, "rejected")  # takes the mark away
    assert shown(page) == ["rejected", "rejected", "accepted", "unmarked"]
    page.find_element("link text", "Next").click()
    assert shown(page) == ["unmarked"] * 3
    page.find_elements("css selector", ".card")[0].send_keys("r")
    page.switch_to.active_element.send_keys("a")  # the next card
    assert shown(page) == ["rejected", "accepted", "unmarked"]
    assert page.find_element("id", "count").text == "6 new marks"
    changes = read_changes(saved(page), "marks.csv")
    expected = {
        **dict.fromkeys([IDS[0], IDS[1], IDS[4]], Mark.REJECTED),
        **dict.fromkeys([IDS[2], IDS[5]], Mark.ACCEPTED),
        IDS[3]: None,
    }
    assert changes == expected
    add_marks(run, changes, IDS)
    assert read_marks(run) == {i: mark for i, mark in expected.items() if mark}
    page.find_element("link text", "Previous").click()
    assert shown(page) == ["rejected", "rejected", "accepted", "unmarked"]
    page.find_element("id", "forget").click()
    assert shown(page) == ["accepted", "unmarked", "unmarked", "rejected"]
    assert not page.find_element("id", "save").is_enabled()


@pytest.mark.browser
def test_names_of_strangers_are_text(run, page):
    first, second = pages_of(run)
    page.get(Path(first).as_uri())
    names = [e.text for e in page.find_elements("css selector", ".name")]
    assert names == IDS[:4]
    assert len(page.find_elements("css selector", "img")) == 4
    page.get(Path(second).as_uri())
    names = [e.text for e in page.find_elements("css selector", ".name")]
    assert names[-1] == "photo[U+202E]gpj.exe"
