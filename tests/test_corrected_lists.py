"""A list that was corrected, or signed anew: what is not done is read from its new address."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saff import layout
from saff.cluster import LabelPart
from saff.errors import StorageError
from saff.images import encode_png
from saff.layout import PART_SUFFIX
from saff.manifests import (
    extend_manifest,
    known_ids,
    later_addresses,
    new_rows,
    read_part,
    renew_addresses,
)
from saff.plan import plan_stage
from saff.samples import Cache, open_corpus
from saff.shards import read_rows
from saff.storage import Folder
from saff.verification import verify


def listed(**uris):
    return [{"image_id": image_id, "uri": str(uri)} for image_id, uri in uris.items()]


@pytest.fixture
def photos(tmp_path, photographs):
    """Two photographs, three names for each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("rocket", "coffee"):
        for copy in ("1", "2", "3"):
            (folder / f"{name}{copy}").write_bytes(encode_png(photographs[name]))
    return folder


@pytest.fixture
def output(tmp_path, small):
    from saff.cluster import describe_run
    from saff.runs import claim

    folder = Folder.at(str(tmp_path / "out"))
    claim(folder, describe_run("manifest /list.csv", small))
    return folder


def label(output, config, *, retry_failed=False):
    for name in plan_stage(output, retry_failed=retry_failed).parts:
        LabelPart(output, config)({"part": name})
    return rows_of(output)


def rows_of(output):
    stage = output / "pseudo_labels"
    rows = [row for name in stage.names(PART_SUFFIX) for row in read_rows(stage, name)]
    return {row["image_id"]: (row["uri"], row["error_kind"]) for row in rows}


def manifest_bytes(output):
    folder = layout.manifest(output)
    return {name: folder.read(name) for name in folder.names(PART_SUFFIX)}


def test_a_corrected_address_is_read_by_retry_failed(output, photos, small):
    wrong, right = photos / "typo", photos / "rocket1"
    extend_manifest(output, listed(a=photos / "coffee1", b=wrong, c=photos / "coffee2"))
    first = label(output, small)
    assert first["b"] == (str(wrong), "not_found")
    before = manifest_bytes(output)
    intake = extend_manifest(output, listed(a=photos / "coffee1", b=right, c=photos / "coffee2"))
    assert (intake.added, intake.renewed, intake.kept) == (0, 1, 0)
    assert manifest_bytes(output) == before  # a part of the manifest never changes
    assert label(output, small) == first  # without --retry-failed a failed row stays
    assert label(output, small, retry_failed=True) == first | {"b": (str(right), None)}
    assert verify(output).whole


def test_unfinished_images_take_new_addresses_and_finished_ones_keep_theirs(output, photos, small):
    old = listed(a=photos / "rocket1", b=photos / "coffee1", c=photos / "rocket2", d=photos / "no")
    extend_manifest(output, old)
    LabelPart(output, small)({"part": layout.part_name(0)})  # a and b
    new = listed(a=photos / "no1", b=photos / "coffee1", c=photos / "rocket3", d=photos / "coffee3")
    intake = extend_manifest(output, new)
    assert (intake.added, intake.renewed, intake.kept) == (0, 2, 1)
    assert any("1 images that are done have another address" in line for line in intake.lines())
    found = label(output, small)
    assert found == {
        "a": (str(photos / "rocket1"), None),
        "b": (str(photos / "coffee1"), None),
        "c": (str(photos / "rocket3"), None),
        "d": (str(photos / "coffee3"), None),
    }
    verdict = verify(output, images=True)
    assert verdict.whole, verdict.lines


def test_the_same_list_changes_nothing_and_each_correction_counts_once(output, photos):
    rows = listed(a=photos / "1", b=photos / "2")
    extend_manifest(output, rows)
    assert extend_manifest(output, rows) == extend_manifest(output, reversed(rows))
    assert not layout.addresses(output).names("")
    for uri in ("3", "4", "1"):
        corrected = listed(a=photos / uri, b=photos / "2")
        assert extend_manifest(output, corrected).renewed == 1
        assert extend_manifest(output, corrected).renewed == 0
        assert read_part(output, layout.part_name(0)) == corrected
    later = later_addresses(layout.addresses(output), layout.part_name(0))
    assert later == {"a": [str(photos / name) for name in "143"]}


