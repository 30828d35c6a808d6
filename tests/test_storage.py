import csv
import errno
import json
import os
import random
import socket
import struct
import subprocess
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings, strategies as st

from saff import manifests, runs, storage
from saff.addresses import locate
from saff.errors import SaffError, SettingsError, StorageError
from saff.ids import Ids, is_safe_id
from saff.lists import read_manifest
from saff.manifests import extend_manifest, new_rows
from saff.runs import claim, read_run
from saff.shards import MANIFEST, PSEUDO_LABELS, count_rows, read_column, read_rows, write_rows
from saff.sources import list_images
from saff.storage import Folder, read_bytes, with_brief_retries

ODD_NAMES = [
    "a b.jpg",
    "#1.jpg",
    "50%.jpg",
    "%41.jpg",
    "[x]/y.jpg",
    "été/写真 🐈.jpg",
    "q?.jpg",
    "star*.jpg",
    "back\\slash.jpg",
    "~.jpg",
    "c:d&e=f;g+h.jpg",
    "quote'\".jpg",
    "no extension",
]
RUN = {"saff": "0.2.0", "config": {"count": 300, "saliency": "rbd"}, "weights": {"encoder": "0f"}}
RUN |= {"digest": "d1", "source": "/photos"}


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    """A folder on this machine, and one that is not."""
    if request.param == "local":
        yield Folder.at(str(tmp_path / "here"))
    else:
        yield Folder.at(f"memory://{tmp_path.name}/there")
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def ids(source):
    return [row["image_id"] for row in list_images(str(source))]


def rows_called(*names):
    return [{"image_id": name, "uri": f"/photos/{name}"} for name in names]


def message_of(call, *arguments):
    """What a user reads: one line, whatever the error behind it."""
    with pytest.raises(SaffError) as caught:
        list(call(*arguments) or ())
    return " ".join(str(caught.value).split())


# Listing images


def test_any_name_is_kept_and_leads_to_its_file(tmp_path):
    names = [*ODD_NAMES, "new\nline.jpg"]
    rows = list(list_images(f"{fill(tmp_path, names)}/"))
    assert [row["image_id"] for row in rows] == sorted(names)
    assert [read_bytes(row["uri"]).decode() for row in rows] == sorted(names)


def test_folders_nest_and_hidden_files_are_left_out(tmp_path):
    fill(tmp_path, ["b/c/d.jpg", "a.jpg", ".DS_Store", "b/.thumbs/x.jpg", "b/c/.x.jpg"])
    assert ids(tmp_path) == ["a.jpg", "b/c/d.jpg"]


def test_a_folder_is_itself_even_where_its_name_is_a_pattern(tmp_path):
    fill(tmp_path / "[xy] *", ["a.jpg"])
    fill(tmp_path / "x", ["other.jpg"])
    assert ids(tmp_path / "[xy] *") == ["a.jpg"]


def test_a_glob_counts_from_the_folder_before_its_first_wildcard(tmp_path):
    fill(tmp_path, ["p/a.jpg", "p/b/c.jpg", "p/b/d.png", "p/e.jpg/f.jpg", "q/h.jpg"])
    fill(tmp_path, ["p/.g.jpg", "p/b/.g.jpg", "p/.thumbs/g.jpg"])
    assert ids(tmp_path / "p" / "*.jpg") == ["a.jpg"]  # e.jpg is a folder
    assert ids(tmp_path / "p" / "**" / "*.jpg") == ["a.jpg", "b/c.jpg", "e.jpg/f.jpg"]
    assert ids(tmp_path / "p" / "b" / "?.[jp][pn]g") == ["c.jpg", "d.png"]
    assert ids(tmp_path / "*" / "h.jpg") == ["q/h.jpg"]


def test_a_single_file_is_called_by_its_name(tmp_path):
    fill(tmp_path, ["[x] #1.jpg", ".hidden.jpg", "other.jpg"])
    assert ids(tmp_path / "[x] #1.jpg") == ["[x] #1.jpg"]
    assert ids(tmp_path / ".hidden.jpg") == [".hidden.jpg"]  # asked for by name


