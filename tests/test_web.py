"""Images on the web: sent as they came, within bounds of place, size and time."""

import hashlib
import hmac
import shutil
import socket
import ssl
import subprocess
import time
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from hypothesis import given, settings, strategies as st

from odd_server import serve, serve_proxy
from saff import web
from saff.access import ANYTHING, Access, is_public
from saff.errors import BusyError, RefusedAddressError, SettingsError, SlowError, UnreadableError
from saff.storage import read_bytes
from saff.web import answers, download

DATA = bytes(range(256)) * 8
PUBLIC = Access()


@pytest.fixture(scope="module")
def server():
    with serve(DATA) as running:
        yield running


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def reason(url, access=ANYTHING, kind=UnreadableError):
    with pytest.raises(kind) as caught:
        download(url, access)
    assert "signature" not in str(caught.value)
    return str(caught.value)


# As it came


@given(st.text("ab%/'()~*!$,;:@+=&.-_2F7E", max_size=20))
@settings(deadline=None, max_examples=60)
def test_an_address_is_signed_letter_by_letter(server, path):
    """As object stores do: the signature is of the address as it was sent."""
    path = f"/x{path}"
    signature = hmac.new(b"key", path.encode(), hashlib.sha256).hexdigest()
    url = f"{server.url}{path}?signature={signature}"
    with urlopen(url) as answer:
        assert answer.read() == download(url, ANYTHING) == DATA
    assert server.asked[-2:] == [f"{path}?signature={signature}"] * 2


def test_what_no_request_may_hold_is_quoted(server):
    for name in ("sp ace.png", "ü/✓.png", "new\nline\r.png", 'quote".png'):
        assert download(f"{server.url}/{name}", ANYTHING) == DATA
        assert server.asked[-1] == quote(f"/{name}", safe='/"')


def test_the_answer_is_read_however_it_is_sent(server):
    for kind in ("plain", "goodgzip", "chunked", "nolength"):
        assert download(f"{server.url}/{kind}", ANYTHING) == DATA, kind


def test_a_redirect_is_followed(server):
    server.places["there"] = f"{server.url}/a%2Fb?signature=%2B"
    server.places["relative"] = "/a%20Ã¼?x"  # the bytes of ü, as servers send them
    assert download(f"{server.url}/to/there", ANYTHING) == DATA
    assert server.asked[-1] == "/a%2Fb?signature=%2B"
    assert download(f"{server.url}/to/relative", ANYTHING) == DATA
    assert server.asked[-1] == "/a%20%C3%BC?x"


# What is wrong with one address, and what may be better next time


@pytest.mark.parametrize("status", [404, 410])
def test_what_is_gone_is_not_found(server, status):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        download(f"{server.url}/{status}", ANYTHING)


@pytest.mark.parametrize("status", [204, 304, 400, 401, 402, 403, 405, 418, 451])
def test_a_refusal_is_the_addresss(server, status):
    if status == 204:  # no content is no bytes
        assert download(f"{server.url}/204", ANYTHING) == b""
        return
    said = reason(f"{server.url}/{status}?signature=1")
    assert said == f"the store does not give this image out ({status})"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("loop", "redirects more than 10 times"),
        ("nowhere", "redirects to no address"),
        ("to/ftp", "redirects to an address ftp:"),
        ("to/file", "redirects to an address file:"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_the_addresss(server, path, words):
    server.places |= {"ftp": "ftp://127.0.0.1/x.jpg", "file": "file:///etc/passwd"}
    assert words in reason(f"{server.url}/{path}")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("500", "answers 500"),
        ("502", "answers 502"),
        ("520", "answers 520"),
        ("408", "answers 408"),
        ("429", "answers 429"),
        ("short", "ends early or is not encoded as it says"),
        ("badgzip", "ends early or is not encoded as it says"),
        ("reset", ""),
        ("garbage", ""),
    ],
)
def test_what_may_be_better_next_time_says_so(server, path, words):
    assert words in reason(f"{server.url}/{path}", kind=BusyError)


def test_servers_that_are_not_there_may_come(server):
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/x"
        assert reason(url, kind=BusyError) == "Connection refused"
    assert reason("http://no-such-host.invalid/x", kind=BusyError)
    assert "TLS" in reason(server.url.replace("http", "https") + "/x", kind=BusyError)


