"""Whose fault it is that an image cannot be read: its address, its store, or this machine."""

import io
import itertools
import socket

import numpy as np
import PIL.Image
import pytest

from odd_server import serve
from saff.access import ANYTHING, Access
from saff.cluster import image_reading
from saff.cluster.image_reading import ImageReader, sample_manifest
from saff.errors import ImageError, StorageError
from saff.manifests import extend_manifest
from saff.storage import Folder


def picture():
    stream = io.BytesIO()
    PIL.Image.fromarray(np.full((8, 9, 3), 99, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


DATA = picture()
ADDRESS_FAULTS = {
    "loop": "not_readable",
    "nowhere": "not_readable",
    "401": "not_readable",
    "403": "not_readable",
    "404": "not_found",
    "410": "not_found",
    "451": "not_readable",
    "500": "not_readable",
    "503": "not_readable",
    "520": "not_readable",
    "short": "not_readable",
    "badgzip": "not_readable",
    "reset": "not_readable",
    "garbage": "not_readable",
    "drip": "not_readable",
}


@pytest.fixture
def server():
    with serve(DATA) as running:
        yield running


@pytest.fixture(autouse=True)
def a_new_process(monkeypatch):
    """What a process remembers of stores is forgotten; nothing is waited for long."""
    image_reading._stores.clear()
    sample_manifest.cache_clear()
    monkeypatch.setenv("SAFF_STORAGE_PATIENCE", "0.3")
    monkeypatch.setattr(image_reading, "PROBE_SECONDS", 2.0)


@pytest.fixture
def dead():
    """Address of a port on which nobody listens: ``http://127.0.0.1:PORT``."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def run_of(tmp_path):
    """Reader of a run whose manifest has these addresses."""
    numbers = itertools.count()

    def reader(*uris, access=ANYTHING):
        output = Folder.at(str(tmp_path / f"run{next(numbers)}"))
        extend_manifest(output, ({"image_id": f"{n}", "uri": u} for n, u in enumerate(uris)))
        return ImageReader(access, output)

    return reader


def fault(reader, uri):
    with pytest.raises(ImageError) as caught:
        reader.read(uri)
    assert uri not in str(caught.value)
    return caught.value.kind


@pytest.mark.parametrize("kind", ADDRESS_FAULTS)
def test_one_address_is_at_fault_where_its_server_gives_others(server, run_of, kind):
    good, bad = f"{server.url}/a", f"{server.url}/{kind}"
    reader = run_of(good, bad, f"{server.url}/c", access=Access(private=True, seconds=0.5))
    assert fault(reader, bad) == ADDRESS_FAULTS[kind]
    assert reader.read(good) == DATA


def test_one_address_is_at_fault_even_where_it_is_read_first_and_alone_in_its_part(server, run_of):
    uris = [f"{server.url}/500", *(f"{server.url}/{n}" for n in "abcdef")]
    assert fault(run_of(*uris), uris[0]) == "not_readable"


def test_a_few_addresses_of_a_dead_server_are_rows_where_another_answers(server, dead, run_of):
    bad = [f"{dead}/{n}" for n in range(7)]
    reader = run_of(f"{server.url}/a", *bad)
    assert {fault(reader, uri) for uri in bad} == {"unreachable"}
    assert reader.read(f"{server.url}/a") == DATA


def test_tls_that_fails_is_a_row(server, run_of):
    bad = f"{server.url}/x".replace("http", "https")
    assert fault(run_of(f"{server.url}/a", bad, f"{server.url}/c"), bad) == "not_readable"


def test_an_address_of_a_dead_server_is_a_row_among_files_of_this_machine(dead, run_of, tmp_path):
    (tmp_path / "a.png").write_bytes(DATA)
    files = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert fault(run_of(*files, f"{dead}/x"), f"{dead}/x") == "unreachable"


def test_a_store_of_which_nothing_can_be_read_ends_the_job_and_is_named(dead, run_of):
    for count in (1, 3, 20):
        uris = [f"{dead}/{n}.jpg?signature=1" for n in range(count)]
        with pytest.raises(StorageError, match=r"cannot be reached \(Connection refused\)") as said:
            run_of(*uris).read(uris[0])
        assert dead.removeprefix("http://") in str(said.value)
        assert "signature" not in str(said.value)


def test_a_server_that_fails_at_everything_ends_the_job(server, run_of):
    uris = [f"{server.url}/503/{n}" for n in range(4)]
    with pytest.raises(StorageError, match="answers 503"):
        run_of(*uris).read(uris[0])


def test_a_bad_hour_of_the_one_large_store_ends_the_job_though_others_answer(server, dead, run_of):
    uris = [f"{dead}/{n}" for n in range(20)]
    reader = run_of(f"{server.url}/a", *uris)
    with pytest.raises(StorageError, match="cannot be reached"):
        reader.read(uris[3])


def test_without_any_network_nothing_becomes_a_row(dead, run_of):
    """Two servers, of which neither answers: it may be this machine."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        uris = [f"{dead}/{n}" for n in range(3)]
        uris += [f"http://127.0.0.1:{other.getsockname()[1]}/{n}" for n in range(3)]
        with pytest.raises(StorageError):
            run_of(*uris).read(uris[0])


def test_a_silent_server_is_tried_once_for_each_address_until_it_answers(server, dead, run_of):
    reader = run_of(f"{server.url}/a", f"{dead}/0", f"{dead}/1")
    assert fault(reader, f"{dead}/0") == "unreachable"
    store = image_reading._stores[dead.removeprefix("http://")]
    assert store.is_silent()
    asked = len(server.asked)
    assert fault(reader, f"{dead}/1") == "unreachable"
    assert len(server.asked) == asked  # nobody else was asked again
    store.gave(f"{dead}/2")
    assert not store.is_silent()


def test_a_store_that_comes_back_within_the_patience_is_read(server, run_of, monkeypatch):
    monkeypatch.setenv("SAFF_STORAGE_PATIENCE", "30")
    monkeypatch.setattr(image_reading, "QUICK_TRIES", 1)
    uri = f"{server.url}/once/503"
    assert run_of(uri).read(uri) == DATA


def test_a_store_that_refuses_all_of_many_ends_the_job(server, run_of):
    uris = [f"{server.url}/403/{n}?signature=1" for n in range(12)]
    reader = run_of(*uris)
    kinds = [fault(reader, uri) for uri in uris[: image_reading.FEW - 1]]
    assert {*kinds} == {"not_readable"}
    with pytest.raises(StorageError, match="refuses every image") as said:
        reader.read(uris[-1])
    assert "signature=" not in str(said.value)


def test_a_store_that_refuses_many_and_gives_others_goes_on(server, run_of):
    uris = [f"{server.url}/403/{n}" for n in range(20)]
    reader = run_of(*uris, *(f"{server.url}/p{n}" for n in range(20)))
    assert {fault(reader, uri) for uri in uris} == {"not_readable"}


def test_what_is_not_allowed_is_a_row_that_says_how_to_allow_it(server, run_of):
    reader = run_of(f"{server.url}/a", access=Access())
    with pytest.raises(ImageError, match="--allow-private-addresses") as caught:
        reader.read(f"{server.url}/a")
    assert caught.value.kind == "not_allowed"
    assert server.asked == []


def test_an_image_without_an_address_is_a_row(run_of):
    for reader in (ImageReader(), run_of("")):
        with pytest.raises(ImageError, match="the list gives no address") as caught:
            reader.read("")
        assert caught.value.kind == "not_readable"


def test_an_image_alone_is_judged_by_answers_only(server, dead):
    assert ImageReader().read(f"{server.url}/a") == DATA
    assert fault(ImageReader(), f"{server.url}/loop") == "not_readable"
    for uri in (f"{dead}/x", f"{server.url}/500"):
        with pytest.raises(OSError, match="no access to http"):
            ImageReader().read(uri)
