"""Masks over HTTP without Ray: what each request is answered with, limits, errors, the page."""

import asyncio
import contextlib
import inspect
import io
import json
import logging
import re
import socket
import sys
import threading
import time

import cv2
import numpy as np
import PIL.Image
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
from starlette.testclient import TestClient

from label_runs import write_settings
from saff import serving
from saff.images import encode_png
from saff.network.shipped import load_shipped
from saff.serving import Segmenter, make_app


@pytest.fixture(scope="module")
def segment(small):
    return Segmenter(load_shipped().network, small)


@pytest.fixture
def client(segment):
    with TestClient(make_app(segment, megabytes=0.2)) as client:
        yield client


@pytest.fixture(scope="module")
def photo(photographs):
    """A JPEG file that its EXIF tag turns upright."""
    stream = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(photographs["astronaut"]).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


@pytest.fixture
def gate(segment):
    """A function that segments when its gate is opened, and how many images it was given."""
    opened, begun = threading.Event(), []

    def wait_and_segment(data):
        begun.append(data)
        assert opened.wait(30)
        return segment(data)

    wait_and_segment.open, wait_and_segment.begun = opened.set, begun
    yield wait_and_segment
    opened.set()


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def pixels(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


# Answers


@pytest.mark.parametrize("what", ["mask", "confidence", "overlay", "cutout"])
def test_an_answer_is_the_file_that_segment_writes(what, client, photo, call, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(photo)
    words = ["--what", what, "--threshold", 0.7, "--config", write_settings(tmp_path)]
    code, *_ = call("segment", tmp_path / "photo.jpg", "-o", tmp_path / "out.png", *words)
    answer = client.post(f"/{what}?threshold=0.7", content=photo)
    assert (code, answer.status_code) == (0, 200)
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == (tmp_path / "out.png").read_bytes()


def test_boxes_are_those_of_the_mask(client, photo):
    mask = pixels(client.post("/mask", content=photo).content) > 0
    answer = client.post("/boxes?smallest=50", content=photo).json()
    expected = [
        {"box": list(cv2.boundingRect(cv2.findNonZero(part))), "area": int(part.sum())}
        for part in parts_of(mask)
        if part.sum() >= 50
    ]
    assert sorted(answer.pop("components"), key=str) == sorted(expected, key=str)
    height, width = mask.shape
    quality = answer.pop("quality")
    assert 0 < quality <= 1
    assert answer == {
        "width": width,
        "height": height,
        "foreground_found": True,
        "foreground_share": pytest.approx(mask.mean(), abs=1e-12),
    }
    headers = client.post("/cutout", content=photo).headers
    assert headers["saff-foreground-found"] == "true"
    assert headers["saff-quality"] == f"{quality:.4f}"


def parts_of(mask):
    """Components of a mask, each in the whole image, by another way than the server's."""
    left = mask.astype(np.uint8)
    while left.any():
        seed = np.argwhere(left)[0]
        flooded = left.copy()
        cv2.floodFill(flooded, None, (int(seed[1]), int(seed[0])), 2, flags=8)
        yield (flooded == 2).astype(np.uint8)
        left[flooded == 2] = 0


def test_an_image_without_foreground_has_an_empty_mask(client):
    grey = encode_png(np.full((60, 80, 3), 128, np.uint8))
    answer = client.post("/mask?threshold=0", content=grey)
    assert answer.headers["saff-foreground-found"] == "false"
    assert not pixels(answer.content).any()
    assert client.post("/boxes?threshold=0", content=grey).json() == {
        "width": 80,
        "height": 60,
        "foreground_found": False,
        "quality": 0.0,
        "foreground_share": 0.0,
        "components": [],
    }


def test_an_image_in_a_form_is_as_good_as_a_body(client, photo):
    form = {"file": ("cat.jpg", photo, "text/plain"), "note": (None, "a note")}
    answer = client.post("/mask", files=form)
    assert answer.content == client.post("/mask", content=photo).content


# Errors


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"", 422, "empty"),
        (b"http://127.0.0.1/cat.jpg", 415, "not_an_image"),
        (b"<html>404 Not Found</html>", 415, "not_an_image"),
        (b"\x00\x00\x01\x00icon", 415, "unsupported"),
        (encode_png(np.zeros((40, 40, 3), np.uint8))[:-30], 422, "truncated"),
        (b"P5 1000000 1000000 255\n", 415, "unsupported"),
    ],
)
def test_an_image_that_cannot_be_used_is_answered_with_the_reason(client, body, status, kind):
    from saff.images import ImageError, decode

    with pytest.raises(ImageError) as error:
        decode(body)
    answer = client.post("/mask", content=body)
    assert (answer.status_code, error.value.kind) == (status, kind)
    assert answer.json() == {"detail": str(error.value), "kind": kind}


