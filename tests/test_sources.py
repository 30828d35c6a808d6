"""Folders of images: what lies in an output is no input, and what is no image is left out."""

import os

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from saff.errors import SettingsError
from saff.manifests import extend_manifest
from saff.sources import list_images
from saff.storage import Folder


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def ids(source, output=None):
    return [row["image_id"] for row in list_images(str(source), output)]


# The output


def test_what_lies_in_an_output_is_no_image_however_it_is_reached(tmp_path):
    photos = fill(tmp_path / "photos", "a.jpg", "b/c.jpg")
    out = photos / "runs" / "1"
    fill(out, "masks/a.png", "pseudo_labels/part-0000000.parquet", "report/x.png", "z.png")
    (photos / "link").symlink_to(out)
    (photos / "inner").symlink_to(out / "masks")
    (photos / "mask.png").symlink_to(out / "masks" / "a.png")
    (photos / "up").symlink_to(photos / "runs")
    (photos / "b" / "good").symlink_to(photos / "a.jpg")
    for name in (out, photos / "link", f"{photos}/b/../runs/1"):
        assert ids(photos, Folder.at(str(name))) == ["a.jpg", "b/c.jpg", "b/good"]
    found = ids(f"{photos}/**/*.*g", Folder.at(str(out)))
    assert found == ["a.jpg", "b/c.jpg"]


def test_a_folder_beside_an_output_that_begins_with_its_name_is_listed(tmp_path):
    photos = fill(tmp_path, "out/a.png", "out2/b.png")
    assert ids(photos, Folder.at(str(photos / "out"))) == ["out2/b.png"]


def test_images_in_a_folder_of_their_output_are_images(tmp_path):
    fill(tmp_path / "out", "photos/a.jpg", "masks/a.png")
    assert ids(tmp_path / "out" / "photos", Folder.at(str(tmp_path / "out"))) == ["a.jpg"]


def test_an_output_that_is_the_folder_of_images_is_refused(tmp_path):
    photos = fill(tmp_path / "photos", "a.jpg")
    (tmp_path / "link").symlink_to(photos)
    for name in (photos, tmp_path / "link"):
        with pytest.raises(SettingsError, match="is the folder of the images itself"):
            list_images(str(photos), Folder.at(str(name)))


def test_what_lies_in_an_output_of_a_store_is_no_image(tmp_path):
    store = Folder.at(f"memory://{tmp_path.name}")
    for name in ("a.jpg", "out/masks/a.png", "out2/b.jpg"):
        store.write(name, b"x")
    assert ids(store.uri, store / "out") == ["a.jpg", "out2/b.jpg"]
    assert ids(store.uri, Folder.at(str(tmp_path))) == ["a.jpg", "out/masks/a.png", "out2/b.jpg"]
    MemoryFileSystem.store.clear()


def test_an_export_into_the_output_brings_no_new_image(tmp_path):
    photos = fill(tmp_path, "plain.png")
    output = Folder.at(str(photos / "out"))
    assert extend_manifest(output, list_images(str(photos), output)).added == 1
    fill(photos / "out" / "masks", "plain.png")
    assert extend_manifest(output, list_images(str(photos), output)).added == 0


# What is no image


def test_files_beside_images_are_left_out_and_counted(tmp_path, caplog):
    photos = fill(tmp_path, "a.jpg", "a.json", "b/b.png", "b/b.TXT", "c.xml", "d.json", "noext")
    assert ids(photos) == ["a.jpg", "b/b.png", "noext"]
    (said,) = caplog.messages
    assert "4 files are no images by their names and left out: .json 2, .txt 1, .xml 1" in said


def test_a_file_that_is_named_is_listed_whatever_its_name(tmp_path):
    photos = fill(tmp_path, "a.txt", "b.txt", "c.jpg")
    assert ids(photos / "a.txt") == ["a.txt"]
    assert ids(photos / "*.txt") == ["a.txt", "b.txt"]
    assert ids(photos / "*") == ["c.jpg"]


def test_a_folder_of_other_files_alone_has_no_images(tmp_path):
    fill(tmp_path, "a.json", "b.txt")
    with pytest.raises(SettingsError, match="no images in"):
        list_images(str(tmp_path))


def refuse_listing(monkeypatch, *names):
    """Nobody may list these folders; a test may run as root, who may list everything."""
    scandir, access = os.scandir, os.access

    def scan(path):
        if os.path.basename(path) in names:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(
        os, "access", lambda path, mode: os.path.basename(path) not in names and access(path, mode)
    )


def test_what_a_disk_keeps_for_itself_is_passed_over(tmp_path, monkeypatch):
    photos = fill(tmp_path, "a.jpg", "lost+found/#1", "sub/lost+found/#2", "z/b.jpg")
    assert ids(photos) == ["a.jpg", "lost+found/#1", "sub/lost+found/#2", "z/b.jpg"]
    refuse_listing(monkeypatch, "lost+found")
    assert ids(photos) == ["a.jpg", "z/b.jpg"]


def test_any_other_folder_that_nobody_may_list_is_named(tmp_path, monkeypatch):
    photos = fill(tmp_path, "a.jpg", "secret/b.jpg")
    refuse_listing(monkeypatch, "secret")
    with pytest.raises(Exception, match=r"Permission denied.*secret"):
        ids(photos)


def test_a_photograph_that_two_paths_reach_is_two_images(tmp_path):
    fill(tmp_path, "2024/a.jpg")
    (tmp_path / "best").symlink_to(tmp_path / "2024")
    (tmp_path / "copy.jpg").symlink_to(tmp_path / "2024" / "a.jpg")
    rows = list(list_images(str(tmp_path)))
    assert [row["image_id"] for row in rows] == ["2024/a.jpg", "best/a.jpg", "copy.jpg"]
    assert [row["uri"] for row in rows] == [f"{tmp_path}/{row['image_id']}" for row in rows]