@pytest.mark.parametrize("url", ["http://", "http:///x.jpg", "http://[bad/x", "http://h:99999999/"])
def test_what_is_no_address_is_named(url):
    with pytest.raises((UnreadableError, SettingsError), match=r"no address|names no place"):
        download(url, ANYTHING)


# Bounds


def test_bytes_are_counted_as_they_arrive(server):
    limited = Access(private=True, largest=len(DATA))
    for kind in ("plain", "goodgzip", "chunked", "nolength"):
        assert download(f"{server.url}/{kind}", limited) == DATA
    smaller = Access(private=True, largest=len(DATA) - 1)
    said = f"a file of more than {len(DATA) - 1:,} bytes is no image"
    for kind in ("plain", "goodgzip", "chunked", "nolength", "bomb", "endless"):
        assert reason(f"{server.url}/{kind}", smaller) == said


def test_a_slow_server_ends_in_time(server, monkeypatch):
    start = time.monotonic()
    assert "longer than 0.3 s" in reason(
        f"{server.url}/drip", Access(private=True, seconds=0.3), SlowError
    )
    monkeypatch.setattr(web, "SLOW_AFTER", 0.2)
    assert "bytes in 0 s" in reason(f"{server.url}/drip", ANYTHING, SlowError)
    assert time.monotonic() - start < 5


def test_tries_are_bounded_and_a_wait_is_heeded(server, monkeypatch):
    monkeypatch.setenv("SAFF_STORAGE_PATIENCE", "20")
    assert read_bytes(f"{server.url}/busy/{time.time()}") == DATA
    assert read_bytes(f"{server.url}/once/503?{time.time()}") == DATA
    monkeypatch.setenv("SAFF_STORAGE_PATIENCE", "0")
    with pytest.raises(BusyError, match=r"^no access to http.*/500\?\.\.\.: its server answers"):
        read_bytes(f"{server.url}/500?signature=1")


# Where an address may lead


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("0.0.0.0", "100.64.0.1", "100.100.100.200", "198.18.0.1", "224.0.0.1", "255.255.255.255"),
        *("::1", "::", "fe80::1%eth0", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1"),
        *("192.0.0.192", "168.63.129.16", "64:ff9b:1::a00:1", "::7f00:1"),
        *("::ffff:169.254.169.254", "64:ff9b::a00:1", "2002:7f00:1::"),
    ],
)
def test_private_addresses_are_no_public_ones(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "64:ff9b::101:101"])
def test_public_addresses_are(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "LOCALHOST.", "x.localhost", "[::1]", "169.254.169.254"),
        *("metadata.google.internal", "[::ffff:127.0.0.1]", "0.0.0.0"),
    ],
)
def test_a_private_host_is_refused_unless_that_is_allowed(server, host):
    port = server.server_port
    asked = len(server.asked)
    with pytest.raises(RefusedAddressError, match="--allow-private-addresses"):
        download(f"http://{host}:{port}/x", PUBLIC)
    assert len(server.asked) == asked
    assert not answers(f"http://no-such-host.invalid:{port}/x", PUBLIC, 5)


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f.1", "0177.0.0.1"])
def test_other_spellings_of_a_private_address_are_not_asked(server, host):
    asked = len(server.asked)
    with pytest.raises((RefusedAddressError, UnreadableError, BusyError)):
        download(f"http://{host}:{server.server_port}/x", PUBLIC)
    assert len(server.asked) == asked


