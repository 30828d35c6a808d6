"""Further columns of a list of images: kept beside the results, and given out with them."""

import csv
import json
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saff.cluster import LabelPart, describe_run
from saff.cluster.estimate import preview
from saff.errors import SettingsError
from saff.exports.run import Export, export_here
from saff.lists import read_manifest
from saff.manifests import extend_manifest, listed_columns, read_part
from saff.ranking import rank
from saff.runs import claim
from saff.sources import list_images
from saff.storage import Folder
from saff.verification import verify

COLUMNS = ["split", "taken", "score"]


@pytest.fixture(scope="module")
def table(corpus):
    """A list of the photographs with what is known of each, columns in another order."""
    rows = []
    for number, image in enumerate(list_images(str(corpus))):
        split = None if number == 2 else f"träin, {number}"
        rows.append({"taken": 2000 + number, "split": split, "score": number / 4, **image})
    return rows


@pytest.fixture(scope="module")
def lists(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    pq.write_table(pa.Table.from_pylist(table), folder / "list.parquet")
    with open(folder / "list.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return folder


@pytest.fixture(scope="module")
def run(lists, small, tmp_path_factory):
    """A run of that list whose columns are kept, in parts of two images."""
    output = Folder.at(str(tmp_path_factory.mktemp("listed") / "run"))
    source = str(lists / "list.parquet")
    claim(output, describe_run(f"manifest {source}", small))
    extend_manifest(output, read_manifest(source, columns=COLUMNS))
    for name in (output / "manifest").names(".parquet"):
        LabelPart(output, small)({"part": name})
    return output


def expected_of(table, kind=lambda value: value):
    return {row["image_id"]: {name: kind(row[name]) for name in COLUMNS} for row in table}


def test_columns_are_read_with_their_types(lists, table):
    rows = read_manifest(str(lists / "list.parquet"), columns=COLUMNS)
    found = {row["image_id"]: json.loads(row["columns"]) for row in rows}
    assert found == expected_of(table)
    rows = read_manifest(str(lists / "list.csv"), columns=COLUMNS)
    found = {row["image_id"]: json.loads(row["columns"]) for row in rows}
    assert found == expected_of(table, lambda value: "" if value is None else str(value))
    assert all({*row} == {"image_id", "uri"} for row in read_manifest(str(lists / "list.csv")))


def test_a_run_keeps_them_and_is_whole(run, table):
    parts = (run / "manifest").names(".parquet")
    found = {i: c for name in parts for i, c in listed_columns(run, name).items()}
    assert found == expected_of(table)
    assert {*read_part(run, parts[0])[0]} == {"image_id", "uri"}
    assert verify(run).whole


def test_new_images_of_a_list_without_them_are_added(run, lists, corpus, tmp_path, small):
    shutil.copytree(run.path, tmp_path / "run")
    output = Folder.at(str(tmp_path / "run"))
    photograph = next(row["uri"] for row in list_images(str(corpus)) if "rocket" in row["uri"])
    rows = [*read_manifest(str(lists / "list.csv")), {"image_id": "new.png", "uri": photograph}]
    assert extend_manifest(output, rows).added == 1
    assert listed_columns(output, (output / "manifest").names(".parquet")[-1]) == {}
    text = preview("manifest x", iter(rows), Folder.at(str(tmp_path / "other")), small, sample=1)
    assert "8 to do" in text


GOOD = ("astronaut ü.png", "chelsea ü.png", "nested/coffee ü.png", "rocket ü.png")


def test_exports_hold_them(run, table, tmp_path):
    expected = {i: c for i, c in expected_of(table).items() if i in GOOD}
    for form in ("coco", "label-studio", "hugging-face", "webdataset"):
        export_here(Export(output=run, to=Folder.at(str(tmp_path / form)), format=form))
    content = json.loads((tmp_path / "coco" / "annotations.json").read_text())
    assert {i["file_name"]: i["columns"] for i in content["images"]} == expected
    tasks = json.loads((tmp_path / "label-studio" / "tasks.json").read_text())
    found = {t["data"]["image_id"]: {n: t["data"][n] for n in COLUMNS} for t in tasks}
    assert found == expected
    rows = pq.read_table(tmp_path / "hugging-face" / "data").to_pylist()
    assert {row["image_id"]: json.loads(row["columns"]) for row in rows} == expected
    found = {}
    for path in (tmp_path / "webdataset").glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    about = json.loads(tar.extractfile(member).read())
                    found[about["image_id"]] = about["columns"]
    assert found == expected


def test_the_ranking_has_them_as_columns(run, table):
    found = rank(run, "pseudo_labels", {}).to_pylist()
    expected = expected_of(table, lambda value: None if value is None else str(value))
    ranked = {row["image_id"]: {name: row[f"list_{name}"] for name in COLUMNS} for row in found}
    assert ranked == expected


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([b"bytes"], "x must be text, a number or a truth value, got bytes"),
        ([[1, 2]], "column x is of type list"),
    ],
)
def test_columns_that_cannot_be_kept_are_named(tmp_path, values, said):
    path = str(tmp_path / "list.parquet")
    pq.write_table(pa.table({"image_id": ["a"], "uri": ["a.jpg"], "x": values}), path)
    with pytest.raises(SettingsError, match=said):
        list(read_manifest(path, columns=["x"]))
    with pytest.raises(SettingsError, match=r"has no column y; it has 'image_id', 'uri', 'x'"):
        list(read_manifest(path, columns=["y"]))
    with pytest.raises(SettingsError, match="uri of a list is always kept"):
        read_manifest(path, columns=["uri"])


def test_no_number_is_no_json(tmp_path):
    path = str(tmp_path / "list.parquet")
    table = pa.table({"image_id": ["a", "b"], "uri": ["a", "b"], "x": [float("nan"), 0.5]})
    pq.write_table(table, path)
    rows = list(read_manifest(path, columns=["x"]))
    assert [row["columns"] for row in rows] == ['{"x": null}', '{"x": 0.5}']


def test_columns_without_a_list_are_refused(call, corpus, tmp_path):
    words = ["manifest", corpus, "--output", tmp_path / "out", "--columns", "split"]
    code, _, err = call(*words)
    assert (code, "--columns are those of a list of images" in err) == (2, True)


def test_the_command_takes_them_in(call, lists, tmp_path):
    words = ["manifest", "--manifest", lists / "list.csv", "--output", tmp_path / "out"]
    code, _, err = call(*words, "--columns", "split", "--columns", "taken")
    assert code == 0, err
    output = Folder.at(str(tmp_path / "out"))
    name = (output / "manifest").names(".parquet")[0]
    assert {*next(iter(listed_columns(output, name).values()))} == {"split", "taken"}
