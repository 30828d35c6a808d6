"""A proxy before an S3 server that serves some requests as a busy or dying store does.

Whether a request meets a fault, and which, is a function of the seed and of the request's number.
The server's own answers are passed on whole.  The client signs the name it asks for, so its
``Host`` is passed on too: the server checks the signature against that.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

BUSY = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "internal_error": (500, "InternalError", "We encountered an internal error."),
    "too_many_requests": (429, "TooManyRequests", "Please reduce your request rate."),
}
RESETS = (
    "reset_before",  # nothing reached the server
    "request_cut",  # half a request came to the server, as from a client that died
    "reset_within",  # half an answer came
    "answer_lost",  # the server has done what was asked, and nobody hears of it
)
KINDS = (
    *BUSY,
    *RESETS,
    "body_cut",  # half a body under the length of the whole, then an orderly end
    "slow",
    "slow_request",
)
STALE_LISTING = "stale_listing"  # what the same question was answered before
SLOW_SECONDS, SLOW_PIECES = 1.0, 8
CUT_SECONDS = 0.1  # in which the server takes the half before the connections are reset


@dataclass(frozen=True, slots=True)
class Request:
    """What came from a client.

    Attributes
    ----------
    method, path : str
        As ``"PUT"`` and ``"/bucket/a key"``.
    query : str
        As ``"uploadId=1&partNumber=2"``.
    raw : bytes
        Head and body, or what is to reach the server of them.
    port : int
        The client's own, by which its process can be found.
    """

    method: str
    path: str
    query: str
    raw: bytes
    port: int


class FaultProxy:
    """Stands before a server while its ``with`` block runs, in a thread of its own.

    Parameters
    ----------
    server : str
        ``http://host:port`` of the real one.
    rate : float
        Share of the requests that meet a fault; may be changed at any time.
    seed : int
        Of the faults.
    kinds : sequence of str
        Kinds of faults to draw from.

    Attributes
    ----------
    url : str
        ``http://host:port`` of the proxy.
    requests : int
        Requests so far.
    stale : float
        Share of the listings that lag behind: they are answered as the same one was before.
    faults : collections.Counter
        How many of them met which kind.
    strike : callable, optional
        Sees each request before the server does; where it gives True, the request goes no further
        and nothing is answered.
    """

    def __init__(
        self, server: str, rate: float = 0.05, seed: int = 0, kinds: tuple[str, ...] = KINDS
    ) -> None:
        self.server = urlsplit(server)
        self.kinds = kinds
        self.faults: Counter[str] = Counter()
        self.strike: Callable[[Request], bool] | None = None
        self.begin(seed, rate)
        self._open: set[asyncio.Task[None] | None] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def begin(self, seed: int, rate: float, stale: float = 0.0) -> None:
        """Count requests and faults anew, which are those of another seed."""
        self.seed, self.rate, self.stale, self.requests = seed, rate, stale, 0
        self.faults.clear()
        self._listings: dict[tuple[str, str], bytes] = {}

    def __enter__(self) -> "FaultProxy":
        """Begin to serve."""
        self._thread.start()
        if not self._ready.wait(20):
            raise RuntimeError("the proxy did not start")
        return self

    def __exit__(self, *error: object) -> None:
        """Serve no more."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        listener = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=512)
        self.url = "http://{}:{}".format(*listener.sockets[0].getsockname())
        self._ready.set()
        await self._end.wait()
        listener.close()
        if self._open:
            await asyncio.wait(self._open, timeout=10)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        # a client that goes away in the middle is no fault of the proxy
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests += 1
            number = self.requests
            fault = _draw(self.seed, number, self.rate, self.kinds)
            request = await _read(head, fault == "request_cut", reader, writer)
            if not fault and _is_listing(request) and _lags(self.seed, number, self.stale):
                fault = STALE_LISTING
            await self._answer(request, fault, writer)
        writer.close()

    async def _answer(
        self, request: Request, fault: str | None, writer: asyncio.StreamWriter
    ) -> None:
        if self.strike and self.strike(request):
            return _reset(writer)
        if fault == STALE_LISTING and (request.path, request.query) not in self._listings:
            fault = None
        if fault:
            self.faults[fault] += 1
        if fault == "reset_before":
            return _reset(writer)
        if fault in BUSY:
            answer = _refusal(request, *BUSY[fault])
        elif fault == STALE_LISTING:
            answer = self._listings[request.path, request.query]
        else:
            answer = await self._ask(request, fault)
            if _is_listing(request) and answer.startswith(b"HTTP/1.1 200"):
                self._listings[request.path, request.query] = answer
        if fault in ("request_cut", "answer_lost"):
            return _reset(writer)
        if fault == "slow":
            await _drip(answer, writer)
        elif fault == "body_cut":
            head, end, body = answer.partition(b"\r\n\r\n")
            writer.write(head + end + body[: len(body) // 2])
        elif fault == "reset_within":
            writer.write(answer[: len(answer) // 2])
            await writer.drain()
            return _reset(writer)
        else:
            writer.write(answer)
        await writer.drain()

    async def _ask(self, request: Request, fault: str | None) -> bytes:
        reader, writer = await asyncio.open_connection(self.server.hostname, self.server.port)
        try:
            if fault == "slow_request":
                await _drip(request.raw, writer)
            else:
                writer.write(request.raw)
            if fault == "request_cut":
                await writer.drain()
                await asyncio.sleep(CUT_SECONDS)
                _reset(writer)
                return b""
            return await reader.read()
        finally:
            writer.close()


def _lags(seed: int, number: int, share: float) -> bool:
    return random.Random(f"{seed} listing {number}").random() < share


def _is_listing(request: Request) -> bool:
    return request.method == "GET" and "list-type=2" in request.query.split("&")


def _draw(seed: int, number: int, rate: float, kinds: tuple[str, ...]) -> str | None:
    rng = random.Random(f"{seed} {number}")
    return rng.choice(kinds) if rng.random() < rate else None


async def _read(
    head: bytes, cut: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Request:
    """Read what follows a head; it is sent on so that the server closes the connection after it.

    Of a request that is to be cut, half the body is read, or without a body half the head is kept.
    """
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    fields = {k.strip().lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
    if "transfer-encoding" in fields:
        raise NotImplementedError("a body in chunks: the clients of S3 announce its length")
    if fields.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = int(fields.get("content-length", 0))
    body = await reader.readexactly(length // 2 if cut else length)
    kept = [line for line in lines if not line.lower().startswith(("connection:", "expect:"))]
    raw = "\r\n".join([first, *kept, "Connection: close", "", ""]).encode("latin-1") + body
    if cut and not length:
        raw = raw[: len(raw) // 2]
    method, target, _ = first.split(" ", 2)
    place, port = urlsplit(target), writer.get_extra_info("peername")[1]
    return Request(method, unquote(place.path), place.query, raw, port)


def _refusal(request: Request, status: int, code: str, message: str) -> bytes:
    """Answer as S3 does when it is busy."""
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    body = b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + (b"" if request.method == "HEAD" else body)


async def _drip(message: bytes, writer: asyncio.StreamWriter) -> None:
    size = -(-len(message) // SLOW_PIECES)
    for start in range(0, len(message), size):
        writer.write(message[start : start + size])
        await writer.drain()
        await asyncio.sleep(SLOW_SECONDS / SLOW_PIECES)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN: what the client sees of a process that died."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
