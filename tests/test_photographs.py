import contextlib
import hashlib
import http.server
import os
import socketserver
import threading
import time
from collections import Counter
from typing import ClassVar

import numpy as np
import pytest

from saff.images import encode_png
from saff.photographs import Photographs
from stored_runs import RNG, SHAPE, labelled

PHOTO = encode_png(RNG.integers(0, 256, (*SHAPE, 3), np.uint8))


class Server(http.server.BaseHTTPRequestHandler):
    """A web server whose address says how it answers."""

    asked: ClassVar[Counter[str]] = Counter()
    released: ClassVar[threading.Event] = threading.Event()  # ends the answers that do not end

    def do_GET(self):
        kind = self.path.strip("/").split("/")[0]
        self.asked[kind] += 1
        if kind == "silent":
            self.close_connection = True
        elif kind == "hang":
            self.released.wait(30)
            self.close_connection = True
        elif kind == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            with contextlib.suppress(OSError):
                while not self.released.wait(0.05):
                    self.wfile.write(b"x")
            self.close_connection = True
        elif kind == "circle":
            self.send_response(302)
            self.send_header("Location", "/circle")
            self.end_headers()
        elif kind.isdecimal():
            self.send_error(int(kind))
        else:
            data = PHOTO if kind == "same" else b"another content"
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    Server.asked.clear()
    Server.released.clear()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        Server.released.set()
        server.shutdown()
        thread.join()


def row(uri, data=PHOTO, shape=SHAPE):
    sha256 = hashlib.sha256(data).hexdigest()
    return {"uri": str(uri), "sha256": sha256, "height": shape[0], "width": shape[1]}


def counts_of(photographs):
    return (photographs.gone, photographs.changed, photographs.unreachable)


def test_a_photograph_is_read_as_it_was_labelled(tmp_path, web):
    kept = labelled(tmp_path, "a.jpg", content=PHOTO)
    photographs = Photographs()
    for uri in (kept["uri"], f"{web}/same/a.jpg"):
        assert photographs.read(row(uri)).shape == (*SHAPE, 3)
    assert (photographs.lost, photographs.describe()) == (0, "")


@pytest.mark.parametrize("status", [401, 403, 404, 410, 451])
def test_a_refusal_is_a_photograph_that_is_gone(web, status):
    photographs = Photographs()
    assert photographs.read(row(f"{web}/{status}/a.jpg")) is None
    assert counts_of(photographs) == (1, 0, 0)


@pytest.mark.parametrize("kind", ["500", "503", "429", "silent", "circle"])
def test_a_server_that_fails_makes_a_photograph_unreachable(web, kind):
    photographs = Photographs()
    assert photographs.read(row(f"{web}/{kind}/a.jpg")) is None
    assert counts_of(photographs) == (0, 0, 1)
    assert photographs.read(row(f"{web}/same/a.jpg")) is not None  # it keeps no other from it


def test_what_is_no_longer_at_a_path_is_gone(tmp_path):
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "one").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "one")
    (tmp_path / "file").write_bytes(b"")
    names = ["missing", "broken", "one", "file/below", ".", 300 * "n", "nul\0"]
    photographs = Photographs()
    for uri in [*(f"{tmp_path}/{name}" for name in names), "nothing://x/y", "http://[::/a.jpg"]:
        assert photographs.read(row(uri)) is None, uri
    assert counts_of(photographs) == (9, 0, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_gone(tmp_path):
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    (tmp_path / "a.jpg").chmod(0)
    photographs = Photographs()
    assert photographs.read(row(tmp_path / "a.jpg")) is None
    assert counts_of(photographs) == (1, 0, 0)


def test_another_content_is_a_change(tmp_path, web):
    (tmp_path / "a.jpg").write_bytes(PHOTO + b"more")
    with open(tmp_path / "film.jpg", "wb") as film:
        film.truncate(2 * 2**30 + 1)  # sparse: nothing of it is read
    (tmp_path / "same.jpg").write_bytes(PHOTO)
    photographs = Photographs()
    for uri in (tmp_path / "a.jpg", tmp_path / "film.jpg", f"{web}/other/a.jpg"):
        assert photographs.read(row(uri)) is None
    # decoded in another size, or not at all, by a later version
    assert photographs.read(row(tmp_path / "same.jpg", shape=SHAPE[::-1])) is None
    (tmp_path / "text").write_bytes(b"text")
    assert photographs.read(row(tmp_path / "text", b"text")) is None
    assert counts_of(photographs) == (0, 5, 0)


def test_a_server_that_is_down_costs_a_bounded_number_of_requests(web, monkeypatch):
    monkeypatch.setattr("saff.photographs.BRIEF", 0.5)
    monkeypatch.setattr("saff.photographs.SECONDS_LOST", 1.5)
    monkeypatch.setenv("SAFF_STORAGE_PATIENCE", "600")
    photographs = Photographs()
    for number in range(20):
        assert photographs.read(row(f"{web}/500/{number}.jpg")) is None
    repeated = Server.asked["500"] - 19  # the first alone is repeated: this server does answer
    assert 2 <= repeated < 10
    for number in range(20):
        assert photographs.read(row(f"{web}/silent/{number}.jpg")) is None
    assert Server.asked["silent"] <= 3 * 4  # the client repeats a request by itself
    assert photographs.read(row(f"{web}/same/a.jpg")) is None  # given up
    assert Server.asked["same"] == 0
    assert counts_of(photographs) == (0, 0, 41)


@pytest.mark.parametrize("kind", ["hang", "drip"])
def test_an_answer_that_does_not_end_is_waited_for_once(web, monkeypatch, kind):
    monkeypatch.setattr("saff.photographs.DEADLINE", 1.0)
    monkeypatch.setattr("saff.photographs.SECONDS_LOST", 1.0)
    photographs = Photographs()
    start = time.monotonic()
    for number in range(10):
        assert photographs.read(row(f"{web}/{kind}/{number}.jpg")) is None
    assert 1 <= time.monotonic() - start < 5
    assert counts_of(photographs) == (0, 0, 10)
    assert Server.asked[kind] == 1


def test_one_photograph_between_failures_keeps_a_server(web):
    photographs = Photographs()
    for number in range(10):
        assert photographs.read(row(f"{web}/silent/{number}.jpg")) is None
        assert photographs.read(row(f"{web}/same/{number}.jpg")) is not None
    assert counts_of(photographs) == (0, 0, 10)


def test_the_loss_is_described_in_words():
    photographs = Photographs()
    photographs.gone, photographs.unreachable = 2, 1_000
    assert photographs.lost == 1_002
    said = "2 photographs are gone, 1,000 photographs cannot be reached"
    assert photographs.describe() == said
