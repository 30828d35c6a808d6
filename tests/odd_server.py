"""A web server on this machine with the habits of real ones, for tests."""

import gzip
import http.server
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress


class OddHandler(http.server.BaseHTTPRequestHandler):
    """Answers by the first part of the path; anything else gives the picture."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def out(self, status, body=b"", **headers):
        self.send_response(status)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        kind, _, rest = self.path.strip("/").partition("/")
        kind = kind.partition("?")[0]
        self.server.asked.append(self.path)
        self.server.headers.append(dict(self.headers))
        seen = self.server.seen
        seen[self.path] += 1
        answer = getattr(self, f"do_{kind}", None)
        if kind.isdecimal():
            self.out(int(kind), b"" if kind in ("204", "304") else b"words")
        elif answer:
            answer(rest, seen[self.path])
        else:
            self.out(200, self.server.data)

    def do_loop(self, rest, seen):
        self.out(302, Location="/loop")

    def do_to(self, rest, seen):
        self.out(302, Location=self.server.places[rest])

    def do_nowhere(self, rest, seen):
        self.out(302)

    def do_short(self, rest, seen):
        data = self.server.data
        self.out(200, data[:-50], Content_Length=str(len(data)))
        self.close_connection = True

    def do_badgzip(self, rest, seen):
        self.out(200, self.server.data, Content_Encoding="gzip")

    def do_goodgzip(self, rest, seen):
        self.out(200, gzip.compress(self.server.data), Content_Encoding="gzip")

    def do_bomb(self, rest, seen):
        self.out(200, gzip.compress(bytes(2**24)), Content_Encoding="gzip")

    def do_chunked(self, rest, seen):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(self.server.data), 500):
            piece = self.server.data[start : start + 500]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def do_nolength(self, rest, seen):
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(self.server.data)
        self.close_connection = True

    def do_endless(self, rest, seen):
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(bytes(2**16))
        self.close_connection = True

    def do_reset(self, rest, seen):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def do_drip(self, rest, seen):
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        with suppress(OSError):
            for _ in range(600):
                self.wfile.write(b"x")
                time.sleep(0.05)
        self.close_connection = True

    def do_garbage(self, rest, seen):
        self.wfile.write(b"\x16\x03\x01 not HTTP at all\r\n\r\n")
        self.close_connection = True

    def do_busy(self, rest, seen):
        if seen < 3:
            self.out(429, b"slow down", Retry_After="0")
        else:
            self.out(200, self.server.data)

    def do_once(self, rest, seen):
        """Fail with a status the first time."""
        self.out(int(rest), b"") if seen == 1 else self.out(200, self.server.data)


@contextmanager
def serve(data, address="127.0.0.1"):
    """Serve ``data``; gives the server, whose ``url``, ``asked`` and ``places`` tests use."""
    server = http.server.ThreadingHTTPServer((address, 0), OddHandler)
    server.daemon_threads = True
    server.data, server.asked, server.headers, server.places = data, [], [], {}
    server.seen = Counter()
    server.url = f"http://{address}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serve_proxy(data):
    """Run a forward proxy that answers itself; gives its address and those it was asked for."""
    asked = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()
