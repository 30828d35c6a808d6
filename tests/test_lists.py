"""Lists of images: read whole, or refused with the line and what stands there."""

import csv
import gzip
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import assume, given, settings, strategies as st

from odd_server import serve
from saff import lists
from saff.access import Access
from saff.errors import SettingsError
from saff.lists import read_manifest
from saff.storage import Folder


def read(path, access=None):
    return [(row["image_id"], row["uri"]) for row in read_manifest(str(path), access or Access())]


def refusal(path, access=None):
    with pytest.raises(SettingsError) as caught:
        read(path, access)
    return str(caught.value).replace(str(path), "LIST")


@pytest.fixture
def write(tmp_path):
    """Write a list: ``write(text)`` gives its path."""

    def write_list(text, name="list.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return write_list


# What is read rightly


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"], ids=["comma", "tab", "semi", "bar"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_spreadsheets_write_lists_in_many_ways(write, tmp_path, encoding, delimiter, ending):
    lines = [("image_id", "note", "uri"), ("ü.jpg", "a cat", "1.jpg"), ("7", "", "/x/b c.jpg")]
    text = "".join(delimiter.join(line) + ending for line in lines)
    path = write(text, encoding=encoding)
    assert read(path) == [("ü.jpg", f"{tmp_path}/1.jpg"), ("7", "/x/b c.jpg")]


def test_spaces_around_column_names_go_and_with_them_those_around_values(write, tmp_path):
    expected = [("0.jpg", f"{tmp_path}/0.jpg"), ("1.jpg", f"{tmp_path}/1, 2.jpg")]
    for text in (
        'image_id, uri\n0.jpg, 0.jpg\n1.jpg, "1, 2.jpg"\n',
        ' image_id , uri \n 0.jpg , 0.jpg \n 1.jpg ,"1, 2.jpg"\n',
    ):
        assert read(write(text)) == expected


def test_long_and_several_lines_beside_an_address_are_read(write):
    long = "x" * 1_000_000
    text = f'image_id,uri,caption\na,/1.jpg,{long}\nb,/2.jpg,"a cat,\nasleep, or so\n\n2.5 years"\n'
    assert read(write(text)) == [("a", "/1.jpg"), ("b", "/2.jpg")]


def test_lines_without_anything_are_passed_over(write, tmp_path):
    path = write("\nimage_id,uri\n\na,0.jpg\n,\n  \nb,1.jpg\n,\n\n")
    assert read(path) == [("a", f"{tmp_path}/0.jpg"), ("b", f"{tmp_path}/1.jpg")]


def test_a_row_without_an_address_is_one_and_the_rest_is_read(write, tmp_path):
    assert read(write("image_id,uri\na,\nb,1.jpg\n")) == [("a", ""), ("b", f"{tmp_path}/1.jpg")]
    table = pa.table({"image_id": ["a", "b"], "uri": [None, "/1.jpg"]})
    pq.write_table(table, tmp_path / "list.parquet")
    assert read(tmp_path / "list.parquet") == [("a", ""), ("b", "/1.jpg")]


@pytest.mark.parametrize("kind", [pa.int8(), pa.int64(), pa.uint32()])
def test_whole_numbers_are_names(tmp_path, kind):
    table = pa.table({"image_id": pa.array([1, 20], kind), "uri": ["/1.jpg", "/20.jpg"]})
    pq.write_table(table, tmp_path / "list.parquet")
    assert read(tmp_path / "list.parquet") == [("1", "/1.jpg"), ("20", "/20.jpg")]


def test_addresses_are_kept_as_they_mean(write):
    uris = {
        "HTTP://Host/A%2fb?Sig=1": "http://Host/A%2fb?Sig=1",
        "S3://bucket/Key": "s3://bucket/Key",
        "file:///photos/sp%20ace.jpg": "/photos/sp ace.jpg",
        "file://localhost/photos/a.jpg": "/photos/a.jpg",
        "/photos/50%41.jpg": "/photos/50%41.jpg",
    }
    path = write("image_id,uri\n" + "".join(f"{n},{uri}\n" for n, uri in enumerate(uris)))
    assert [uri for _, uri in read(path)] == list(uris.values())


def test_a_list_is_known_by_its_content_not_by_its_name(tmp_path, write):
    pq.write_table(pa.table({"image_id": ["a"], "uri": ["/a"]}), tmp_path / "list.bin")
    assert read(tmp_path / "list.bin") == [("a", "/a")]
    assert read(write("image_id\turi\na\t/a\n", "list.tsv")) == [("a", "/a")]
    assert read(write("PK,image_id,uri\n1,a,/a\n", "list.zip")) == [("a", "/a")]


FIELDS = st.text(
    st.characters(blacklist_characters="\r\n\0", blacklist_categories=["Cs"]), min_size=1
).filter(lambda text: text == text.strip() and "/" not in text and text not in (".", ".."))


@given(st.lists(st.tuples(FIELDS, FIELDS, st.text("a,\n\"b '", max_size=9)), min_size=1))
@settings(deadline=None)
def test_what_a_program_writes_is_read_whole_or_refused(tmp_path_factory, rows):
    """The csv module is the oracle of what stands in the file."""
    assume(all(not uri.startswith(tuple("abcdefghijklmnopqrstuvwxyz")) for _, uri, _ in rows))
    text = io.StringIO()
    csv.writer(text).writerows([("image_id", "uri", "caption"), *rows])
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_bytes(text.getvalue().encode())
    try:
        found = [image_id for image_id, _ in read(path)]
    except SettingsError as error:
        refused = str(error)
        found = []
    else:
        refused = ""
    assert "line" in refused or found == [image_id for image_id, _, _ in rows]


# What is refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            'id\n1,1.jpg,"hello\n2,2.jpg,x\n3,3.jpg,"bye" she said\n',
            ["line 2", "'1,1.jpg,\"h"],
        ),
        ('id\n1,1.jpg,a\n2,"2.jpg,x\n3,3.jpg,y\n', ["line 3", "'2,\"2.jpg,x'"]),
        ('id\n"1,1.jpg,x\n2,2.jpg,y\n', ["line 2", "'\"1,1.jpg,x'"]),
        (
            'id\n1,1.jpg,"one\n2,2.jpg,two\n3,3.jpg,three"\n',
            ["line 2 to line 4", "'1,1.jpg,\"o"],
        ),
        (
            'id\n1,1.jpg,"one\n2,2.jpg\n3,3.jpg",\n',
            ["line 2 to line 4", "look like rows", "'1,1.jpg,\"o"],
        ),
        (
            'id\n1,1.jpg,"one\n2,https://host/2\n"\n',
            ["line 2 to line 4", "look like rows"],
        ),
        ("id\n1,1.jpg,x\nid\n2,2.jpg,x\n", ["column names a second time in line 3"]),
        ("id\n1,1.jpg,x\n\ufeffid\n2,2.jpg,x\n", ["column names a second time in line 3"]),
        ("id\n1,1.jpg\u200b,x\n", ["line 2", r"the uri '1.jpg\u200b'", "without width"]),
        ("id\n1,1.jpg,x\n\ufeff2,2.jpg,x\n", ["line 3", r"the image_id '\ufeff2'"]),
        ("id\n\u200b,1.jpg,x\n", ["line 2", r"'\u200b'"]),
        ("id\n1,1.jpg,x\n2,2.jpg,x,y\n", ["4 fields in line 3", "expected 3", "'y'"]),
        ("id\n1,1.jpg,x\n2\n", ["line 3", "'2'"]),
        ("id\n1,1.jpg\n,2.jpg,x\n", ["line 3", "image_id=''"]),
        ("id\n\n1, 1.jpg,x\n", ["line 3", "the uri ' 1.jpg'"]),
        ('id\n1,"1\n.jpg",x\n', ["line 2", r"'1\n.jpg'"]),
        ("id\n../1,1.jpg,x\n", ["line 2", "image_id='../1'"]),
        ("id\n1,C:\\photos\\1.jpg,x\n", ["line 2", "a path of Windows"]),
        ("id\n1,s3:/bucket/1.jpg,x\n", ["line 2", "expected s3://bucket/1.jpg"]),
        ("id\n1,zip://1::s3://bucket/x,x\n", ["line 2", "chains protocols"]),
        ("id\n1,x://bucket/1,x\n", ["line 2", "x://bucket/1"]),
        ("image_id,uri,uri\n1,2,3\n", ["the column uri twice", "'image_id', 'uri', 'uri'"]),
        ("image_id;url\n1;2\n", ["no column uri", "'image_id', 'url'"]),
        ("image_id,URI\n1,2\n", ["no column uri", "'image_id', 'URI'"]),
    ],
)
def test_the_line_and_what_stands_there_are_named(write, text, words):
    said = refusal(write(text.replace("id\n", "image_id,uri,caption\n")))
    for word in words:
        assert word in said


