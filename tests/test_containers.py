"""Images in tar files and Parquet tables: listed, read by byte range, and labelled as files are."""

import csv
import io
import json
import os
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saff.access import Access
from saff.cluster import label_row
from saff.containers import InTable, InTar, image_column, list_tar, split_member
from saff.errors import SettingsError, UnreadableError
from saff.exports.run import Export, export_here
from saff.images import encode_png
from saff.lists import read_manifest
from saff.overwriting import refuse_inputs
from saff.sources import list_images
from saff.storage import Folder, read_bytes
from stored_runs import a_run, labelled

RNG = np.random.default_rng(17)
LOCAL = fsspec.filesystem("file")
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_tar(path, files):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_table(path, columns, metadata=None, row_group_size=3):
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=row_group_size)
    return path


def noise(size):
    return RNG.bytes(size)


def listed(source):
    return {row["image_id"]: row["uri"] for row in list_images(str(source))}


# One set of images from four kinds of source


@pytest.fixture(scope="module")
def files(corpus):
    """The photographs of the corpus and the files that are none, by id."""
    return {row["image_id"]: read_bytes(row["uri"]) for row in list_images(str(corpus))}


@pytest.fixture(scope="module")
def packed(files, tmp_path_factory):
    """The same as a tar file, a table and a list."""
    home = tmp_path_factory.mktemp("packed")
    write_tar(home / "all.tar", files)
    images = [{"bytes": data, "path": None} for data in files.values()]
    columns = {"image_id": list(files), "image": pa.array(images, PICTURE)}
    write_table(home / "all.parquet", columns)
    with open(home / "all.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "uri"])
        writer.writerows((i, f"files/{n}") for n, i in enumerate(files))
    (home / "files").mkdir()
    for number, data in enumerate(files.values()):
        (home / "files" / str(number)).write_bytes(data)
    return home


def rows_of(manifest, small):
    rows = {row["image_id"]: label_row(row["image_id"], row["uri"], small) for row in manifest}
    return {image_id: row | {"uri": None} for image_id, row in rows.items()}


def test_one_set_of_images_gives_equal_rows_from_all_kinds_of_source(corpus, packed, small):
    expected = rows_of(list_images(str(corpus)), small)
    assert {row["error_kind"] for row in expected.values()} > {None, "empty"}
    for manifest in (
        list_images(str(packed / "all.tar")),
        list_images(str(packed / "all.parquet")),
        read_manifest(str(packed / "all.csv")),
    ):
        found = rows_of(manifest, small)
        assert found.keys() == expected.keys()
        for image_id, row in expected.items():
            np.testing.assert_equal(found[image_id], row, image_id)


@pytest.mark.s3
def test_a_bucket_of_tars_and_tables_is_read_by_byte_range(packed, files, bucket, s3_other):
    for name in ("all.tar", "all.parquet"):
        s3_other.put_file(str(packed / name), f"{bucket}/{name}")
        found = listed(f"{bucket}/{name}")
        assert {image_id: read_bytes(uri) for image_id, uri in found.items()} == files
    s3_other.pipe_file(f"{bucket}/all.tar", b"cut short")
    uri = listed(packed / "all.tar")["rocket ü.png"].replace(str(packed), bucket)
    with pytest.raises(UnreadableError, match="ends early"):
        read_bytes(uri)


# Tar files


def test_what_lies_beside_the_image_of_a_sample_is_left_out(tmp_path):
    files = {
        "a/1.jpg": noise(10),
        "a/1.mask.png": noise(11),
        "a/1.json": b"{}",
        "a/1.cls": b"7",
        "photo.2020.jpg": noise(12),  # no sample has its key
        "./b.PNG": noise(600),
        "sub/": b"",
        "c.jpg.txt": b"",
    }
    path = write_tar(tmp_path / "x.tar", {n: d for n, d in files.items() if n != "sub/"})
    assert {
        name: path.read_bytes()[p.offset : p.offset + p.size]
        for name, p in list_tar(LOCAL, str(path))
    } == {
        "a/1.jpg": files["a/1.jpg"],
        "photo.2020.jpg": files["photo.2020.jpg"],
        "b.PNG": files["./b.PNG"],
    }


def test_ids_are_those_of_the_unpacked_folder(tmp_path):
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "train-0.tar", {"0.jpg": noise(9), "1.jpg": noise(9)})
    write_tar(tmp_path / "train-1.tar", {"0.jpg": noise(9)})
    (tmp_path / "plain.jpg").write_bytes(noise(9))
    (tmp_path / "table.parquet").write_bytes(b"beside")
    found = listed(tmp_path)
    assert list(found) == ["in/train-0/0.jpg", "in/train-0/1.jpg", "plain.jpg", "train-1/0.jpg"]
    assert list(listed(f"{tmp_path}/*.tar")) == ["train-1/0.jpg"]
    assert list(listed(tmp_path / "train-1.tar")) == ["0.jpg"]


