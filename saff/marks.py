"""What a person thinks of the results of a run: images accepted or rejected, kept beside them.

``OUTPUT/review/marks.csv`` has a line for each image that was marked.  A training leaves out what
is rejected; an export can be of what is accepted, or of what is not rejected.
"""

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping
from enum import Enum

from saff import layout
from saff.errors import SettingsError, StorageError
from saff.storage import Folder, with_brief_retries

MARKS = "marks.csv"
COLUMNS = ("image_id", "mark")


class Mark(str, Enum):
    """What is said of an image."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"

    __str__ = str.__str__


class Only(str, Enum):
    """Images that an export is restricted to."""

    ALL = "all"
    ACCEPTED = "accepted"
    NOT_REJECTED = "not-rejected"

    __str__ = str.__str__


UNMARKED = "unmarked"  # in a list: takes a mark away
Marks = dict[str, Mark]


def read_marks(output: Folder) -> Marks:
    """Marks of a run by image id; none if nobody has marked anything.

    Raises
    ------
    StorageError
        If the file is damaged.
    """
    folder = layout.review(output)
    with with_brief_retries(folder.uri):
        data = folder.read(MARKS) if folder.exists(MARKS) else b""
    try:
        found = dict(_changes(data, MARKS))
    except SettingsError as error:
        raise StorageError(f"{folder.uri} is damaged: {error}") from error
    return {image_id: mark for image_id, mark in found.items() if mark is not None}


def add_marks(output: Folder, changes: Mapping[str, Mark | None], known: Iterable[str]) -> Marks:
    """Take new marks in; a later one replaces an earlier one, None takes it away.

    Parameters
    ----------
    output : Folder
        A run.
    changes : mapping of str to Mark
        By image id.
    known : iterable of str
        Ids of the run's images.

    Raises
    ------
    SettingsError
        If an image is none of the run's; nothing is changed then.
    """
    if unknown := sorted(changes.keys() - set(known)):
        raise SettingsError(
            f"{len(unknown):,} of the marked images are none of {output.uri}, {unknown[0]!r} the "
            "first; name images by their image_id"
        )
    marks = read_marks(output)
    for image_id, mark in changes.items():
        marks.pop(image_id, None)
        if mark is not None:
            marks[image_id] = mark
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((image_id, str(mark)) for image_id, mark in sorted(marks.items()))
    layout.review(output).write(MARKS, text.getvalue().encode())
    return marks


def read_changes(data: bytes, name: str) -> dict[str, Mark | None]:
    """Read marks from a CSV file that a person wrote, such as a ranking with its column filled in.

    Parameters
    ----------
    data : bytes
        With the columns ``image_id`` and ``mark``; others are ignored.  A mark is ``accepted``,
        ``rejected``, ``unmarked``, which takes one away, or empty, which says nothing.
    name : str
        Of the file, for messages.

    Raises
    ------
    SettingsError
        If it is no such file; the message names the line.
    """
    return dict(_changes(data, name))


def _changes(data: bytes, name: str) -> Iterable[tuple[str, Mark | None]]:
    if not data:
        return
    try:
        lines = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        if missing := [column for column in COLUMNS if column not in (lines.fieldnames or ())]:
            raise SettingsError(
                f"{name} has no column {missing[0]}; expected the columns image_id and mark"
            )
        for line in lines:
            image_id, mark = line["image_id"], (line["mark"] or "").strip().lower()
            if mark == UNMARKED:
                yield image_id, None
            elif mark:
                yield image_id, Mark(mark)
    except UnicodeDecodeError as error:
        raise SettingsError(f"{name} is not UTF-8: {error}") from error
    except (ValueError, csv.Error) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(
            f"{name} has in line {lines.line_num} what cannot be read ({error}); expected the mark "
            "accepted, rejected, unmarked or none"
        ) from error


def rejected(marks: Marks) -> frozenset[str]:
    """Ids of the images that are rejected."""
    return frozenset(image_id for image_id, mark in marks.items() if mark is Mark.REJECTED)


def is_chosen(image_id: str, marks: Marks, only: Only) -> bool:
    """Whether an image is among those that an export is restricted to."""
    if only is Only.ACCEPTED:
        return marks.get(image_id) is Mark.ACCEPTED
    return only is Only.ALL or marks.get(image_id) is not Mark.REJECTED


def digest(ids: Iterable[str]) -> str:
    """SHA-256 over some ids, in hexadecimal, whatever their order; empty for none."""
    text = "\n".join(sorted(ids))
    return hashlib.sha256(text.encode()).hexdigest() if text else ""