def test_a_relative_folder_gives_uris_that_hold_anywhere(tmp_path, monkeypatch):
    fill(tmp_path, ["photos/a.jpg"])
    monkeypatch.chdir(tmp_path)
    (row,) = list_images("photos")
    assert row == {"image_id": "a.jpg", "uri": str(tmp_path / "photos" / "a.jpg")}
    assert list(list_images(f"file://{tmp_path}/photos")) == [row]


def test_a_name_that_is_no_utf_8_becomes_a_row(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg"), "wb") as file:
        file.write(b"x")
    rows = list(list_images(str(tmp_path)))
    assert rows == [{"image_id": r"caf\xe9.jpg", "uri": rf"{tmp_path}/caf\xe9.jpg"}]
    output = Folder.at(str(tmp_path / "out"))
    assert extend_manifest(output, rows).added == 1  # Parquet takes it


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    fill(tmp_path, ["p/a.jpg", "q/b.jpg"])
    (tmp_path / "p" / "linked").symlink_to(tmp_path / "q")
    (tmp_path / "p" / "self").symlink_to(tmp_path / "p")
    (tmp_path / "p" / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert ids(tmp_path / "p") == ["a.jpg", "broken.jpg", "linked/b.jpg"]


def test_pipes_and_sockets_are_no_files(tmp_path, monkeypatch):
    fill(tmp_path, ["a.jpg"])
    os.mkfifo(tmp_path / "pipe.jpg")  # reading it would wait for ever
    monkeypatch.chdir(tmp_path)  # a socket's path is limited to 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jpg")
        assert ids(tmp_path) == ["a.jpg"]


def test_nothing_there_is_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "hidden", [".a.jpg"])
    for name in ("empty", "hidden"):
        path = tmp_path / name
        assert message_of(list_images, str(path)) == f"no images in {path}: it holds no files"
    path = tmp_path / "missing"
    assert message_of(list_images, str(path)) == (
        f"no images at {path}: no such file, folder or prefix"
    )
    path = tmp_path / "empty" / "*.jpg"
    assert message_of(list_images, str(path)) == f"no images in {path}: it holds no files"
    assert message_of(list_images, "memory://nowhere/photos").startswith("no images at memory://")


def test_an_unknown_storage_is_named():
    assert message_of(list_images, "htp://x/y") == (
        "cannot open htp://x/y: Protocol not known: htp"
    )
    assert message_of(locate, "") == "a path or URI is empty"
    assert "cannot open sftp://host/y: " in message_of(locate, "sftp://host/y")


def test_a_folder_that_cannot_be_listed_stops_the_run(tmp_path, monkeypatch):
    fill(tmp_path, ["a.jpg", "secret/b.jpg"])
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("secret"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert message_of(list_images, str(tmp_path)) == (
        f"no access to {tmp_path}: [Errno 13] Permission denied: '{tmp_path}/secret'"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_an_unreadable_folder_is_one_clear_line(tmp_path):
    fill(tmp_path, ["secret/b.jpg"])
    (tmp_path / "secret").chmod(0)
    try:
        text = message_of(list_images, str(tmp_path / "secret"))
    finally:
        (tmp_path / "secret").chmod(0o700)
    assert text.startswith(f"no access to {tmp_path}/secret: [Errno 13] Permission denied")


class Bucket(fsspec.AbstractFileSystem):
    """Lists as an object store does: keys need not be paths, and empty ones mark folders."""

    protocol = "keys"
    keys = ("b/p/", "b/p/a.jpg", "b/p/sub/", "b/p/sub//c.jpg", "b/p//a.jpg")

    def isdir(self, path):
        return any(key.startswith(f"{path}/") for key in self.keys)

    def find(self, path, detail=False, **options):
        found = {k: {"name": k, "type": "file"} for k in self.keys if k.startswith(f"{path}/")}
        return found if detail else list(found)

    def glob(self, path, detail=False, **options):
        found = self.find("b/p", detail=True)
        return found | {"b/p/sub": {"name": "b/p/sub", "type": "directory"}}


def test_keys_of_an_object_store_stay_apart():
    fsspec.register_implementation("keys", Bucket, clobber=True)
    found = ["/a.jpg", "a.jpg", "sub//c.jpg"]
    assert ids("keys://b/p") == found
    assert ids("keys://b/p/*") == found
    assert [i for i in found if is_safe_id(i)] == ["a.jpg"]


# Reading manifests


def csv_text(rows, columns=("image_id", "uri")):
    return "\n".join([",".join(columns), *(",".join(row) for row in rows)]) + "\n"


def write_parquet(path, rows, schema=None):
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


def test_a_parquet_manifest(tmp_path):
    rows = [{"image_id": n, "uri": f"/x/{n}", "extra": 1} for n in ("b b.jpg", "ü/a#.jpg")]
    path = write_parquet(tmp_path / "m.parquet", rows)
    expected = [{"image_id": r["image_id"], "uri": r["uri"]} for r in rows]
    assert list(read_manifest(str(path))) == expected


def test_a_folder_of_parquet_files_is_one_manifest(tmp_path):
    write_parquet(tmp_path / "2.parquet", rows_called("c.jpg"))
    write_parquet(tmp_path / "1.parquet", rows_called("b.jpg", "a.jpg"))
    (tmp_path / "_SUCCESS").touch()
    assert [r["image_id"] for r in read_manifest(str(tmp_path))] == ["b.jpg", "a.jpg", "c.jpg"]


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "with a byte order mark"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_a_csv_manifest(tmp_path, start, ending):
    rows = [("a.jpg", "1", "/x/a.jpg"), ('"b, ""c"".jpg"', "2", "s3://b/ü c")]
    text = start + csv_text(rows, ("image_id", "n", "uri"))
    (tmp_path / "m.CSV").write_bytes(text.replace("\n", ending).encode())
    assert list(read_manifest(str(tmp_path / "m.CSV"))) == [
        {"image_id": "a.jpg", "uri": "/x/a.jpg"},
        {"image_id": 'b, "c".jpg', "uri": "s3://b/ü c"},
    ]


def test_relative_uris_count_from_the_manifest(tmp_path):
    uris = ["a.jpg", "../b#1.jpg", "/abs/c.jpg", "s3://bucket/d.jpg"]
    (tmp_path / "m.csv").write_text(csv_text([(f"{n}.jpg", uri) for n, uri in enumerate(uris)]))
    base = str(tmp_path)
    expected = [f"{base}/a.jpg", f"{tmp_path.parent}/b#1.jpg", "/abs/c.jpg", "s3://bucket/d.jpg"]
    assert [r["uri"] for r in read_manifest(f"{base}/m.csv")] == expected


def test_relative_uris_count_from_a_manifest_in_a_store(folder):
    folder.write("lists/m.csv", csv_text([("1", "../photos/a.jpg"), ("2", "/nfs/b.jpg")]).encode())
    uris = [r["uri"] for r in read_manifest(f"{folder.uri}/lists/m.csv")]
    assert uris == [f"{folder.uri}/photos/a.jpg", "/nfs/b.jpg"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (("image_id", "url"), "has no column uri; it has 'image_id', 'url'"),
        (("a", "b"), "has no column image_id and no column uri; it has 'a', 'b'"),
    ],
)
def test_missing_columns_are_named(tmp_path, columns, said):
    (tmp_path / "m.csv").write_text(csv_text([("x", "y")], columns))
    write_parquet(tmp_path / "m.parquet", [dict.fromkeys(columns, "x")])
    for name in ("m.csv", "m.parquet"):
        path = str(tmp_path / name)
        assert message_of(read_manifest, path) == f"the manifest {path} {said}"


def test_a_manifest_without_rows_or_without_anything(tmp_path):
    (tmp_path / "m.csv").write_text(csv_text([]))
    (tmp_path / "none.csv").touch()
    (tmp_path / "folder").mkdir()
    write_parquet(tmp_path / "m.parquet", [], MANIFEST)
    for name in ("m.csv", "m.parquet"):
        path = str(tmp_path / name)
        assert message_of(read_manifest, path) == f"the manifest {path} has no rows"
    path = str(tmp_path / "folder")
    assert message_of(read_manifest, path) == (
        f"the manifest {path} is a folder without Parquet files; a folder of images is named "
        "without --manifest"
    )
    assert "has no column image_id" in message_of(read_manifest, str(tmp_path / "none.csv"))
    path = str(tmp_path / "missing.parquet")
    assert message_of(read_manifest, path) == f"no manifest at {path}"


UNSAFE = ["../x", "/abs", "a/../b", "", "a\0b", "a//b", "a/", "./a", ".", ".."]


@pytest.mark.parametrize("image_id", UNSAFE)
def test_ids_that_lead_outside_are_refused(tmp_path, image_id):
    assert not is_safe_id(image_id)
    path = write_parquet(tmp_path / "m.parquet", rows_called("fine.jpg", image_id))
    assert f"has in row 2 the row image_id={image_id!r}" in message_of(read_manifest, str(path))


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("htp://x/a", "cannot open htp://x/a: Protocol not known: htp"),
        *((uri, "uri must be a path or URI") for uri in (5, b"a.jpg", "a\0.jpg")),
    ],
)
def test_uris_that_cannot_be_opened_are_refused(tmp_path, uri, fault):
    path = write_parquet(tmp_path / "m.parquet", [{"image_id": "a", "uri": uri}])
    assert message_of(read_manifest, str(path)) == (
        f"the manifest {path} has in row 1 the row image_id='a', uri={uri!r}: {fault}"
    )