def test_many_tars_are_listed_in_their_order(tmp_path):
    for number in range(100):
        write_tar(tmp_path / f"{number:03}.tar", {"b.jpg": b"", "a.jpg": b""})
        (tmp_path / f"{number:03}x.jpg").touch()
    expected = []
    for number in range(100):
        expected += [f"{number:03}/b.jpg", f"{number:03}/a.jpg", f"{number:03}x.jpg"]
    assert list(listed(tmp_path)) == expected


def test_long_and_odd_names_of_a_tar_are_whole(tmp_path):
    names = ["d" * 90 + "/" + "n" * 150 + ".jpg", "ü ñ.png", "a#offset=1&size=2.png"]
    path = write_tar(tmp_path / "odd #1.tar", {name: name.encode() for name in names})
    assert {i: read_bytes(uri).decode() for i, uri in listed(path).items()} == {n: n for n in names}


def test_a_tar_that_is_none_or_compressed_is_named(tmp_path):
    (tmp_path / "x.tar").write_bytes(noise(2000))
    with pytest.raises(SettingsError, match=r"x\.tar cannot be read as a tar file"):
        listed(tmp_path / "x.tar")
    (tmp_path / "y.tar.gz").write_bytes(noise(2000))
    with pytest.raises(SettingsError, match=r"y\.tar\.gz is a compressed tar file"):
        listed(tmp_path / "y.tar.gz")
    write_tar(tmp_path / "z.tar", {"../outside.jpg": b""})
    with pytest.raises(SettingsError, match=r"holds an image named '\.\./outside\.jpg'"):
        listed(tmp_path / "z.tar")


def test_a_tar_that_was_cut_since_makes_rows_with_errors(tmp_path, small, photographs):
    path = write_tar(tmp_path / "x.tar", {"a.png": encode_png(photographs["coffee"])})
    ((image_id, uri),) = listed(path).items()
    whole = path.read_bytes()
    path.write_bytes(whole[:5000])
    row = label_row(image_id, uri, small)
    assert (row["error_kind"], "ends early" in row["error"]) == ("not_readable", True)
    os.remove(path)
    assert label_row(image_id, uri, small)["error_kind"] == "not_found"


def test_a_file_whose_name_is_like_a_place_is_a_file(tmp_path):
    (tmp_path / "cat#1.jpg").write_bytes(b"a cat")
    assert {read_bytes(uri) for uri in listed(tmp_path).values()} == {b"a cat"}
    assert split_member(f"{tmp_path}/cat#1.jpg") == (f"{tmp_path}/cat#1.jpg", None)


@pytest.mark.parametrize(
    "place", [InTar(5, 10**12), InTable(2, 17, "a b.bytes"), InTable(0, 0, "ü#&")]
)
def test_a_place_is_written_and_read(place):
    ending = ".tar" if isinstance(place, InTar) else ".parquet"
    assert split_member(f"s3://b/x{ending}{place}") == (f"s3://b/x{ending}", place)


def test_an_image_inside_a_file_on_the_web_is_refused_without_a_download(small):
    row = label_row("a.jpg", "https://saff.invalid/x.tar#offset=0&size=9", small)
    assert row["error_kind"] == "not_readable"
    assert row["error"].endswith("not from the web")


# Tables


@pytest.mark.parametrize(
    ("columns", "metadata", "expected"),
    [
        ({"x": pa.string(), "image": PICTURE}, None, "image.bytes"),
        ({"mask": PICTURE, "image": PICTURE}, None, "image.bytes"),
        ({"picture": PICTURE, "n": pa.int64()}, None, "picture.bytes"),
        ({"jpg": pa.binary(), "json": pa.binary()}, None, "jpg"),
        ({"blob": pa.binary()}, {"blob": "Image"}, "blob"),
        ({"image": pa.binary(), "b": PICTURE}, {"b": "Image", "image": "Value"}, "b.bytes"),
        ({"confidence": pa.binary(), "uri": pa.string()}, None, None),
    ],
)
def test_the_column_of_images_is_found(columns, metadata, expected):
    about = None
    if metadata:
        features = {name: {"_type": kind} for name, kind in metadata.items()}
        about = {"huggingface": json.dumps({"info": {"features": features}})}
    assert image_column(pa.schema(list(columns.items()), metadata=about)) == expected


