"""Images on the web: one address, sent as it came, within bounds of place, size and time.

A server may redirect in a circle, lie about a length, send a byte a minute, or lead to a network
that is not public.  Each of these becomes an error that says whether the address is at fault
(:class:`saff.errors.UnreadableError`) or whether asking again may help (an OSError).
"""

import asyncio
import atexit
import contextlib
import ipaddress
import os
import ssl
from contextlib import suppress
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import (  # type: ignore[attr-defined] # the second, in typeshed
    getproxies_environment,
    proxy_bypass_environment,
)

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from fsspec.asyn import get_loop, sync
from yarl import URL

import saff
from saff.access import Access, refuse_private, too_large
from saff.addresses import WEB, web_address
from saff.errors import BusyError, SlowError, UnreadableError
from saff.retries import BAD_ADDRESS

MOST_REDIRECTS = 10
REDIRECTS = frozenset({301, 302, 303, 307, 308})
CONNECT_SECONDS = 15.0  # to connect, TLS included
SILENT_SECONDS = 60.0  # without a byte
SLOW_AFTER, SLOWEST = 30.0, 1000.0  # seconds; bytes per second that are expected by then
HEADERS = {"User-Agent": f"saff/{saff.__version__}", "Accept-Encoding": "identity"}
NO_LONGER_THERE = (404, 410)
LATER = (408, 425, 429)  # time-out, too early, too many requests