@pytest.mark.parametrize("image_id", [None, 5.0, True, b"a.jpg"])
def test_ids_that_are_no_text_are_refused(tmp_path, image_id):
    path = write_parquet(tmp_path / "m.parquet", [{"image_id": image_id, "uri": "a.jpg"}])
    assert f"image_id={image_id!r}" in message_of(read_manifest, str(path))


def test_a_short_line_is_refused(tmp_path):
    (tmp_path / "m.csv").write_text("image_id,uri\na.jpg,a.jpg\nb.jpg\n")
    assert "has too few fields in line 3: 'b.jpg'" in message_of(
        read_manifest, str(tmp_path / "m.csv")
    )


@pytest.mark.parametrize("name", ["m.parquet", "m.csv"])
def test_a_manifest_of_another_format_is_refused(tmp_path, name):
    for content in ("<html>Not Found</html>".encode("utf-16"), b"PAR1" + bytes(40) + b"PAR1"):
        (tmp_path / name).write_bytes(content)
        assert f"the manifest {tmp_path / name} " in message_of(read_manifest, str(tmp_path / name))


def test_a_field_too_long_for_csv_is_refused(tmp_path):
    (tmp_path / "m.csv").write_text(csv_text([("a" * (csv.field_size_limit() + 1), "b")]))
    assert "cannot be read: field larger than" in message_of(read_manifest, str(tmp_path / "m.csv"))