@pytest.fixture
def names(monkeypatch):
    """Names of this test that stand for IP addresses."""
    known = {}
    real = socket.getaddrinfo

    def look_up(host, *arguments, **options):
        name = host.decode() if isinstance(host, bytes) else host
        return real(known.get(name, host), *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def test_a_name_that_resolves_to_a_private_address_is_refused(server, names):
    names["photos.example"] = "127.0.0.1"
    asked = len(server.asked)
    with pytest.raises(RefusedAddressError, match=r"photos\.example is 127\.0\.0\.1 of this mach"):
        download(f"http://photos.example:{server.server_port}/x", PUBLIC)
    assert len(server.asked) == asked
    assert download(f"http://photos.example:{server.server_port}/x", ANYTHING) == DATA


def test_a_redirect_to_a_private_address_is_refused(server, names, monkeypatch):
    """The first server counts as public here; what it leads to does not."""
    with serve(DATA, "127.0.0.2") as secret:
        monkeypatch.setattr("saff.access.is_public", lambda ip: ip == "127.0.0.1")
        names["inner.example"] = "127.0.0.2"
        server.places |= {
            "literal": f"{secret.url}/admin",
            "name": f"http://inner.example:{secret.server_port}/admin",
        }
        assert download(f"{server.url}/x", PUBLIC) == DATA
        for place in ("literal", "name"):
            with pytest.raises(RefusedAddressError):
                download(f"{server.url}/to/{place}", PUBLIC)
        assert secret.asked == []
        assert download(f"{server.url}/to/name", ANYTHING) == DATA


# Proxies


@pytest.fixture
def proxy():
    with serve_proxy(b"proxy") as running:
        yield running


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
def test_the_proxy_of_the_environment_is_used(server, proxy, monkeypatch, name):
    url, asked = proxy
    monkeypatch.setenv(name, url)
    assert download("http://reached.example/a%2Fb.jpg?signature=1", PUBLIC) == b"proxy"
    assert asked == ["http://reached.example/a%2Fb.jpg?signature=1"]
    with pytest.raises(RefusedAddressError):  # a proxy is no way around
        download("http://169.254.169.254/latest", PUBLIC)
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize("value", ["127.0.0.1", "*", "other.example,127.0.0.1:{port}"])
def test_no_proxy_names_hosts_that_are_asked_directly(server, proxy, monkeypatch, name, value):
    url, asked = proxy
    monkeypatch.setenv("http_proxy", url)
    monkeypatch.setenv(name, value.format(port=server.server_port))
    assert download(f"{server.url}/x", ANYTHING) == DATA
    assert asked == []


def test_a_proxy_that_is_not_there_is_what_is_missing(monkeypatch):
    monkeypatch.setenv("http_proxy", "127.0.0.1:1")
    assert reason("http://reached.example/a.jpg", kind=BusyError) == "Connection refused"


# Whether a server answers at all


def test_a_server_that_answers_anything_of_this_address_is_there(server):
    for path in ("x", "404", "403", "loop", "endless"):
        assert answers(f"{server.url}/{path}", ANYTHING, 5), path
    for path in ("500", "reset", "garbage"):
        assert not answers(f"{server.url}/{path}", ANYTHING, 5), path


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path):
    command = "req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 1 -keyout key -out cert"
    subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    with serve(DATA) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = server.url.replace("http", "https")
        assert "certificate" in reason(f"{url}/x", kind=BusyError)
        assert server.asked == []


# A list of one's own


@pytest.mark.parametrize(
    ("source", "host", "own"),
    [
        ("/photos/list.csv", "127.0.0.1", "127.0.0.1"),
        ("/photos/list.csv", "10.1.2.3", "10.1.2.3"),
        ("/photos/list.csv", "169.254.169.254", None),  # metadata of a cloud
        ("/photos/list.csv", "localhost", None),  # a name, which may resolve to anything
        ("/photos/list.csv", "0.0.0.0", None),
        ("s3://bucket/list.csv", "127.0.0.1", None),
        ("https://example.org/list.csv", "10.1.2.3", None),
    ],
)
def test_a_list_on_this_machine_may_name_its_writers_own_servers(source, host, own):
    assert Access.of_source(source).for_host(host).own_host == own


def test_a_server_that_an_own_list_names_is_read_and_leads_to_no_other_host(server):
    own = Access.of_source("/photos/list.csv")
    assert download(f"{server.url}/good", own) == DATA
    with pytest.raises(RefusedAddressError):
        download(f"{server.url}/good", Access.of_source("s3://bucket/list.csv"))


def test_a_run_of_an_own_list_is_continued_and_others_are_not():
    assert Access.of_run("manifest /photos/list.csv").from_own_list
    assert Access.of_run("/photos").from_own_list
    for source in ("manifest s3://bucket/list.csv", "s3://bucket/photos", ""):
        assert not Access.of_run(source).from_own_list
    assert Access.of_run("manifest s3://bucket/list.csv", private=True).private