def test_a_bomb_is_refused_before_it_is_decoded(client):
    huge = io.BytesIO()
    PIL.Image.new("1", (12000, 12000)).save(huge, "PNG")
    answer = client.post("/mask", content=huge.getvalue())
    assert answer.status_code == 413
    assert "12000 x 12000 = 144000000 pixels" in answer.json()["detail"]


@pytest.mark.parametrize("files", [[], ["a", "b"], ["file", "file"]])
def test_a_form_holds_one_file(client, photo, files):
    form = [("note", (None, "a note")), *((name, ("cat.jpg", photo)) for name in files)]
    answer = client.post("/mask", files=form)
    assert answer.status_code == 400
    assert answer.json()["detail"] == f"the form holds {len(files)} files; send one image"


def test_a_damaged_form_is_refused(client):
    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert client.post("/mask", content=b"no form", headers=kind).status_code == 400
    kind = {"content-type": "multipart/form-data"}
    assert client.post("/mask", content=b"", headers=kind).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/mask?threshold=1.5", 422),
        ("POST", "/mask?threshold=nan", 422),
        ("POST", "/boxes?smallest=0", 422),
        ("POST", "/masks", 404),
        ("GET", "/mask", 405),
    ],
)
def test_what_is_not_offered_is_refused(client, photo, method, path, status):
    assert client.request(method, path, content=photo).status_code == status


# Limits