def test_a_line_that_is_not_utf_8_is_named(write):
    said = refusal(write("image_id,uri\na,1.jpg\nb,ü.jpg\n", encoding="latin-1"))
    assert said == r"the manifest LIST is not UTF-8 in line 3: 'b,\xfc.jpg'; save it as UTF-8"


@pytest.mark.parametrize(
    ("pack", "words"),
    [(gzip.compress, "is compressed by gzip"), (lambda text: b"PK\3\4" + text, "a ZIP file or")],
)
def test_a_list_that_is_packed_is_named(write, pack, words):
    said = refusal(write(pack(b"image_id,uri\na,1.jpg\n"), "list.csv.gz"))
    assert words in said
    assert "expected CSV or Parquet" in said


@pytest.mark.parametrize("kind", [pa.float64(), pa.bool_(), pa.binary()])
def test_names_of_another_kind_are_refused(tmp_path, kind):
    table = pa.table({"image_id": pa.array([1, 0]).cast(pa.string()).cast(kind), "uri": ["a", "b"]})
    pq.write_table(table, tmp_path / "list.parquet")
    assert "image_id must be text or a whole number" in refusal(tmp_path / "list.parquet")


def test_many_lines_before_a_fault_are_counted(write):
    lines = [f'{n},{n}.jpg,"one\nof two"' if n % 7 == 0 else f"{n},{n}.jpg,x" for n in range(5000)]
    good = "image_id,uri,caption\n" + "".join(f"{line}\n" for line in lines)
    assert len(read(write(good))) == 5000
    bad = good + '9999,9999.jpg,"x" y\n'
    assert f"begins in line {good.count(chr(10)) + 1}" in refusal(write(bad))


