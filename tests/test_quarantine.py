"""Images that kill their process: found out by who dies where, and left out with a row."""

import json
import os
import signal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saff.cluster.parts import PartWriter
from saff.cluster.quarantine import MOST_DEATHS, begin, note_name, tidy
from saff.shards import MANIFEST, PREDICTIONS, read_rows
from saff.storage import Folder

PART = "part-0000000.parquet"
NAMES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


@pytest.fixture
def stage(tmp_path):
    output = Folder.at(str(tmp_path))
    rows = [{"image_id": name, "uri": f"/photos/{name}"} for name in NAMES]
    with (output / "manifest").replacing(PART) as path:
        pq.write_table(pa.Table.from_pylist(rows, MANIFEST), path)
    return PartWriter(output, "predictions", PREDICTIONS)


def fine(rows):
    return [dict.fromkeys(PREDICTIONS.names) | row | {"sha256": "x"} for row in rows]


def dies_at(name):
    """Work that kills its process at an image."""

    def work(rows):
        for row in rows:
            if row["image_id"] == name:
                os.kill(os.getpid(), signal.SIGKILL)
        return fine(rows)

    return work


def attempt(stage, work, together=2, job="one"):
    """Do the part in a process of its own; say whether that came to its end."""
    child = os.fork()
    if child == 0:
        try:
            stage.do_part({"part": PART, "job": job}, work, together)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def stored(stage):
    return {row["image_id"]: row for row in read_rows(stage.folder, PART)}


def test_an_image_that_always_kills_is_a_row_and_the_others_are_whole(stage):
    deaths = 0
    while not attempt(stage, dies_at("b.jpg")):
        deaths += 1
        assert deaths < 10
        assert not stage.folder.exists(PART)
    assert deaths == 1 + MOST_DEATHS  # the first could have been any of them
    rows = stored(stage)
    assert list(rows) == NAMES
    assert {i for i, row in rows.items() if row["error_kind"]} == {"b.jpg"}
    assert rows["b.jpg"]["error_kind"] == "process_killed"
    assert f"died {MOST_DEATHS} times" in rows["b.jpg"]["error"]
    assert (rows["b.jpg"]["uri"], rows["b.jpg"]["sha256"]) == ("/photos/b.jpg", None)


def test_two_such_images_in_one_part(stage):
    def work(rows):
        dies_at("d.jpg")(rows)
        return dies_at("a.jpg")(rows)

    while not attempt(stage, work, together=4):
        pass
    assert {i for i, row in stored(stage).items() if row["error_kind"]} == {"a.jpg", "d.jpg"}


def test_one_that_was_unlucky_is_done(stage):
    for _ in range(MOST_DEATHS):
        assert not attempt(stage, dies_at("b.jpg"))
    assert attempt(stage, fine)
    assert not [row for row in stored(stage).values() if row["error_kind"]]


def test_a_job_that_is_stopped_blames_nobody(stage):
    for n in range(2 * MOST_DEATHS):  # its processes go with it, always at the first image
        assert not attempt(stage, dies_at("a.jpg"), job=f"job {n}")
    assert begin(stage.folder, PART, "last").deaths == {}
    while not attempt(stage, dies_at("b.jpg"), job="last"):
        pass
    assert {i for i, row in stored(stage).items() if row["error_kind"]} == {"b.jpg"}


def test_tried_again_it_has_all_its_chances(stage):
    while not attempt(stage, dies_at("b.jpg")):
        pass
    assert not attempt(stage, dies_at("b.jpg"))
    assert attempt(stage, fine)
    assert not [row for row in stored(stage).values() if row["error_kind"]]


def test_an_exception_is_no_death(stage):
    def fails(rows):
        raise ConnectionError("reset by peer")

    for _ in range(3):
        with pytest.raises(ConnectionError):
            stage.do_part({"part": PART}, fails)
        note = begin(stage.folder, PART, "one")
        assert (note.again, note.deaths) == (False, {})
        note.done()


def test_no_note_is_left(stage):
    stage.do_part({"part": PART}, fine)
    assert (stage.folder / ".begun").names("") == []
    begin(stage.folder, PART, "one")
    begin(stage.folder, "part-0000001.parquet", "one").at("x")
    tidy(stage.folder)
    assert (stage.folder / ".begun").names("") == []
    assert not begin(stage.folder, PART, "one").again


def test_a_note_counts_who_died_where(stage):
    begin(stage.folder, PART, "one")
    assert begin(stage.folder, PART, "one").deaths == {}  # nobody said which image
    for died in range(MOST_DEATHS):
        note = begin(stage.folder, PART, "one")
        assert note.again
        assert note.deaths.get("a.jpg", 0) == died
        assert note.at_fault == set()
        note.at("a.jpg")
    assert begin(stage.folder, PART, "one").at_fault == {"a.jpg"}


@pytest.mark.parametrize(
    "left", [b"", b"{", b"[]", b'{"deaths": 3, "at": "", "job": "one"}', b"\xff\xfe"]
)
def test_a_damaged_note_names_no_image(stage, left):
    (stage.folder / ".begun").write(note_name(PART), left)
    note = begin(stage.folder, PART, "one")
    assert (note.again, note.deaths) == (True, {})
    assert json.loads((stage.folder / ".begun").read(note_name(PART))) == {
        "job": "one",
        "at": "",
        "deaths": {},
    }