def ask(app, receive, headers=()):
    """Call an app as a server does; status and body of its answer."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/mask", "query_string": b""}
    scope |= {"headers": [*headers], "http_version": "1.1", "root_path": ""}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_bytes_of_a_body_are_counted_as_they_arrive(segment):
    taken = []

    async def receive():
        taken.append(None)
        return {"type": "http.request", "body": bytes(10_000), "more_body": True}

    status, body = ask(make_app(segment, megabytes=0.1), receive)
    assert (status, len(taken)) == (413, 11)
    assert json.loads(body)["detail"].startswith("the image has more than 100,000 bytes")


def test_a_body_that_says_that_it_is_too_large_is_not_read(segment):
    async def receive():
        raise AssertionError("the body was read")

    status, _ = ask(make_app(segment, megabytes=0.1), receive, [(b"content-length", b"100001")])
    assert status == 413


def test_a_body_of_exactly_the_limit_is_taken(segment, photo):
    limited = make_app(segment, megabytes=len(photo) / 1e6)
    with TestClient(limited) as client:
        assert client.post("/mask", content=photo).status_code == 200
        assert client.post("/mask", content=photo + b"\0").status_code == 413


def test_a_body_that_does_not_arrive_is_given_up(segment, monkeypatch):
    monkeypatch.setattr(serving, "UPLOAD_SECONDS", 0.05)

    async def receive():
        await asyncio.sleep(60)

    assert ask(make_app(segment), receive)[0] == 408


def test_a_body_that_ends_early_is_not_segmented(gate):
    messages = iter([{"type": "http.request", "body": b"1", "more_body": True}])

    async def receive():
        return next(messages, {"type": "http.disconnect"})

    assert ask(make_app(gate), receive)[0] == 400
    assert gate.begun == []


def test_what_finds_the_queue_full_is_refused_and_may_come_again(gate, photo):
    answers = []
    with TestClient(make_app(gate, queue=1)) as client:

        def post():
            answers.append(client.post("/mask", content=photo))

        threads = [threading.Thread(target=post) for _ in range(3)]
        threads[0].start()
        until(lambda: gate.begun)
        threads[1].start()
        threads[2].start()  # one of them waits, the other one is refused
        until(lambda: answers)
        assert answers[0].status_code == 503
        seconds = answers[0].headers["retry-after"]
        assert re.fullmatch(r"[1-9]\d*", seconds)
        assert answers[0].json()["detail"].endswith(f"try again in {seconds} s")
        assert client.get("/healthz").json() == {"status": "ok"}  # the event loop is free
        assert client.get("/").status_code == 200
        gate.open()
        for thread in threads:
            thread.join(30)
        assert [answer.status_code for answer in answers] == [503, 200, 200]
        assert client.post("/mask", content=photo).status_code == 200


def test_an_image_whose_client_has_gone_is_left_out(gate, photo):
    line = serving.Line(queue=1)

    async def go_away():
        first = asyncio.ensure_future(line.do(lambda: gate(photo)))
        while not gate.begun:
            await asyncio.sleep(0.005)
        second = asyncio.ensure_future(line.do(lambda: gate(photo)))
        await asyncio.sleep(0.01)
        second.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await second
        gate.open()
        await first
        return await line.do(lambda: "the next one")

    assert asyncio.run(go_away()) == "the next one"
    assert len(gate.begun) == 1


# The page, the description and the command


def test_what_is_offered_is_described_for_programs(client):
    described = client.get("/openapi.json").json()["paths"]
    images = ["/mask", "/confidence", "/overlay", "/cutout", "/boxes"]
    assert sorted(described) == sorted([*images, "/healthz"])
    for path in images:
        post = described[path]["post"]
        assert {"image/*", "multipart/form-data"} == {*post["requestBody"]["content"]}
        assert [one["name"] for one in post["parameters"]] == ["threshold", "smallest"]


def test_the_page_fetches_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "at most 0.2 MB" in page.text
    assert not re.search(r"https?://|src=\"(?!data:)|@import|url\(", page.text)
    assert "default-src 'none'" in page.text


def test_a_port_that_is_taken_is_refused_in_a_line(call):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, _, error = call("serve", "--port", port)
    assert code == 2
    assert error == (
        f"saff: cannot listen at 127.0.0.1, port {port}: Address already in use; choose another "
        "--port, or a --host of this machine\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "192.0.2.1"], "cannot listen at 192.0.2.1, port "),
        (["--network", "nothing"], "there is no trained network at "),
        (["--config", "fastest"], "no configuration 'fastest'"),
        (["--replicas", 10_000], "10000 replicas need as many CPUs, and this machine has "),
    ],
)
def test_what_cannot_work_is_refused_before_ray_starts(call, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    code, _, error = call("serve", "--port", port, *words)
    assert code == 2
    assert error.startswith("saff: ")
    assert message in error
    import ray

    assert not ray.is_initialized()


def test_without_the_extra_it_says_what_to_install(call, monkeypatch):
    for name in ("saff.serving", "saff.cluster.serving"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, _, error = call("serve")
    assert code == 2
    assert error.startswith("saff: saff serve needs Ray Serve (")
    assert error.endswith("): pip install 'saff[serve]'\n")


def test_the_command_has_the_limits_of_the_app():
    from saff.cli.serving import serve
    from saff.cluster.serving import Serving

    options = {name: option.default for name, option in inspect.signature(serve).parameters.items()}
    same = {name: options[name] for name in ("network", "config", "replicas", "queue", "megabytes")}
    assert same == Serving().model_dump(exclude={"allow_code"})


def test_what_ray_serve_reports_is_in_the_format_of_the_log(monkeypatch):
    from saff.cluster.serving import quiet_ray_serve

    theirs = logging.getLogger("ray.serve")
    for name in ("propagate", "level"):
        monkeypatch.setattr(theirs, name, getattr(theirs, name))
    monkeypatch.setattr(theirs, "handlers", theirs.handlers[:])
    monkeypatch.setenv("SAFF_LOG_FORMAT", "json")
    quiet_ray_serve()
    assert theirs.handlers == []
    assert theirs.propagate
    assert theirs.level == logging.ERROR