def only_settings_errors(path, content):
    path.write_bytes(content)
    try:
        for row in read_manifest(str(path)):
            assert is_safe_id(row["image_id"])
            assert isinstance(row["uri"], str)
    except SettingsError as refusal:
        text = str(refusal)
        assert str(path) in text


@given(st.binary(max_size=200), st.booleans(), st.sampled_from(["m.parquet", "m.csv"]))
@settings(deadline=None)
def test_no_bytes_break_the_reader(tmp_path_factory, content, framed, name):
    if framed:  # what a Parquet file begins and ends with, its footer's length included
        content = b"PAR1" + content + struct.pack("<I", len(content)) + b"PAR1"
    only_settings_errors(tmp_path_factory.getbasetemp() / name, content)


@given(st.lists(st.lists(st.text(max_size=8), max_size=4), max_size=4))
@settings(deadline=None)
def test_no_text_breaks_the_reader(tmp_path_factory, lines):
    text = "\n".join(["image_id,uri", *(",".join(line) for line in lines)])
    content = text.encode("utf-8", "surrogatepass")
    only_settings_errors(tmp_path_factory.getbasetemp() / "n.csv", content)


@pytest.mark.parametrize("seed", range(8))
def test_no_damage_breaks_the_reader(tmp_path, seed):
    generator = random.Random(seed)
    path = write_parquet(tmp_path / "m.parquet", rows_called("a.jpg", "b/ü.jpg", "c.jpg"))
    content = path.read_bytes()
    for _ in range(25):
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 3)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        only_settings_errors(path, bytes(damaged[: generator.choice([None, None, -1])]))


