"""Images that kill the process that works on them: found out, then left out with an error row.

A fault that Python can catch is a row at once.  A crash inside a decoder, or a process that is
killed for its memory, is not: Ray starts the part again without limit.  So a part leaves a note
that it was begun.  A worker that finds the note does one image at a time and notes its id before.
An image that is noted when a process dies, again and again, is at fault; one that was unlucky is
not, as machines that are taken away seldom meet the same image.  A job that is stopped takes its
processes with it, so only those count that died while their job went on.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field

from saff.addresses import is_local
from saff.layout import NOTES
from saff.storage import Folder

MOST_DEATHS = 3  # of processes at one image
KIND = "process_killed"
ERROR = (
    f"the process that worked on this image died {MOST_DEATHS} times, perhaps for want of memory"
)


def note_name(part: str) -> str:
    """File name of the note of a part; no Parquet file, whatever the part is called."""
    return f"{part}.json"


@dataclass(slots=True)
class Note:
    """What is known of a part that is being worked on.

    Attributes
    ----------
    folder : Folder
        Folder of the notes.
    part : str
        Name of the part.
    job : str
        Which job works on it.
    again : bool
        Whether an earlier attempt did not come to its end.
    deaths : dict of str to int
        How many processes died at an image.
    """

    folder: Folder
    part: str
    job: str
    again: bool = False
    deaths: dict[str, int] = field(default_factory=dict)

    @property
    def at_fault(self) -> set[str]:
        """Ids of the images that are left out."""
        return {image_id for image_id, died in self.deaths.items() if died >= MOST_DEATHS}

    def at(self, image_id: str) -> None:
        """Note the image that comes next."""
        content = {"job": self.job, "at": image_id, "deaths": self.deaths}
        self.folder.write(note_name(self.part), json.dumps(content).encode())

    def done(self) -> None:
        """Take the note away: the part is whole."""
        self.folder.remove(note_name(self.part))


def begin(stage: Folder, part: str, job: str) -> Note:
    """Note that work on a part begins, and read what an earlier attempt has left.

    Parameters
    ----------
    stage : Folder
        Folder of the parts.
    part : str
        Name of the part.
    job : str
        Which job works on it; another one for each start of a driver.

    Returns
    -------
    note : Note
        A damaged note of an earlier attempt counts as one that names no image.
    """
    folder = stage / NOTES
    try:
        left = folder.read(note_name(part))
    except FileNotFoundError:
        note = Note(folder, part, job)
    else:
        note = Note(folder, part, job, again=True, deaths=_deaths(left, job))
    note.at("")
    return note


def _deaths(left: bytes, job: str) -> dict[str, int]:
    """Count the deaths that a note records, the last one if it was in the same job."""
    try:
        content = json.loads(left)
        deaths = {str(i): int(died) for i, died in content["deaths"].items()}
        at = str(content["at"]) if content["job"] == job else ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {**deaths, at: deaths.get(at, 0) + 1} if at else deaths


def tidy(stage: Folder) -> None:
    """Remove what processes that died have left in a stage; only when nobody is at work."""
    stage.sweep()
    folder = stage / NOTES
    folder.sweep()
    for part in folder.names(""):
        folder.remove(part)
    if is_local(folder.fs):
        with suppress(OSError):  # not there, or a network file system holds something in it
            os.rmdir(folder.path)
