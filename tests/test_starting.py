"""Ray on whatever machine this is: what it needs is there, or a line names the variable to set."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from clusters import wait_for
from label_runs import parts_of
from saff.cluster import resources, starting
from saff.errors import SettingsError


@pytest.fixture(autouse=True)
def no_token_of_this_machine(monkeypatch):
    for name in (*starting.TOKENS, "RAY_AUTH_MODE", "RAY_ADDRESS", starting.SUBMITTED):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def read_only(mount_disk):
    """A folder that nobody, root included, can write."""
    return mount_disk("ro,size=64k")


@pytest.fixture
def full(mount_disk):
    """A folder of a disk without any room."""
    place = mount_disk("size=16k")
    filler = os.open(place / "filler", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(filler, bytes(4096)):
            pass
    os.close(filler)
    return place


# Folders


def test_a_home_that_can_be_written_keeps_the_token(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert starting.has_token()
    assert list((tmp_path / ".ray").iterdir()) == []  # nothing is left behind


def test_a_home_that_cannot_be_written_needs_no_token(read_only, monkeypatch):
    monkeypatch.setenv("HOME", str(read_only))
    assert not starting.has_token()
    monkeypatch.setenv("RAY_TMPDIR", str(read_only.parent))
    starting.options_here()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    monkeypatch.delenv("RAY_AUTH_TOKEN")


def test_a_home_without_room_needs_no_token(full, monkeypatch):
    monkeypatch.setenv("HOME", str(full))
    assert not starting.has_token()


def test_a_user_without_a_home_needs_no_token(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert not starting.has_token()


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_that_is_given_is_used(read_only, monkeypatch, name):
    monkeypatch.setenv("HOME", str(read_only))
    monkeypatch.setenv(name, "x")
    assert starting.has_token()


@pytest.mark.parametrize("kind", ["read_only", "full"])
def test_a_folder_that_ray_cannot_use_is_named_with_its_variable(kind, request, monkeypatch):
    place = request.getfixturevalue(kind)
    monkeypatch.setenv("RAY_TMPDIR", str(place))
    with pytest.raises(SettingsError, match="set RAY_TMPDIR") as said:
        starting.options_here()
    assert str(place) in str(said.value)


# Cores


@pytest.mark.parametrize(("cores", "options"), [(0, {"num_cpus": 1}), (1, {}), (8, {})])
def test_a_machine_of_less_than_one_core_has_one(monkeypatch, cores, options):
    monkeypatch.setattr(starting, "usable_cores", lambda: cores)
    assert starting.options_here() == options


# Clusters that are not there


def test_an_address_where_nobody_listens_ends_in_a_line(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    start = time.monotonic()
    with pytest.raises(SettingsError, match=r"RAY_ADDRESS is 127.*nothing answers.*or unset"):
        resources.start_ray()
    assert time.monotonic() - start < 20


def test_an_address_where_something_else_listens_ends_in_time(monkeypatch):
    monkeypatch.setattr(starting, "RAY_TIMEOUT", 1.0)
    with socket.create_server(("0.0.0.0", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(SettingsError, match="but not as Ray within 1 s"):
            starting.check_address(address, 1.0)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "nonsense", "127.0.0.1:99999"])
def test_an_address_of_another_kind_is_named(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SettingsError, match=f"RAY_ADDRESS is {address}"):
        resources.start_ray()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("no cluster\nmore"), "Ray did not start: no cluster"),
        (OSError(28, "No space left on device"), "set RAY_TMPDIR"),
        (RuntimeError(), "Ray did not start: RuntimeError"),
    ],
)
def test_why_ray_did_not_start_is_one_line(error, words):
    said = str(starting.start_error(error))
    assert words in said
    assert "\n" not in said


# Ctrl-C

INTERRUPTED = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell began us with &
from saff.cluster.starting import ending_at_interrupt
with ending_at_interrupt():
    pass
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("as before", flush=True)
with ending_at_interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    print("not reached")
"""


def test_an_interrupt_while_ray_starts_ends_at_once_in_a_line():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stdout == "as before\n"
    assert done.stderr == "\nsaff: interrupted while Ray started; nothing was changed\n"


EARLY = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Moment:
    def find_spec(self, name, path, target=None):
        if name == "{name}":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Moment())
sys.argv = ["saff", "--version"]
from saff.__main__ import main
main()
"""


@pytest.mark.parametrize("name", ["saff.cli", "typer", "saff.cli.commands"])
def test_an_interrupt_before_the_command_line_is_loaded_is_one_line(name):
    early = EARLY.format(name=name)
    done = subprocess.run([sys.executable, "-c", early], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stdout == ""
    assert done.stderr == "saff: interrupted before anything was done\n"


def has_begun(log, output):
    """Whether the command has read its settings: Ray starts next."""
    return "settings: " in log.read_text()


def has_labelled(log, output):
    return len(parts_of(output)) >= 2


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("moment", [has_begun, has_labelled])
def test_a_command_that_is_interrupted_ends_with_130_and_one_line(
    crops, settings_file, tmp_path, moment
):
    output, log = tmp_path / "out", tmp_path / "log"
    words = ["label", crops, "--output", output, "--config", settings_file]
    command = [sys.executable, "-c", "from saff.cli import main; main()", *map(str, words)]
    environment = os.environ | {"RAY_TMPDIR": "/tmp"}
    with (
        open(log, "wb") as stream,
        subprocess.Popen(
            command,
            stderr=stream,
            env=environment,
            start_new_session=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # as INTERRUPTED does
        ) as process,
    ):
        wait_for(lambda: moment(log, output), process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    said = log.read_text()
    assert len(parts_of(output)) < 13, "the command was to be interrupted in mid-run"
    assert said.splitlines()[-1].startswith("saff: interrupted"), said
    assert "SIGSEGV" not in said
    assert "Traceback" not in said


# Locales


@pytest.mark.skipif(shutil.which("localedef") is None, reason="no localedef here")
def test_names_are_read_in_a_locale_that_has_not_all_letters(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    names = ["Grösse.png", "plain.png", "✓.png"]
    for name in names:
        (photos / name).write_bytes(b"x")
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", tmp_path / "de_DE.ISO-8859-1"],
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("the locale cannot be made here")
    environment = os.environ | {"LOCPATH": str(tmp_path), "LC_ALL": "de_DE.ISO-8859-1"}
    environment.pop("PYTHONUTF8", None)
    words = ["manifest", str(photos), "--output", str(tmp_path / "out")]
    command = [sys.executable, "-c", "from saff.cli import main; main()", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "3 new images; 2 parts\n")
    import pyarrow.parquet as pq

    assert pq.read_table(tmp_path / "out" / "manifest")["image_id"].to_pylist() == names