def test_an_address_that_is_missing_now_changes_nothing(output, photos):
    rows = listed(a=photos / "1")
    extend_manifest(output, rows)
    assert extend_manifest(output, [{"image_id": "a", "uri": ""}]).renewed == 0
    assert read_part(output, layout.part_name(0)) == rows


def test_an_address_that_was_missing_is_taken(output, photos, small):
    intake = extend_manifest(output, [{"image_id": "a", "uri": ""}, *listed(b=photos / "coffee1")])
    assert intake.without_address == 1
    assert "1 images have no address" in intake.lines()[0]
    assert label(output, small)["a"] == ("", "not_readable")
    assert verify(output).whole
    extend_manifest(output, listed(a=photos / "rocket1", b=photos / "coffee1"))
    assert label(output, small, retry_failed=True)["a"] == (str(photos / "rocket1"), None)


def test_a_correction_that_is_killed_between_two_parts_is_completed_by_the_next(
    output, photos, monkeypatch
):
    rows = listed(**{f"i{n}": photos / f"{n}" for n in range(9)})
    extend_manifest(output, rows)
    corrected = [row | {"uri": row["uri"] + "x"} for row in rows]
    real, written = Folder.write, []

    def write_twice(self, name, data):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(name)
        real(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", write_twice)
        with pytest.raises(KeyboardInterrupt):
            extend_manifest(output, corrected)
    assert layout.addresses(output).names(PART_SUFFIX) == written
    assert extend_manifest(output, corrected).renewed == 9 - 4
    assert extend_manifest(output, corrected).renewed == 0
    names = layout.manifest(output).names(PART_SUFFIX)
    assert [row for name in names for row in read_part(output, name)] == corrected


def test_addresses_that_are_damaged_are_named(output, photos):
    extend_manifest(output, listed(a=photos / "1"))
    extend_manifest(output, listed(a=photos / "2"))
    name = layout.part_name(0)
    layout.addresses(output).write(name, b"PAR1 no more")
    with pytest.raises(StorageError, match=f"addresses/{name} is damaged"):
        read_part(output, name)
    verdict = verify(output)
    assert not verdict.whole
    assert any(f"addresses/{name}" in line for line in verdict.lines)


def test_a_dry_run_of_a_corrected_list_writes_nothing(output, photos):
    extend_manifest(output, listed(a=photos / "1"))
    assert list(new_rows(output, listed(a=photos / "2", b=photos / "3"))) == listed(b=photos / "3")
    assert not layout.addresses(output).names("")


def test_training_reads_a_photograph_from_its_new_address_where_the_old_one_is_gone(
    output, photos, small, tmp_path
):
    extend_manifest(output, listed(a=photos / "rocket1", b=photos / "coffee1"))
    label(output, small)
    shutil.move(photos / "rocket1", photos / "moved")
    cache = Cache(
        output / "pseudo_labels", 64, tmp_path / "cache", addresses=layout.addresses(output)
    )
    part = layout.part_name(0)
    assert open_corpus(output / "pseudo_labels").counts == (2,)
    assert cache.read(part, [0])[0].size == 0
    shutil.rmtree(tmp_path / "cache")
    extend_manifest(output, listed(a=photos / "moved", b=photos / "rocket2"))
    rocket, coffee = cache.read(part, [0, 1])
    assert rocket.size > 0  # the same photograph elsewhere
    assert coffee.size > 0  # its own, which is there; another one is none of its labels
    assert not np.array_equal(rocket, coffee)


def test_many_addresses_are_renewed_part_by_part(output):
    rows = [{"image_id": f"{n}", "uri": f"http://h/{n}?sig=old"} for n in range(3000)]
    extend_manifest(output, rows)
    ids = known_ids(output)
    new = [row | {"uri": row["uri"].replace("old", "new")} for row in rows]
    assert list(new_rows(output, iter(new), ids)) == []
    assert renew_addresses(output, ids) == (3000, 0)
    folder = layout.addresses(output)
    tables = [pq.read_table(f"{folder.path}/{name}") for name in folder.names(PART_SUFFIX)]
    assert sorted(pa.concat_tables(tables)["uri"].to_pylist()) == sorted(r["uri"] for r in new)