# The manifest of an output


def manifest_of(output):
    manifest = output / "manifest"
    return {name: list(read_rows(manifest, name)) for name in manifest.names(".parquet")}


def test_the_manifest_grows_by_what_is_new(folder):
    first = rows_called(*(f"{n:02}.jpg" for n in range(5)))
    assert extend_manifest(folder, first).added == 5
    before = manifest_of(folder)
    assert list(before) == [f"part-000000{n}.parquet" for n in range(3)]
    assert [len(rows) for rows in before.values()] == [2, 2, 1]
    assert [row for rows in before.values() for row in rows] == first

    assert extend_manifest(folder, iter(first)).added == 0
    assert manifest_of(folder) == before

    later = rows_called("00a.jpg", "99.jpg")
    assert [r["image_id"] for r in new_rows(folder, later + first)] == ["00a.jpg", "99.jpg"]
    assert extend_manifest(folder, sorted(first + later, key=lambda r: r["image_id"])).added == 2
    after = manifest_of(folder)
    assert {name: after.pop(name) for name in before} == before
    assert after == {"part-0000003.parquet": later}


@pytest.mark.parametrize(
    ("images", "sizes"),
    [
        (1, [1]),
        (3, [2, 1]),
        (100, [4] * 25),
        (768, [8] * 96),
        (3072, [12] * 256),
        (5000, [1024, 1024, 1024, 1024, 904]),
    ],
)
def test_parts_are_small_for_few_images_and_never_large(tmp_path, monkeypatch, images, sizes):
    monkeypatch.setattr(manifests, "LOOK_AHEAD", 4000)
    output = Folder.at(str(tmp_path))
    assert extend_manifest(output, rows_called(*map(str, range(images)))).added == images
    manifest = output / "manifest"
    assert [count_rows(manifest, name)[0] for name in manifest.names(".parquet")] == sizes


def test_a_lost_part_is_not_overwritten_by_the_next(tmp_path):
    output = Folder.at(str(tmp_path))
    extend_manifest(output, rows_called("a", "b", "c", "d", "e"))
    (tmp_path / "manifest" / "part-0000001.parquet").unlink()
    extend_manifest(output, rows_called("a", "b", "c", "d", "e"))
    found = manifest_of(output)
    assert sorted(r["image_id"] for rows in found.values() for r in rows) == list("abcde")
    assert list(found) == [f"part-000000{n}.parquet" for n in (0, 2, 3)]


def test_an_id_that_comes_twice_is_named(tmp_path):
    output = Folder.at(str(tmp_path))
    twice = rows_called("a", "b", "a")
    said = "image_id 'a' comes twice; ids must be unique"
    assert message_of(new_rows, output, twice) == said
    with pytest.raises(SettingsError, match=said):
        extend_manifest(output, twice)
    assert manifest_of(output) == {}


# Files appear whole or not at all


def everything_in(folder):
    return sorted(p.rsplit("/", 1)[-1] for p in folder.fs.find(folder.path))


def fail_after_writing(folder, name, content):
    with folder.replacing(name) as path:
        with open(path, "wb") as file:
            file.write(content)
        assert folder.names("") == ["old"]  # what is being written is not there yet
        raise RuntimeError("stopped in the middle")


