"""A real S3 server (rclone's) on this machine, over a folder of buckets."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "an-access-key-for-tests", "a-secret-key-for-tests"


@contextlib.contextmanager
def serve_s3(folder, *options):
    """Serve the folders of ``folder/buckets``; gives the address, or None without a server."""
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        yield None
        return
    command = [program, "serve", "s3", "--addr", "127.0.0.1:0", "--config", "", *options]
    command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "buckets"]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, cwd=folder, stderr=log, env={"HOME": str(folder)})
    try:
        yield _wait_for_server(server, folder / "log")
    finally:
        server.terminate()
        server.wait(20)


def _wait_for_server(server, log):
    end = time.monotonic() + 60
    while time.monotonic() < end and server.poll() is None:
        if found := re.search(r"Starting s3 server on \[(http://[\d.:]+)/?\]", log.read_text()):
            try:
                urllib.request.urlopen(found[1], timeout=5).close()
            except urllib.error.HTTPError as refusal:  # it asks for credentials, so it serves
                refusal.close()
                return found[1]
            except OSError:
                pass
        time.sleep(0.02)
    raise RuntimeError(f"the S3 server did not start: {log.read_text()}")