def test_values_of_a_table_are_read_in_any_order(tmp_path):
    values = [noise(size) for size in range(40)]
    path = write_table(tmp_path / "x.parquet", {"jpg": pa.array(values)}, row_group_size=15)
    found = listed(path)
    assert list(found) == [f"{number:08}" for number in range(40)]
    uris = list(found.values())
    for number in RNG.permutation(40):
        assert read_bytes(uris[number]) == values[number]
    assert [read_bytes(uri) for uri in uris] == values


def test_rows_without_bytes_and_tables_that_have_changed_are_images_at_fault(tmp_path, small):
    path = write_table(tmp_path / "x.parquet", {"jpg": pa.array([None, noise(9)], pa.binary())})
    uris = list(listed(path).values())
    row = label_row("0", uris[0], small)
    assert (row["error_kind"], row["error"]) == (
        "not_readable",
        "its Parquet file holds no bytes for it",
    )
    uri = uris[1].replace("x.parquet", "y.parquet")
    write_table(tmp_path / "y.parquet", {"jpg": pa.array(["a", "text"])})
    assert "a column of type string is none of images" in label_row("1", uri, small)["error"]
    (tmp_path / "y.parquet").write_bytes(b"nothing")
    assert "cannot be read" in label_row("1", uri, small)["error"]
    write_table(tmp_path / "y.parquet", {"jpg": pa.array([b"only"])})
    assert "it has no such row" in label_row("1", uri, small)["error"]


def test_a_list_or_a_table_without_images_is_named(tmp_path):
    path = write_table(tmp_path / "list.parquet", {"image_id": ["a"], "uri": ["a.jpg"]})
    with pytest.raises(
        SettingsError, match=r"no column of images among image_id, uri; .*--manifest"
    ):
        listed(path)
    path.write_text("image_id,uri")
    with pytest.raises(SettingsError, match="cannot be read as a Parquet file"):
        listed(path)


def test_an_image_larger_than_may_be_read_is_refused(tmp_path):
    tar = write_tar(tmp_path / "x.tar", {"a.jpg": noise(100)})
    table = write_table(tmp_path / "x.parquet", {"jpg": [noise(100)]})
    for path in (tar, table):
        ((_, uri),) = listed(path).items()
        with pytest.raises(UnreadableError, match="100 bytes"):
            read_bytes(uri, Access(largest=99))


# Beside the rest


def test_what_was_exported_is_read_again(tmp_path):
    rows = [labelled(tmp_path, f"{name}.png") for name in ("a", "b/c", "d")]
    output = a_run(tmp_path, rows, shard=2)
    for form, pattern in (("hugging-face", "data/*.parquet"), ("webdataset", "*.tar")):
        to = tmp_path / form
        export_here(Export(output=output, to=Folder.at(str(to)), format=form))
        found = {read_bytes(uri): image_id for image_id, uri in listed(f"{to}/{pattern}").items()}
        assert {read_bytes(row["uri"]) for row in rows} == found.keys()
        if form == "hugging-face":
            assert sorted(found.values()) == ["a.png", "b/c.png", "d.png"]


def test_a_tar_that_a_run_was_made_from_is_never_written_over(tmp_path):
    row = labelled(tmp_path, "a.png")
    tar = write_tar(tmp_path / "part-0000000.tar", {"a.png": b"x"})
    ((_, row["uri"]),) = listed(tar).items()
    output = a_run(tmp_path, [row])
    with pytest.raises(SettingsError, match="would be written over"):
        refuse_inputs(output, "pseudo_labels", lambda: [str(tar)])


class Boxed(pa.ExtensionType):
    """A type of somebody's own, as Ray registers some that are unpickled."""

    def __init__(self, storage):
        super().__init__(storage, "saff.tests.boxed")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage, _):
        return cls(storage)


@pytest.fixture
def boxed():
    pa.register_extension_type(Boxed(pa.string()))
    yield Boxed
    pa.unregister_extension_type("saff.tests.boxed")


def test_columns_of_types_of_their_own_are_never_read(tmp_path, boxed):
    ids = pa.ExtensionArray.from_storage(boxed(pa.string()), pa.array(["a"]))
    path = write_table(tmp_path / "x.parquet", {"jpg": [b"1"], "image_id": ids})
    with pytest.raises(SettingsError, match=r"column image_id is of type .*, expected text"):
        listed(path)
    images = pa.ExtensionArray.from_storage(boxed(pa.binary()), pa.array([b"1"]))
    path = write_table(tmp_path / "y.parquet", {"jpg": images})
    with pytest.raises(SettingsError, match="no column of images among jpg"):
        listed(path)
    with pytest.raises(UnreadableError, match="is none of images"):
        read_bytes(f"{path}{InTable(0, 0, 'jpg')}")
