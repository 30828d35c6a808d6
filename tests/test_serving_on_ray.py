"""``saff serve``: one server on a Ray of this machine, asked by clients and a real browser."""

import concurrent.futures
import http.client
import io
import json
import os
import select
import signal
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from clusters import free_port, wait_for, warm_python
from label_runs import ROOT
from saff.images import decode_png, encode_png

pytestmark = pytest.mark.ray
LIMIT = 1_000_000
OPTIONS = ["--queue", "1", "--max-megabytes", "1", "--config", "fast"]


@pytest.fixture(scope="module")
def address(ray_address, tmp_path_factory):
    """Address of a server, from its start to its end."""
    log = tmp_path_factory.mktemp("server") / "log"
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    words = [str(ROOT / "saff" / "__main__.py"), "serve", "--port", str(port), *OPTIONS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", ray_address)
        process = warm_python().start(words, log)
    seen = set()

    def is_open():
        seen.add(ask(address + "healthz", seconds=5)[0])
        return f"open {address}" in log.read_text()

    try:
        wait_for(is_open, process, log=log)
        assert seen <= {None, 404, 200}  # nothing listens, no route yet, healthy
        yield address
        os.kill(process.pid, signal.SIGINT)
        wait_for(lambda: process.poll() is not None, seconds=30)
        assert process.poll() == 0
        assert ask(address + "healthz")[0] is None
    finally:
        process.kill()


@pytest.fixture(scope="module")
def photo(photographs):
    stream = io.BytesIO()
    PIL.Image.fromarray(photographs["chelsea"]).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def mask(photo, tmp_path_factory):
    """What ``saff segment`` says of that photograph."""
    from saff import cli

    folder = tmp_path_factory.mktemp("segment")
    (folder / "photo.jpg").write_bytes(photo)
    words = ["segment", str(folder / "photo.jpg"), "-o", str(folder / "mask.png")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["saff", *words, "--config", "fast"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert not stop.value.code
    return (folder / "mask.png").read_bytes()


def ask(url, body=None, seconds=60):
    """Status, body and headers of an answer; None for a status where nothing listens."""
    request = urllib.request.Request(url, body, method="GET" if body is None else "POST")
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers
    except OSError:
        return None, b"", {}


def test_a_mask_is_that_of_saff_segment(address, photo, mask):
    status, body, headers = ask(address + "mask", photo)
    assert (status, headers["content-type"]) == (200, "image/png")
    assert body == mask
    assert decode_png(body).any()
    assert json.loads(ask(address + "healthz")[1]) == {"status": "ok"}


def test_a_second_server_of_a_cluster_is_refused(address, one_node, call):
    code, _, error = call("serve", "--port", free_port())
    assert code == 2
    assert error.startswith("saff: Ray Serve runs on this cluster already; ")
    assert ask(address + "healthz")[0] == 200


def test_an_image_at_fault_is_answered_with_the_reason(address, photo):
    status, body, _ = ask(address + "mask", photo[:-100])
    assert status == 422
    assert json.loads(body)["kind"] == "truncated"
    assert ask(address + "nothing", photo)[0] == 404


def test_a_body_without_an_end_is_answered_while_it_arrives(address):
    host = address.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.putrequest("POST", "/mask")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    sent, piece = 0, b"10000\r\n" + bytes(0x10000) + b"\r\n"
    while not select.select([connection.sock], [], [], 0.001)[0]:
        connection.send(piece)
        sent += 0x10000
    answer = connection.getresponse()
    connection.close()
    assert answer.status == 413
    assert LIMIT <= sent < 100 * LIMIT


def test_what_is_too_much_is_refused_at_once_and_nothing_hangs(address, photographs):
    photo = encode_png(np.tile(photographs["coffee"], (3, 3, 1))[:, :, ::-1])
    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: ask(address + "mask", photo), range(12)))
    assert time.monotonic() - begun < 30
    found = [status for status, *_ in answers]
    assert {*found} == {200, 503}
    assert 2 <= found.count(200) <= 6
    assert all(int(h["retry-after"]) >= 1 for status, _, h in answers if status == 503)
    assert ask(address + "mask", photo)[0] == 200


# In a browser

PIXELS = """
const mask = document.querySelector("#mask");
const data = mask.getContext("2d").getImageData(0, 0, mask.width, mask.height).data;
return [mask.width, mask.height, Array.from(data.filter((_, place) => place % 4 === 0))];
"""


def choose(browser, path):
    browser.find_element("id", "file").send_keys(str(path))
    name = f"{path.name}: "
    status = browser.find_element("id", "status")
    wait_for(lambda: status.text.startswith(name) and "being found" not in status.text, seconds=30)
    return status.text.removeprefix(name)


@pytest.mark.browser
def test_the_page_shows_the_mask_and_the_cut_out(address, browser, photo, mask, tmp_path):
    browser.get_log("browser")
    (tmp_path / "a cat.jpg").write_bytes(photo)
    (tmp_path / "a page.jpg").write_bytes(b"<html>404 Not Found</html>")
    (tmp_path / "large.jpg").write_bytes(bytes(LIMIT + 1))
    browser.get(address)
    assert not browser.find_element("id", "results").is_displayed()

    assert choose(browser, tmp_path / "a cat.jpg").startswith("quality of the mask 0.")
    width, height, values = browser.execute_script(PIXELS)
    shown = np.reshape(np.array(values, np.uint8), (height, width))
    assert np.array_equal(shown, decode_png(mask))
    cutout = browser.find_element("id", "cutout")
    assert cutout.is_displayed()
    assert browser.execute_script("return arguments[0].naturalWidth", cutout) == width
    fewer = browser.execute_script(
        "const t = document.querySelector('#threshold'); t.value = 1;"
        "t.dispatchEvent(new Event('input'));" + PIXELS
    )[2]
    assert sum(fewer) < sum(values)
    assert saved(browser, "save-cutout") == ["a cat-cutout.png", len(ask_cutout(address, photo))]
    assert saved(browser, "save-mask")[0] == "a cat-mask.png"

    assert choose(browser, tmp_path / "large.jpg").startswith("the image has more than 1,000,000 b")
    assert not browser.find_element("id", "results").is_displayed()
    assert browser.get_log("browser") == []  # no error, nothing refused
    assert choose(browser, tmp_path / "a page.jpg").startswith("image is an HTML page; expected")
    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in requests if m["method"].endswith("WillBeSent")]
    assert {url.split(":")[0] for url in urls} <= {"http", "blob", "data", "chrome"}
    assert {url for url in urls if url.startswith("http")} == {address, address + "cutout"}


def ask_cutout(address, photo):
    return ask(address + "cutout", photo)[1]


def saved(browser, button):
    """Name and size of the file that a button would have the browser save."""
    browser.execute_script(
        """
        window.saved = null;
        HTMLAnchorElement.prototype.click = function () {
          window.saved = [this.download, window.blob.size];
        };
        const make = URL.createObjectURL;
        URL.createObjectURL = (blob) => { window.blob = blob; return make(blob); };
        document.getElementById(arguments[0]).click();
        """,
        button,
    )
    wait_for(lambda: browser.execute_script("return window.saved"), seconds=10)
    return browser.execute_script("return window.saved")