def test_a_write_that_fails_changes_nothing(folder, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    folder.write("old", b"old")
    for name in ("old", "new"):
        with pytest.raises(RuntimeError, match="in the middle"):
            fail_after_writing(folder, name, b"half")
    assert everything_in(folder) == ["old"]
    assert folder.read("old") == b"old"
    folder.write("old", b"newer")
    assert folder.read("old") == b"newer"
    assert folder.exists("old")
    assert not folder.exists("new")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_shard_whose_rows_fail_is_not_there(folder):
    def rows():
        yield from rows_called("a", "b")
        raise OSError("the storage is gone")

    with pytest.raises(OSError, match="gone"):
        write_rows(folder, "part-0000000.parquet", rows(), MANIFEST)
    assert everything_in(folder) == []


def test_drafts_of_the_killed_are_never_listed_and_swept(tmp_path):
    folder = Folder.at(str(tmp_path / "[x]"))
    folder.write("part-0000000.parquet", b"whole")
    with folder.replacing("part-0000001.parquet") as path:
        with open(path, "wb") as file:
            file.write(b"half")
        assert folder.names(".parquet") == ["part-0000000.parquet"]
        assert len(everything_in(folder)) == 2
        (tmp_path / "[x]" / ".keep").touch()
        folder.sweep()  # as after a kill
        assert everything_in(folder) == [".keep", "part-0000000.parquet"]
        open(path, "wb").close()
    Folder.at(str(tmp_path / "nowhere")).sweep()


def test_a_folder_that_is_not_there_is_empty(folder):
    assert folder.names(".parquet") == []
    assert not folder.exists("run.json")


def test_folders_are_named_as_a_person_would(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (Folder.at("out/") / "manifest").uri == f"{tmp_path}/out/manifest"
    assert Folder.at("memory://a/b/").uri == "memory:///a/b"
    assert Folder.at("/").uri == "/"


# Shards


def full_row(number, error=None):
    generator = np.random.default_rng(number)
    row = dict.fromkeys(PSEUDO_LABELS.names)
    row |= {"image_id": f"{number}/ü.jpg", "uri": f"s3://b/{number}"}
    if error:
        return row | {"error": "why", "error_kind": error}
    return row | {
        "sha256": f"{number:064x}",
        "height": 1 + number,
        "width": 2 + number,
        "confidence": generator.bytes(20),
        "pseudo_label": b"\x89PNG\0",
        "superpixels": b"",
        "features": generator.random(8, np.float32).tolist(),
        "weights": generator.normal(size=5).tolist(),
        "seeds_foreground": 0,
        "seeds_background": 2**31 - 1,
        "fallback": "",
    }


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 97])
def test_rows_come_back_as_they_were_and_the_footer_counts_them(folder, count):
    chosen = random.Random(count)
    rows = [full_row(n, chosen.choice([None, None, "empty", "truncated"])) for n in range(count)]
    failed = sum(row["error_kind"] is not None for row in rows)
    assert write_rows(folder, "s.parquet", iter(rows), PSEUDO_LABELS) == (count, failed)
    assert list(read_rows(folder, "s.parquet")) == rows
    assert count_rows(folder, "s.parquet") == (count, failed)
    assert read_column(folder, "s.parquet", "weights") == [row["weights"] for row in rows]
    columns = ["image_id", "error_kind"]
    few = [{name: row[name] for name in columns} for row in rows]
    assert list(read_rows(folder, "s.parquet", columns)) == few


def test_no_row_of_a_manifest_has_failed(tmp_path):
    output = Folder.at(str(tmp_path))
    extend_manifest(output, rows_called("a", "b"))
    assert count_rows(output / "manifest", "part-0000000.parquet") == (2, 0)


def test_equal_rows_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_rows(Folder.at(str(tmp_path)), name, map(full_row, range(40)), PSEUDO_LABELS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# run.json


def test_an_output_belongs_to_the_run_that_claimed_it(folder):
    claim(folder, RUN)
    assert read_run(folder) == RUN
    claim(folder, dict(reversed(RUN.items())))
    assert read_run(folder) == RUN


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"config": RUN["config"] | {"count": 200}},
            "config.count is 300 in that run and 200 in this one",
        ),
        (
            {"config": {"count": 300}},
            "config.saliency is 'rbd' in that run and not set in this one",
        ),
        (
            {"config": RUN["config"] | {"new": 1}},
            "config.new is not set in that run and 1 in this one",
        ),
        (
            {"weights": {"encoder": "1e"}},
            "weights.encoder is '0f' in that run and '1e' in this one",
        ),
        ({"saff": "0.2.1"}, "saff is '0.2.0' in that run and '0.2.1' in this one"),
        ({"source": "/p"}, "source is '/photos' in that run and '/p' in this one"),
        (
            {"saff": "1", "source": "/p"},
            "saff is '0.2.0' in that run and '1' in this one; "
            "source is '/photos' in that run and '/p' in this one",
        ),
    ],
)
def test_another_run_is_told_every_difference(folder, change, said):
    claim(folder, RUN)
    assert message_of(claim, folder, RUN | change | {"digest": "d2"}) == (
        f"{folder.uri} belongs to another run: {said}; "
        "choose another output, or the settings it has"
    )
    assert read_run(folder) == RUN