def store_of(url: str) -> str:
    """Server of a web address: its host and port.

    >>> store_of("HTTPS://Host/a?b"), store_of("http://host:8080/")
    ('host:443', 'host:8080')
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme.lower() == "https" else 80)
        return f"{parts.hostname or ''}:{port}"
    except ValueError:  # no address, which asking it says
        return url


def download(url: str, access: Access) -> bytes:
    """Read what a web address gives.

    Parameters
    ----------
    url : str
        ``http://`` or ``https://``.
    access : Access
        Where it may lead, and how much is read.

    Raises
    ------
    RefusedAddressError
        If it leads where ``access`` does not let it.
    FileNotFoundError
        If the server has no file at this address.
    UnreadableError
        If the server gives this address no file, and will not.
    OSError
        If there is no answer, or one that may differ next time.
    """
    data: bytes = sync(get_loop(), _within, access.seconds, url, access, True)
    return data


def answers(url: str, access: Access, seconds: float) -> bool:
    """Whether the server of an address answers requests, whatever it says of this one."""
    try:
        sync(get_loop(), _within, seconds, url, access, False)
    except (FileNotFoundError, UnreadableError):
        return True
    except OSError:
        return False
    return True


async def _within(seconds: float, url: str, access: Access, whole: bool) -> bytes:
    try:
        return await asyncio.wait_for(_follow(url, access, whole), seconds)
    except asyncio.TimeoutError as error:
        raise SlowError(f"the server took longer than {seconds:g} s") from error
    except aiohttp.ClientError as error:
        if isinstance(error, aiohttp.InvalidURL):  # its text is the address
            raise UnreadableError("the image's uri is no address", BAD_ADDRESS) from None
        raise BusyError(_words(error)) from None


def _words(error: aiohttp.ClientError) -> str:
    """Say what a client met, without the address, which may be signed."""
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer ends early or is not encoded as it says"
    inner = getattr(error, "os_error", None) or error.__cause__ or error
    if isinstance(inner, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {inner.verify_message}"
    if isinstance(inner, ssl.SSLError):
        return f"TLS fails: {inner.reason or type(inner).__name__}"
    if isinstance(inner, aiohttp.ServerTimeoutError):
        return "no answer in time"
    number = getattr(inner, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number)
    return type(error).__name__


async def _follow(url: str, access: Access, whole: bool) -> bytes:
    """Ask an address, and those to which it redirects."""
    with contextlib.suppress(UnreadableError):
        access = access.for_host(_parsed(url).host or "")
    for _ in range(MOST_REDIRECTS + 1):
        found = await _ask(url, access, whole)
        if isinstance(found, bytes):
            return found
        try:
            url = urljoin(url, found)
            scheme = urlsplit(url).scheme.lower()
        except ValueError:
            raise UnreadableError("its server redirects to no address") from None
        if scheme not in WEB:
            raise UnreadableError(
                f"its server redirects to an address {scheme}:, which is not followed"
            )
    raise UnreadableError(f"its server redirects more than {MOST_REDIRECTS} times")


async def _ask(url: str, access: Access, whole: bool) -> bytes | str:
    """Ask one address: its bytes, or the address to which it redirects."""
    access.refuse_scheme(url)
    address = _parsed(url)
    proxy = _proxy_of(address)
    private = access.private or address.host == access.own_host
    if not private:
        await _refuse_private_host(address.host or "", behind_proxy=proxy is not None)
    session = await _session(public=not private and proxy is None)
    async with session.get(address, allow_redirects=False, proxy=proxy) as response:
        if response.status in REDIRECTS:
            if not (place := response.headers.get("Location")):
                raise UnreadableError("its server redirects to no address", response.status)
            return place
        _refuse_status(response)
        return await _read(response, access) if whole else b""


def _parsed(url: str) -> URL:
    """Address as it is sent, in its parts."""
    try:
        address = URL(_plain_host(web_address(url)), encoded=True)
        known = bool(address.host and address.port)
    except ValueError:
        known = False
    if not known:
        raise UnreadableError("the image's uri is no address", BAD_ADDRESS)
    return address


def _plain_host(url: str) -> str:
    """Spell a host that is not ASCII, as it was quoted, the way requests do (IDNA)."""
    parts = urlsplit(url)
    if "%" not in parts.netloc:
        return url
    host = URL(f"{parts.scheme}://{parts.netloc}").authority
    return parts._replace(netloc=URL(f"{parts.scheme}://{host}").raw_authority).geturl()


def _refuse_status(response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status in NO_LONGER_THERE:
        raise FileNotFoundError("there is no file at this address")
    if status in LATER or status >= 500:
        busy = BusyError(f"its server answers {status}", status)
        after = response.headers.get("Retry-After", "")
        if after.isascii() and after.isdecimal():
            busy.wait = float(after)
        raise busy
    if not 200 <= status < 300:
        raise UnreadableError(f"the store does not give this image out ({status})", status)


async def _read(response: aiohttp.ClientResponse, access: Access) -> bytes:
    """Read an answer; what arrives is counted, not what was announced."""
    loop = asyncio.get_running_loop()
    begun, data = loop.time(), bytearray()
    if (response.content_length or 0) > access.largest:
        raise too_large(access)
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > access.largest:
            raise too_large(access)
        seconds = loop.time() - begun
        if seconds > SLOW_AFTER and len(data) < SLOWEST * seconds:
            raise SlowError(f"its server sent {len(data):,} bytes in {seconds:.0f} s")
    return bytes(data)


# Where a name leads


async def _refuse_private_host(host: str, *, behind_proxy: bool) -> None:
    """Refuse a host that is private by itself; of a proxy, also by what this machine knows of it.

    Without a proxy, names are judged when they are resolved: what is judged is what is connected.
    """
    refuse_private(host, [host] if _is_ip(host) else [])
    if behind_proxy and not _is_ip(host):
        try:
            found = await ThreadedResolver().resolve(host, 0)
        except OSError:  # the proxy alone knows it
            return
        refuse_private(host, [one["host"] for one in found])


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


class PublicResolver(AbstractResolver):
    """Resolves names of the public internet alone; the connection goes to what was judged."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        """IP addresses of a host, all of them public."""
        found = await self._resolver.resolve(host, port, family)
        refuse_private(host, [one["host"] for one in found])
        return found

    async def close(self) -> None:
        """Nothing is held open."""


def _proxy_of(address: URL) -> str | None:
    """Proxy that the environment names for an address: ``http_proxy``, ``no_proxy``, ..."""
    proxies = getproxies_environment()
    proxy = proxies.get(address.scheme)
    if not proxy or proxy_bypass_environment(f"{address.host}:{address.port}", proxies):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


_sessions: dict[tuple[int, bool], aiohttp.ClientSession] = {}


async def _session(*, public: bool) -> aiohttp.ClientSession:
    """Session of this process, which keeps connections open; it sends no cookies."""
    key = (os.getpid(), public)
    if key not in _sessions or _sessions[key].closed:
        connector = aiohttp.TCPConnector(
            limit=0, resolver=PublicResolver() if public else ThreadedResolver(), ttl_dns_cache=60
        )
        _sessions[key] = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=HEADERS,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS
            ),
        )
    return _sessions[key]


@atexit.register
def _close_sessions() -> None:
    for (process, _), session in _sessions.items():
        if process == os.getpid():
            with suppress(Exception):  # the process ends
                sync(get_loop(), session.close, timeout=1)
