"""Checks on the driver: what a job uploads, the storage of an output and the run in it."""

import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import saff
from saff import layout
from saff.addresses import is_local
from saff.cluster.ray_internals import UPLOAD_LIMIT, visit_uploaded_files
from saff.doctor.findings import Finding, format_bytes
from saff.errors import SettingsError
from saff.plan import plan_stage
from saff.runs import read_run
from saff.storage import Folder, with_brief_retries
from saff.verification import stages_of

LEAST_SPACE = 2**30  # bytes, of a local output
BYTES_PER_IMAGE = 100_000  # of a shard, roughly
ZIP_PER_FILE, ZIP_END = 76, 22  # bytes of a zip's headers, beside a file's name that comes twice


def check_upload(folder: Path) -> Iterator[Finding]:
    """Check that ``ray job submit --working-dir .`` can send this folder."""
    yield assess_upload(folder, upload_size(folder))


def upload_size(folder: Path) -> int:
    """Size in bytes of the zip file that Ray would make of a folder, which it does not compress."""
    size = ZIP_END

    def add(path: Path) -> None:
        nonlocal size
        empty = path.is_dir() and not any(path.iterdir())
        if path.is_file() or empty:
            name = f"{path.relative_to(folder)}{'/' if empty else ''}"
            size += ZIP_PER_FILE + 2 * len(name.encode()) + (0 if empty else path.stat().st_size)

    visit_uploaded_files(folder, add)
    return size


def assess_upload(folder: Path, size: int, limit: int = UPLOAD_LIMIT) -> Finding:
    """Compare what a job would send with what Ray takes."""
    message = f"ray job submit --working-dir . would send {format_bytes(size)} from {folder}"
    if size < limit:
        return Finding("upload", True, message)
    remedy = "submit from the clone, or name in .rayignore what no job needs"
    return Finding("upload", False, f"{message}, Ray takes {format_bytes(limit)}", remedy)


def check_storage(output: str) -> Iterator[Finding]:
    """List, write, read and remove at an output from the driver."""
    place = existing_folder(Folder.at(output))
    with with_brief_retries(output):
        times = time_storage(place)
    yield Finding("storage", True, f"{times} at {place.uri}")


class Times(NamedTuple):
    """Seconds that a storage took for each operation."""

    list: float
    write: float
    read: float
    remove: float

    def __str__(self) -> str:
        """Give them in milliseconds."""
        return ", ".join(f"{name} {1000 * t:.1f} ms" for name, t in self._asdict().items())


def time_storage(place: Folder) -> Times:
    """Do with a small file what a run does with its own, and measure it."""
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


def existing_folder(folder: Folder) -> Folder:
    """Find where an output would be made: a local one in the nearest folder that exists."""
    if not is_local(folder.fs):
        return folder
    path = Path(folder.path)
    while not path.is_dir():
        if os.path.lexists(path):
            raise SettingsError(f"{path} is not a folder; choose another output")
        path = path.parent
    return Folder(folder.fs, str(path))


def check_space(output: str) -> Iterator[Finding]:
    """Check the space of a local output; an object store does not report it."""
    place = existing_folder(Folder.at(output))
    if is_local(place.fs):
        yield assess_space(place.uri, shutil.disk_usage(place.path).free)


def assess_space(uri: str, free: int) -> Finding:
    """Compare the free bytes of an output with what a run needs."""
    enough = free >= LEAST_SPACE
    images = round(free / BYTES_PER_IMAGE, -3)
    message = f"{format_bytes(free)} free at {uri}, for about {images:,.0f} images"
    remedy = f"free some space: a run should begin with {format_bytes(LEAST_SPACE)}"
    return Finding("space", enough, message, "" if enough else remedy)


def check_run(output: str) -> Iterator[Finding]:
    """Count what every stage of an output holds, and check that this saff can continue it."""
    folder = existing_folder(Folder.at(output))
    with with_brief_retries(output):
        begun = folder.uri == Folder.at(output).uri and folder.exists(layout.RUN)
    if not begun:
        yield Finding("run", True, f"{output} holds no run yet")
        return
    run = read_run(folder)
    counts = [f"{stage}: {plan_stage(folder, stage)}" for stage in stages_of([folder], [run])]
    yield assess_run(str(run.get("saff")), saff.__version__, counts)


def assess_run(begun_with: str, version: str, counts: Sequence[str]) -> Finding:
    """Compare the version that a run was begun with and the installed one."""
    message = "; ".join((f"begun with saff {begun_with}", *counts))
    if begun_with == version:
        return Finding("run", True, message)
    remedy = f"this is saff {version}: continue with saff {begun_with}, or choose another output"
    return Finding("run", False, message, remedy)