@pytest.mark.parametrize("content", [b"", b'{"saff": ', b"\xff\xfe\xfd", b"[]", b"null"])
def test_a_damaged_run_json_is_named(folder, content):
    folder.write("run.json", content)
    for call in (lambda: claim(folder, RUN), lambda: read_run(folder)):
        assert message_of(call).startswith(f"{folder.uri}/run.json is damaged: ")
    assert folder.read("run.json") == content


@pytest.mark.parametrize("version", ["0.1.0", "0.3.1", "1.2.0", 7])
def test_a_run_of_another_version_is_refused_by_name(folder, version):
    folder.write("run.json", json.dumps({"saff": version, "training": {"crop": 321}}).encode())
    said = f"{folder.uri}/run.json was written by saff {version}, and this is saff"
    for call in (lambda: claim(folder, RUN), lambda: read_run(folder)):
        assert message_of(call).startswith(said)


def test_a_folder_without_run_json_is_no_run(folder):
    said = f"{folder.uri} is not the output of a run: it has no run.json"
    assert message_of(read_run, folder) == said


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert message_of(claim, Folder.at(str(path)), RUN).startswith(f"no access to {path}: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_output_is_named(tmp_path):
    tmp_path.chmod(0o500)
    text = message_of(claim, Folder.at(str(tmp_path)), RUN)
    tmp_path.chmod(0o700)
    assert text.startswith(f"no access to {tmp_path}: [Errno 13] Permission denied")


class Refusing(fsspec.AbstractFileSystem):
    """Raises what is no OSError, as botocore does."""

    protocol = "refusing"

    def info(self, path, **options):
        raise LookupError("Unable to locate credentials")

    exists = isdir = put_file = info


def test_any_refusal_of_a_storage_is_one_line():
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    said = "no access to {}: Unable to locate credentials"
    output = Folder.at("refusing://b/run")
    assert message_of(claim, output, RUN) == said.format("refusing://b/run")
    assert message_of(read_run, output) == said.format("refusing://b/run")
    for call in (list_images, read_manifest):
        assert message_of(call, "refusing://b/run") == said.format("refusing://b/run")


def test_a_refusal_without_words_is_named_by_its_kind():
    with (
        pytest.raises(StorageError, match="no access to x: TimeoutError"),
        with_brief_retries("x"),
    ):
        raise TimeoutError


def test_run_json_can_be_read_by_anything(tmp_path):
    claim(Folder.at(str(tmp_path)), RUN)
    assert json.loads((tmp_path / "run.json").read_text()) == RUN


def test_an_output_inside_the_images_folder_is_not_taken_for_images(tmp_path):
    (tmp_path / "a.png").write_bytes(b"an image")
    output = Folder.at(str(tmp_path / "out"))
    assert extend_manifest(output, list_images(str(tmp_path))).added == 1
    for name in ("run.json", "report/index.html", "pseudo_labels/part-0000000.parquet"):
        output.write(name, b"written by a run")
    (tmp_path / "output.png").write_bytes(b"another image")
    assert [r["image_id"] for r in new_rows(output, list_images(str(tmp_path)))] == ["output.png"]


@pytest.mark.parametrize("images", ["out", "out/photos"])
def test_images_inside_the_output_are_images(tmp_path, images):
    output = Folder.at(str(tmp_path / "out"))
    output.write("run.json", b"{}")
    fill(tmp_path / images, ["a.png", "b/c.png"])
    for added in (2, 0):
        assert extend_manifest(output, list_images(str(tmp_path / images))).added == added


def test_a_folder_is_listed_in_the_order_of_its_ids(tmp_path):
    names = [
        "a.jpg",
        "a/b.jpg",
        "a-b/c.jpg",
        "a0.jpg",
        "b/a/x.jpg",
        "b/a.jpg",
        "b/a!/y.jpg",
        "ü.jpg",
    ]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert [row["image_id"] for row in list_images(str(tmp_path))] == sorted(names)


def test_ids_are_known_named_and_named_twice():
    ids = Ids()
    ids.know("part-1", [("a", "/a"), ("b", "/b"), ("a", "/a")])
    ids.know("part-2", [("d", "/d"), ("e", "/e")])
    named = [("b", "/b"), ("c", "/c"), ("ü/x", "/x"), ("a", "/other"), ("d", ""), ("e", "/new")]
    assert [ids.name(*i) for i in named] == [False, True, True, False, False, False]
    for again in ("a", "c"):
        with pytest.raises(KeyError):
            ids.name(again, "/a")
    assert dict(ids.changed()) == {"part-1": {"a": "/other"}, "part-2": {"e": "/new"}}
    assert Ids().name("a", "/a")  # each has a table of its own


# Two jobs at once


def test_a_file_is_created_once(tmp_path):
    folder = Folder.at(str(tmp_path / "new"))
    folder.create("a", b"one")
    folder.create("a", b"one")  # the same is no conflict
    with pytest.raises(FileExistsError):
        folder.create("a", b"two")
    assert folder.read("a") == b"one"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]  # no draft


