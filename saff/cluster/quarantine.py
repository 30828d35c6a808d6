"""Images that kill the process that works on them: found out, then left out with an error row.

A fault that Python can catch is a row at once.  A crash inside a decoder, or a process that is
killed for its memory, is not: Ray starts the part again, for ever.  So a part leaves a note that it
was begun.  Who finds the note works carefully: one image at a time, its id noted before.  An image
that is noted when a process dies, again and again, is at fault; one that was unlucky is not, as
machines that are taken away seldom meet the same image.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field

from saff.storage import Folder, is_local

FOLDER = ".begun"  # of a stage: a note for each part that is worked on
MOST_DEATHS = 3  # of processes at one image
KIND = "process_killed"
ERROR = (
    f"the process that worked on this image died {MOST_DEATHS} times, perhaps for want of memory"
)


@dataclass(slots=True)
class Note:
    """What is known of a part that is being worked on.

    Attributes
    ----------
    folder : Folder
        Of the notes.
    part : str
        Name of the part.
    again : bool
        Whether an earlier attempt did not come to its end.
    deaths : dict of str to int
        How many processes died at an image.
    """

    folder: Folder
    part: str
    again: bool = False
    deaths: dict[str, int] = field(default_factory=dict)

    @property
    def at_fault(self) -> set[str]:
        """Ids of the images that are left out."""
        return {image_id for image_id, died in self.deaths.items() if died >= MOST_DEATHS}

    def at(self, image_id: str) -> None:
        """Note the image that comes next."""
        content = {"at": image_id, "deaths": self.deaths}
        self.folder.write(self.part, json.dumps(content).encode())

    def done(self) -> None:
        """Take the note away: the part is whole."""
        self.folder.remove(self.part)


def begin(stage: Folder, part: str) -> Note:
    """Note that work on a part begins, and read what an earlier attempt has left.

    Parameters
    ----------
    stage : Folder
        Of the shards.
    part : str
        Name of the part.

    Returns
    -------
    note : Note
        A damaged note of an earlier attempt counts as one that names no image.
    """
    folder = stage / FOLDER
    try:
        left = folder.read(part)
    except FileNotFoundError:
        note = Note(folder, part)
    else:
        note = Note(folder, part, again=True, deaths=_deaths(left))
    note.at("")
    return note


def _deaths(left: bytes) -> dict[str, int]:
    try:
        content = json.loads(left)
        deaths = {str(i): int(died) for i, died in content["deaths"].items()}
        at = str(content["at"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {**deaths, at: deaths.get(at, 0) + 1} if at else deaths


def tidy(stage: Folder) -> None:
    """Remove what processes that died have left in a stage; only when nobody is at work."""
    stage.sweep()
    folder = stage / FOLDER
    for part in folder.names(""):
        folder.remove(part)
    if is_local(folder.fs):
        with suppress(FileNotFoundError):
            os.rmdir(folder.path)
