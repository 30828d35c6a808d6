"""Paths and URIs: which are read as what, and which are refused by name."""

import os
from pathlib import Path

import pytest
from hypothesis import assume, given, settings, strategies as st

from saff.addresses import (
    expand_home,
    local_path,
    locate,
    plain_uri,
    split_uri,
    web_address,
)
from saff.errors import SettingsError
from saff.sources import list_images
from saff.storage import Folder, read_bytes

NAMES = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda name: name not in (".", "..") and len(name.encode()) <= 60)


def refusal(call, *arguments, **options):
    with pytest.raises(SettingsError) as caught:
        call(*arguments, **options)
    return str(caught.value)


# Files of this machine


@given(st.lists(NAMES, min_size=1, max_size=3))
@settings(deadline=None)
def test_a_path_and_its_uri_as_pathlib_writes_it_are_the_same(names):
    path = Path("/", *names)
    assume(not str(path).startswith("//"))
    uri = path.as_uri()
    spelled = [uri, uri.replace("file://", "FILE://localhost"), uri.replace("file://", "file:")]
    for uri in spelled:
        assert plain_uri(uri) == str(path)
        assert locate(uri) == locate(str(path))


@given(st.binary(min_size=1, max_size=12).filter(lambda b: b"/" not in b and b"\0" not in b))
def test_names_that_are_no_text_are_read_from_their_uri(name):
    path = Path(os.fsdecode(b"/photos/" + name))
    assume(name not in (b".", b".."))
    assert os.fsencode(plain_uri(path.as_uri())) == b"/photos/" + name


def test_a_file_is_read_by_its_uri(tmp_path):
    path = tmp_path / "50%41 ü#?.jpg"
    path.write_bytes(b"x")
    host = path.as_uri().replace("file://", "file://LocalHost")
    for uri in (str(path), path.as_uri(), host):
        assert read_bytes(uri) == b"x"
        assert [row["uri"] for row in list_images(uri)] == [str(path)]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("file://nas/photos/a.jpg", "names the file of another machine, 'nas'"),
        ("file:photos/a.jpg", "names no file"),
        ("file://", "names no file"),
        ("file:///a%00.jpg", "names no file"),
        ("file:///C:/photos/a.jpg", "is a file of Windows"),
        ("file://localhost/C:/photos", "is a file of Windows"),
        (r"C:\photos\a.jpg", "is a path of Windows"),
        ("d:/photos", "is a path of Windows"),
        (r"\\server\photos", "is a path of Windows"),
    ],
)
def test_files_of_other_machines_are_refused_by_name(uri, words):
    said = refusal(locate, uri)
    assert said.startswith(uri)
    assert words in said


# The home folder


def test_a_home_folder_that_the_shell_left_is_put_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Folder.at("~/runs/1").uri == f"{tmp_path}/runs/1"
    assert Folder.at("~").uri == str(tmp_path)
    assert Folder.at("~.jpg").uri.endswith("/~.jpg")
    assert Folder.at("a/~/b").uri.endswith("/a/~/b")
    assert locate("~/a.jpg", signed=True)[1].endswith("/~/a.jpg")  # a row of a list


def test_a_home_folder_that_is_not_there_is_named(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # no entry, as in a container
    assert "no home folder is known; set HOME" in refusal(expand_home, "~/runs")


# Schemes


@pytest.mark.parametrize("scheme", ["s3", "http", "https", "memory"])
def test_schemes_are_read_in_capitals(scheme):
    uri = f"{scheme}://place/Cats/Å.jpg"
    for spelled in (uri, uri.replace(scheme, scheme.upper()), uri.replace(scheme, scheme.title())):
        assert plain_uri(spelled) == uri
        fs, path = locate(spelled)
        assert (type(fs), path) == (type(locate(uri)[0]), locate(uri)[1])


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("s3:/bucket/a", "s3://bucket/a"),
        ("S3:/bucket/a", "s3://bucket/a"),
        ("s3:bucket/a", "s3://bucket/a"),
        ("https:/host/a", "https://host/a"),
        ("http:host/a", "http://host/a"),
        ("gs:/b/a", "gs://b/a"),
        ("nfs:/share/a", "nfs://share/a"),
    ],
)
def test_one_slash_is_refused_with_what_was_meant(uri, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refusal(Folder.at, uri)
    assert said.startswith(f"{uri} is no address")
    assert f"expected {meant}, or ./{uri}" in said
    assert not list(tmp_path.iterdir())
    assert Folder.at(f"./{uri}").uri == f"{tmp_path}/{uri}"


@pytest.mark.parametrize("uri", ["s3:/key:secret@bucket/a", "https:/host/a?signature=secret"])
def test_what_is_secret_in_a_wrong_address_is_not_repeated(uri):
    assert "secret" not in refusal(locate, uri)
    assert "secret" not in refusal(locate, uri, signed=True)


@pytest.mark.parametrize("uri", ["foo://x/y", "s4://bucket", "photos://a/b.jpg"])
def test_an_unknown_scheme_is_named(uri):
    scheme = uri.partition(":")[0]
    assert refusal(locate, uri) == f"cannot open {uri}: Protocol not known: {scheme}"


def test_a_scheme_without_a_place_is_named():
    assert refusal(locate, "s3://").startswith("s3:// names no place")


@pytest.mark.parametrize(
    "uri",
    [
        "zip://a.jpg::s3://bucket/all.zip",
        "simplecache::s3://bucket/a.jpg",
        "FileCache::https://host/a.jpg",
        "tar://a::http://host/a.tar",
        "memory://a::file:///etc/passwd",
    ],
)
def test_chained_protocols_are_refused(uri):
    for signed in (False, True):
        assert f"{uri} chains protocols" in refusal(locate, uri, signed=signed)


@pytest.mark.parametrize(
    "name", ["a::b.jpg", "c:d&e=f;g+h.jpg", "x:y", "[::1]", "photos/s3://a", "a b:c.jpg"]
)
def test_names_with_colons_are_files(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_uri(name, signed=True) == ("file", name)


# Web addresses


@given(st.text("abc%/?&=+'()~*!$,;:@\"<>|{}^`\\[]", max_size=30))
def test_an_address_is_sent_letter_by_letter(text):
    assert web_address(f"https://host/{text}") == f"https://host/{text}"


@given(st.text(max_size=20))
def test_no_address_breaks_the_line_of_a_request(text):
    try:
        sent = web_address(f"https://host/{text}")
    except UnicodeEncodeError:  # half a surrogate pair is no text
        return
    assert sent.isascii()
    assert sent.isprintable()
    assert " " not in sent


# Files that only this machine can hold


def test_a_path_of_this_machine_is_one_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/a.png") == tmp_path / "a.png"
    assert local_path("file:///a%20b.png") == Path("/a b.png")
    assert local_path("a/b.png") == Path("a/b.png")


@pytest.mark.parametrize("text", ["s3://b/a.png", "s3:/b/a.png", "https://h/a.png", "C:/a.png"])
def test_another_place_is_no_path_of_this_machine(text):
    assert refusal(local_path, text).startswith("expected a path of this machine")