def test_a_file_system_without_links_creates_once_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    test_a_file_is_created_once(tmp_path)


def test_a_second_intake_at_the_same_time_ends_one_and_doubles_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "LOOK_AHEAD", 1000)  # parts of 1024; for what is left, of 8
    output = Folder.at(str(tmp_path))
    rows = [{"image_id": f"{n}.jpg", "uri": f"/photos/{n}.jpg"} for n in range(2000)]

    def slowly():
        for number, row in enumerate(rows):
            if number == 1500:  # the first part is written
                extend_manifest(output, rows)
            yield row

    with pytest.raises(SettingsError, match=r"another job takes images into .*: part-0000001"):
        extend_manifest(output, slowly())
    folder = output / "manifest"
    ids = [r["image_id"] for name in folder.names(".parquet") for r in read_rows(folder, name)]
    assert sorted(ids) == sorted(row["image_id"] for row in rows)
    assert extend_manifest(output, rows).added == 0


def test_of_two_claims_at_the_same_time_one_is_refused(tmp_path, monkeypatch):
    output, looked = Folder.at(str(tmp_path)), runs.is_claimed

    def look_then_another_claims(*arguments):
        found = looked(*arguments)
        monkeypatch.setattr(runs, "is_claimed", looked)
        claim(output, {"config": "theirs", "digest": "1"})
        return found

    monkeypatch.setattr(runs, "is_claimed", look_then_another_claims)
    with pytest.raises(
        SettingsError, match="config is 'theirs' in that run and 'ours' in this one"
    ):
        claim(output, {"config": "ours", "digest": "2"})


def test_an_output_that_cannot_be_looked_at_is_not_taken_for_a_new_one(tmp_path, monkeypatch):
    folder = Folder.at(str(tmp_path))

    def stale(*_, **__):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(type(folder.fs), "info", stale)
    with pytest.raises(OSError, match="Stale"):
        folder.exists("run.json")


def test_a_scratch_file_of_a_killed_process_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name in (f"saff-{ended.pid}-x", f"saff-{os.getpid()}-x", "saff-cache-1000", "other"):
        (tmp_path / name).mkdir()
    storage._remove_leftovers.cache_clear()
    with storage._scratch() as draft:
        Path(draft).touch()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"saff-{os.getpid()}-x", "saff-cache-1000", "other"}


@pytest.mark.parametrize("write", ["write", "create"])
def test_content_and_name_are_synced_in_this_order(tmp_path, monkeypatch, write):
    calls = []

    def recorded(function, name):
        def call(*arguments, **options):
            target = arguments[0]
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target
            calls.append((name, os.path.basename(path).partition("-")[0]))
            return function(*arguments, **options)

        return call

    for name in ("fsync", "replace", "link"):
        monkeypatch.setattr(os, name, recorded(getattr(os, name), name))
    folder = Folder.at(str(tmp_path / "out"))
    getattr(folder, write)("part", b"content")
    named = "replace" if write == "write" else "link"
    assert [call for call, _ in calls] == ["fsync", named, "fsync"]
    assert calls[0][1].endswith(".tmp")  # the draft, before it has the name
    assert calls[2][1] == "out"  # the folder, once it has
