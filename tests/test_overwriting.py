import os
import shutil
import unicodedata

import pytest

from saff.errors import SettingsError
from saff.overwriting import is_among_images, is_same_file, refuse_inputs
from saff.storage import Folder
from stored_runs import STAGE, a_run, failed, labelled

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Zürich") for form in ("NFC", "NFD"))


def a_photo(tmp_path, name):
    """A run of one photograph with this name; gives the run and the photograph's path."""
    path = tmp_path / "photos" / name
    row = labelled(tmp_path, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(row["uri"], path)
    return a_run(tmp_path, [row | {"uri": str(path)}]), path


def refuse(output, target):
    refuse_inputs(output, STAGE, lambda: [str(target)])


def linked(path, to):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)
    return path


def hard_link(path, to):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.hardlink_to(to)
    return path


WAYS = {  # from the photograph's path to another name of the same file
    "its own path": lambda photo: photo,
    "a path with steps back": lambda photo: f"{photo.parent}/../{photo.parent.name}/{photo.name}",
    "a link to its folder": lambda photo: (
        linked(photo.parent.parent / "to", photo.parent) / photo.name
    ),
    "a link to it": lambda photo: linked(photo.parent.parent / "to" / "a.png", photo),
    "a hard link": lambda photo: hard_link(photo.parent.parent / "to" / "a.png", photo),
    "capitals": lambda photo: photo.parent / photo.name.upper(),
    "a folder in capitals": lambda photo: photo.parent.parent / "PHOTOS" / photo.name,
    "an address": lambda photo: f"file://{photo}",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("vanished", [False, True])
def test_a_photograph_is_found_by_every_name(tmp_path, way, vanished):
    output, photo = a_photo(tmp_path, "cat.png")
    target = WAYS[way](photo)
    if vanished and "link to it" not in way and way != "a hard link":
        photo.unlink()  # its place is kept for it: it may come back
    with pytest.raises(SettingsError, match=rf"would be written over {photo}, from which this run"):
        refuse(output, target)
    refuse(output, tmp_path / "elsewhere" / "cat.png")


@pytest.mark.parametrize("stored", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("written", [COMPOSED, DECOMPOSED])
def test_the_ways_to_write_an_accent_are_one_name(tmp_path, stored, written):
    output, photo = a_photo(tmp_path, f"{stored}.png")
    with pytest.raises(SettingsError, match="would be written over"):
        refuse(output, photo.parent / f"{written}.png")


def test_where_the_link_of_a_photograph_leads_is_not_written_to(tmp_path):
    output, photo = a_photo(tmp_path, "cat.png")
    store = tmp_path / "store" / "x.png"
    store.parent.mkdir()
    photo.rename(store)
    photo.symlink_to(store)
    for target in (store, photo):
        with pytest.raises(SettingsError, match="would be written over"):
            refuse(output, target)
    store.unlink()  # also when the link is broken by now
    with pytest.raises(SettingsError, match="would be written over"):
        refuse(output, store)


def test_images_that_failed_or_are_not_labelled_yet_are_inputs(tmp_path, label_folder, corpus):
    output = label_folder(corpus, tmp_path / "run")
    for name in ("empty.jpg", "nested/text.png"):
        with pytest.raises(SettingsError, match="would be written over"):
            refuse(output, corpus / name)
    part = (output / STAGE).names(".parquet")[0]
    os.remove(f"{output.path}/{STAGE}/{part}")  # not labelled yet
    for name in ("empty.jpg", "astronaut ü.png", "nested/coffee ü.png"):
        with pytest.raises(SettingsError, match="would be written over"):
            refuse(output, corpus / name)


def test_the_list_of_the_images_is_an_input(tmp_path):
    output = a_run(tmp_path, [failed("a.jpg")])
    (tmp_path / "list.csv").write_text("image_id,uri\na.jpg,/x\n")
    run = '{"source": "manifest %s", "digest": "0"}' % (tmp_path / "list.csv")
    output.write("run.json", run.encode())
    with pytest.raises(SettingsError, match=r"would be written over .*list\.csv"):
        refuse(output, tmp_path / "list.csv")


@pytest.mark.parametrize(
    "place",
    ["run.json", "manifest/a.png", "pseudo_labels/a.png", "report/x/a.png", "network/a.png"],
)
@pytest.mark.parametrize("by_link", [False, True])
def test_the_results_of_the_run_are_no_place_for_pictures(tmp_path, place, by_link):
    output = a_run(tmp_path, [failed("a.jpg")])
    root = linked(tmp_path / "link", output.path) if by_link else output.path
    with pytest.raises(SettingsError, match="lies among the results of the run itself"):
        refuse(output, f"{root}/{place}")
    refuse(output, f"{root}/pictures/a.png")


def test_an_output_inside_the_images_may_hold_pictures(tmp_path, label_folder, photographs):
    from saff.images import encode_png

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.png").write_bytes(encode_png(photographs["chelsea"]))
    output = label_folder(photos, photos / "run")
    refuse(output, photos / "run" / "pictures" / "cat.png")
    with pytest.raises(SettingsError, match="would be written over"):
        refuse(output, photos / "run" / ".." / "cat.png")


def test_objects_are_compared_by_their_address(tmp_path):
    row = labelled(tmp_path, "cat.png") | {"uri": "s3://bucket/photos/cat.png"}
    output = a_run(tmp_path, [row, row | {"image_id": "web", "uri": "https://host/web.png?x=1"}])
    with pytest.raises(SettingsError, match=r"would be written over s3://bucket/photos/cat\.png"):
        refuse(output, "s3://bucket/photos/cat.png")
    refuse(output, "s3://bucket/photos/Cat.png")  # another object
    refuse(output, "s3://bucket/masks/cat.png")


def test_a_strange_address_in_a_row_keeps_nothing_from_being_written(tmp_path):
    rows = [failed(f"{n}.jpg") | {"uri": uri} for n, uri in enumerate(["", "x://", "nul\0", "a"])]
    refuse(a_run(tmp_path, rows), tmp_path / "to" / "a.png")


def test_targets_that_exist_and_are_no_inputs_are_no_hindrance(tmp_path):
    output, _ = a_photo(tmp_path, "cat.png")
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "cat.png").write_bytes(b"an earlier export")
    refuse(output, tmp_path / "to" / "cat.png")


def test_a_place_among_the_images_is_known(tmp_path, label_folder, corpus):
    photos = tmp_path / "photos"
    shutil.copytree(corpus, photos)
    output = label_folder(photos, photos / "run")
    (tmp_path / "link").symlink_to(photos)
    for place in ("photos", "photos/masks", "photos/nested", "link/new", "photos/run/../masks"):
        assert is_among_images(output, f"{tmp_path}/{place}"), place
    for place in ("masks", "photos2", "photos/run/masks", "link/run/masks", "photos/run"):
        assert not is_among_images(output, f"{tmp_path}/{place}"), place
    output.write("run.json", b'{"source": "manifest %s"}' % bytes(photos))
    assert not is_among_images(output, f"{photos}/masks")


def test_two_names_of_one_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "hard.png").hardlink_to(tmp_path / "a.png")
    one = str(tmp_path / "a.png")
    back = f"../{tmp_path.name}/a.png"
    for name in ("a.png", "./a.png", "A.PNG", "link.png", "hard.png", back):
        other = f"{tmp_path}/{name}"
        assert is_same_file(one, other), name
        assert is_same_file(other, one), name
    for name in ("b.png", "a.png/b.png", "sub/a.png"):
        assert not is_same_file(one, f"{tmp_path}/{name}"), name
    assert not is_same_file(one, "s3://bucket/a.png")
    assert is_same_file("s3://bucket/a.png", "s3://bucket/a.png")


def test_an_output_that_is_no_run_is_named(tmp_path):
    with pytest.raises(SettingsError, match="is not the output of a run"):
        refuse(Folder.at(str(tmp_path)), tmp_path / "a.png")