def test_rows_that_nobody_reads_to_the_end_may_outlive_their_file(write):
    """As where the interpreter collects both together, in any order."""
    with open(write("image_id,uri\n1,a.jpg\n2,b.jpg\n"), "rb") as file:
        rows = lists._text_rows(file)
        assert next(rows)[1:3] == ("1", "a.jpg")
    rows.close()


# Folders


def put(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_nested_rows_of_a_partitioned_list_are_kept(tmp_path):
    folder = tmp_path / "list"
    put(folder / "y.parquet", image_id=["y"], uri=["y.jpg"])
    put(folder / "part=1" / "x.parquet", image_id=["x"], uri=["x.jpg"])
    put(folder / "part=2" / "day=3" / "z.PARQUET", image_id=["z"], uri=["/z.jpg"])
    put(tmp_path / "elsewhere" / "w.parquet", image_id=["w"], uri=["w.jpg"])
    (folder / "part=9").symlink_to(tmp_path / "elsewhere")
    put(folder / "_temporary" / "no.parquet", image_id=["no"], uri=["no"])
    put(folder / ".hidden.parquet", image_id=["no"], uri=["no"])
    (folder / "_SUCCESS").touch()
    (folder / "part=1" / ".x.parquet.crc").touch()
    assert sorted(read(folder)) == [
        ("w", f"{folder}/w.jpg"),
        ("x", f"{folder}/x.jpg"),
        ("y", f"{folder}/y.jpg"),
        ("z", "/z.jpg"),
    ]


def test_nested_rows_in_a_store_are_kept(tmp_path):
    store = Folder.at(f"memory://{tmp_path.name}/list")
    for name in ("a", "part=1/b", "part=1/part=2/c"):
        table = pa.BufferOutputStream()
        pq.write_table(pa.table({"image_id": [name[-1]], "uri": [f"{name[-1]}.jpg"]}), table)
        store.write(f"{name}.parquet", table.getvalue().to_pybytes())
    found = read(store.uri, Access.of_source(store.uri))
    assert sorted(found) == [(name, f"{store.uri}/{name}.jpg") for name in "abc"]
    MemoryFileSystem.store.clear()


def test_a_folder_whose_rows_would_be_lost_is_refused(tmp_path):
    put(tmp_path / "a.parquet", image_id=["a"], uri=["a.jpg"])
    (tmp_path / "more.csv").write_text("image_id,uri\nb,b.jpg\n")
    assert "'more.csv' the first" in refusal(tmp_path)
    (tmp_path / "more.csv").unlink()
    put(tmp_path / "image_id=b" / "b.parquet", uri=["b.jpg"])
    assert "partitioned by image_id or uri ('image_id=b/b.parquet')" in refusal(tmp_path)


def test_a_row_of_a_nested_file_is_named_with_its_file(tmp_path):
    put(tmp_path / "part=1" / "x.parquet", image_id=["a", None], uri=["a.jpg", "b.jpg"])
    said = refusal(tmp_path)
    assert "has in row 2 of part=1/x.parquet the row image_id=None" in said
    put(tmp_path / "part=1" / "x.parquet", image=["a"], uri=["a.jpg"])
    assert "of part=1/x.parquet has no column image_id" in refusal(tmp_path)


# What a list may name


def access_of(path, **options):
    return Access.of_source(str(path), **options)


def test_a_list_of_this_machine_names_files_the_web_and_object_stores(write):
    uris = ["/a.jpg", "a.jpg", "file:///a.jpg", "s3://b/a", "https://h/a", "http://h/a?sig=1"]
    path = write("image_id,uri\n" + "".join(f"{n},{uri}\n" for n, uri in enumerate(uris)))
    assert len(read(path, access_of(path))) == len(uris)
    path = write("image_id,uri\na,memory://host/a.jpg\n")
    assert "is an address memory://" in refusal(path, access_of(path))
    assert "--allow-scheme memory" in refusal(path, access_of(path))
    assert read(path, access_of(path, schemes=["Memory"])) == [("a", "memory://host/a.jpg")]


def test_a_list_from_the_web_names_no_file_of_this_machine(monkeypatch):
    for uri in ("/etc/passwd", "file:///etc/passwd", "FILE://localhost/etc/passwd"):
        with serve(f"image_id,uri\na,{uri}\n".encode()) as server:
            source = f"{server.url}/list.csv"
            said = refusal(source, access_of(source))
            assert "is a file of this machine, which a list from elsewhere may not name" in said
            assert read(source, access_of(source, schemes=["file"])) == [("a", "/etc/passwd")]


def test_relative_addresses_count_from_a_list_on_the_web():
    uris = ["a.jpg", "b/c d.jpg", "../up.jpg", "https://other/x.jpg"]
    text = "image_id,uri\n" + "".join(f"{n},{uri}\n" for n, uri in enumerate(uris))
    with serve(text.encode()) as server:
        source = f"{server.url}/lists/list.csv"
        assert [uri for _, uri in read(source, access_of(source))] == [
            f"{server.url}/lists/a.jpg",
            f"{server.url}/lists/b/c d.jpg",
            f"{server.url}/up.jpg",
            "https://other/x.jpg",
        ]
