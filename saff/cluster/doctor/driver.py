"""What is checked on the driver: what a job uploads, the storage of an output, what is in it."""

import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ray._private import ray_constants
from ray._private.runtime_env import packaging

import saff
from saff import layout
from saff.addresses import is_local
from saff.cluster.doctor.findings import Finding, show
from saff.errors import SettingsError
from saff.plan import plan_stage
from saff.runs import read_run
from saff.storage import Folder, with_brief_retries

LEAST_SPACE = 2**30  # bytes, of a local output
BYTES_PER_IMAGE = 100_000  # of a shard, roughly
ZIP_PER_FILE, ZIP_END = 76, 22  # bytes of a zip's headers, beside a file's name that comes twice
# What `ray job submit` may send: the dashboard's limit on a request comes before Ray's own.
MOST_UPLOAD = min(ray_constants.DASHBOARD_CLIENT_MAX_SIZE, packaging.GCS_STORAGE_MAX_SIZE)


def check_upload(folder: Path) -> Iterator[Finding]:
    """Whether ``ray job submit --working-dir .`` can send this folder."""
    yield judge_upload(folder, upload_size(folder))


def upload_size(folder: Path) -> int:
    """Size in bytes of the zip file that Ray would make of a folder, which it does not compress."""
    size = ZIP_END

    def add(path: Path) -> None:
        nonlocal size
        empty = path.is_dir() and not any(path.iterdir())
        if path.is_file() or empty:
            name = f"{path.relative_to(folder)}{'/' if empty else ''}"
            size += ZIP_PER_FILE + 2 * len(name.encode()) + (0 if empty else path.stat().st_size)

    ignored = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    quiet = logging.Logger("saff.doctor", logging.CRITICAL)
    packaging._dir_travel(folder, [], add, include_gitignore=ignored, logger=quiet)
    return size


def judge_upload(folder: Path, size: int, most: int = MOST_UPLOAD) -> Finding:
    """Compare what a job would send with what Ray takes."""
    told = f"ray job submit --working-dir . would send {show(size)} from {folder}"
    if size < most:
        return Finding("upload", True, told)
    remedy = "submit from the clone, or name in .rayignore what no job needs"
    return Finding("upload", False, f"{told}, Ray takes {show(most)}", remedy)


def check_storage(output: str) -> Iterator[Finding]:
    """List, write, read and remove at an output from the driver."""
    place = nearest(Folder.at(output))
    with with_brief_retries(output):
        times = touch(place)
    yield Finding("storage", True, f"{times} at {place.uri}")


class Times(NamedTuple):
    """Seconds that a storage took."""

    list: float
    write: float
    read: float
    remove: float

    def __str__(self) -> str:
        """In milliseconds."""
        return ", ".join(f"{name} {1000 * t:.1f} ms" for name, t in self._asdict().items())


def touch(place: Folder) -> Times:
    """Do with a small file what a run does with its own."""
    name, data = f".saff-doctor-{uuid.uuid4().hex}", uuid.uuid4().bytes
    clock = [time.perf_counter()]

    def lap() -> None:
        clock.append(time.perf_counter())

    place.names("")
    lap()
    place.write(name, data)
    lap()
    try:
        back = place.read(name)
        lap()
    finally:
        place.remove(name)
        lap()
    if back != data:
        raise SettingsError(f"{place.uri} gives back other bytes than were written")
    return Times(*np.diff(clock).tolist())


def nearest(folder: Folder) -> Folder:
    """Where an output would be made: itself, or of a local one the first folder that is there."""
    if not is_local(folder.fs):
        return folder
    path = Path(folder.path)
    while not path.is_dir():
        if os.path.lexists(path):
            raise SettingsError(f"{path} is no folder; choose another output")
        path = path.parent
    return Folder(folder.fs, str(path))


def check_space(output: str) -> Iterator[Finding]:
    """Whether a local output has space; an object store does not tell."""
    place = nearest(Folder.at(output))
    if is_local(place.fs):
        yield judge_space(place.uri, shutil.disk_usage(place.path).free)


def judge_space(uri: str, free: int) -> Finding:
    """Compare the free bytes of an output with what a run needs."""
    told = f"{show(free)} free at {uri}, for about {round(free / BYTES_PER_IMAGE, -3):,.0f} images"
    remedy = f"free some: a run should begin with {show(LEAST_SPACE)}"
    return Finding("space", free >= LEAST_SPACE, told, "" if free >= LEAST_SPACE else remedy)


def check_run(output: str) -> Iterator[Finding]:
    """What an output holds, and whether this saff can continue it."""
    folder = nearest(Folder.at(output))
    with with_brief_retries(output):
        begun = folder.uri == Folder.at(output).uri and folder.exists(layout.RUN)
    if not begun:
        yield Finding("run", True, f"{output} holds none yet")
        return
    made_by = str(read_run(folder).get("saff"))
    yield judge_run(made_by, saff.__version__, str(plan_stage(folder)))


def judge_run(made_by: str, here: str, counts: str) -> Finding:
    """Compare the version that a run was begun with and the one here."""
    told = f"begun with saff {made_by}; {counts}"
    if made_by == here:
        return Finding("run", True, told)
    remedy = f"this is saff {here}: continue with saff {made_by}, or choose another output"
    return Finding("run", False, told, remedy)
