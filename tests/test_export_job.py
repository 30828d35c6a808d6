"""Exports as jobs on a real Ray: the files are those of one process, whatever is killed."""

import json

import numpy as np
import pytest

from clusters import nodes
from failing_back_ends import KillsOnceBeforeItsRecord
from saff.cluster import map_parts
from saff.errors import SettingsError
from saff.exports.run import Export, export_here
from saff.storage import Folder
from stored_runs import a_run, failed, labelled

pytestmark = [pytest.mark.ray, pytest.mark.s3]
RNG = np.random.default_rng(11)
IMAGES = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    maps = RNG.integers(0, 256, (IMAGES, 20, 30), np.uint8)
    rows = [labelled(folder, f"{n:02}.jpg", confidence) for n, confidence in enumerate(maps)]
    return a_run(folder, [*rows, failed("broken.jpg")], shard=2)


def contents(folder):
    """Files of an export by name, without what says what is done."""
    found = {}
    for path in folder.fs.find(folder.path):
        name = path[len(folder.path) + 1 :]
        if not name.startswith("_export"):
            found[name] = folder.fs.cat_file(path)
    return found


@pytest.fixture
def expected(run, tmp_path):
    def export(form):
        there = Folder.at(str(tmp_path / form))
        export_here(Export(output=run, to=there, format=form))
        return contents(there)

    return export


def test_a_killed_worker_costs_nothing_in_a_bucket(run, expected, bucket, marks):
    export = Export(output=run, to=Folder.at(f"{bucket}/tars"), format="webdataset")
    export.claim()
    parts = export.plan().parts
    with nodes(2):  # with the credentials of the bucket
        task = KillsOnceBeforeItsRecord(export, parts[3])
        done = list(map_parts(task, export.tasks(parts)))
    assert (marks / "killed an export").exists()
    assert sorted(result["part"] for result in done) == parts
    export.finish()
    assert contents(export.to) == expected("webdataset")
    assert export.plan().left == 0


def test_the_job_in_two_shares_and_again(run, expected, one_node, call_job, tmp_path):
    to = str(tmp_path / "set")
    words = [run.path, "--to", to, "--format", "coco"]
    code, out, err = call_job("export", *words, "--part", "1/2")
    assert (code, out) == (0, ""), err  # the merged file is written with the last part
    code, out, err = call_job("export", *words, "--part", "2/2")
    assert (code, out) == (0, f"{to}/annotations.json\n"), err
    assert err.splitlines()[-1] == f"12 images in {to}; 1 image left out: 1 failed in the run"
    assert contents(Folder.at(to)) == expected("coco")
    records = Folder.at(to) / "_export"
    before = {name: records.version(name) for name in records.names(".json")}
    assert call_job("export", *words)[0] == 0
    assert {name: records.version(name) for name in records.names(".json")} == before
    content = json.loads(Folder.at(to).read("annotations.json"))
    assert len({image["file_name"] for image in content["images"]}) == IMAGES


def test_a_folder_of_another_export_is_refused_before_any_work(run, bucket, call_job):
    to = f"{bucket}/set"
    export_here(Export(output=run, to=Folder.at(to), format="cvat"))
    code, _, err = call_job("export", run.path, "--to", to, "--format", "coco")
    assert code == 2
    assert "format is 'cvat' in that run and 'coco' in this one" in err
    with pytest.raises(SettingsError, match="another folder"):
        Export(output=run, to=Folder.at(to), format="yolo").claim()
