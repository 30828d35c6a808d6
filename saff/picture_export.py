"""Picture files of a stored run, and of one picture; never written over an input.

``saff export`` writes one PNG file per image, ``saff segment`` one file.  Every file is written as
a draft beside its place, synced and renamed.
"""

import os
import posixpath
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saff.access import ANYTHING, Access
from saff.addresses import LOCAL
from saff.arrays import AnyArray, Image
from saff.errors import SettingsError, StorageError
from saff.ids import is_safe_id
from saff.kept import Large, read_kept, require_columns
from saff.layout import Stage
from saff.marks import Marks, Only, is_chosen, read_marks
from saff.matting import load_pymatting, matte
from saff.overwriting import is_same_file, refuse_inputs
from saff.photographs import Photographs
from saff.pictures import What, encode_picture, mask_from, needs_image, picture, picture_format
from saff.retries import BRIEF, retry_limit
from saff.rows import has_foreground, levels_of, rows_of, with_answer
from saff.shards import Row
from saff.storage import Folder, read_bytes
from saff.targets import TargetFolder

COUNTED = ("written", "nothing_found", "not_matted", "failed", "not_chosen", "not_written")
LOST = ("gone", "changed", "unreachable")  # photographs
DEFAULT_THRESHOLD = 0.5  # at which the stored masks are made
LISTED = 20  # images that are named where a file could not be written
STANDARD = "-"  # standard input or output, as a file name
NOT_MATTED = "without a matte, which would be empty or harm: alpha is the confidence"


# What one export did


@dataclass(slots=True)
class ExportSummary:
    """What an export wrote, and what it left out."""

    written: int = 0
    nothing_found: int = 0
    """Images among them in which the network has found no foreground."""
    not_matted: int = 0
    """Cut-outs among them whose edges were to be soft and are those of the confidence."""
    failed: int = 0
    """Images of the run that have no result."""
    not_chosen: int = 0
    """Images that the marks of a person leave out."""
    photographs: Photographs = field(default_factory=Photographs)
    """Counts the photographs that a picture needs and that are lost."""
    not_written: int = 0
    """Images whose file could not be written."""
    reasons: list[tuple[str, str]] = field(default_factory=list)
    """Id and reason of the first of these."""

    @property
    def left_out(self) -> int:
        """Images without a file, whatever the reason."""
        return self.failed + self.not_chosen + self.photographs.lost + self.not_written

    @property
    def complete(self) -> bool:
        """Whether the same command would write no more: nothing was refused, no server failed."""
        return not (self.not_written or self.photographs.unreachable)

    def refuse(self, image_id: str, reason: str) -> None:
        """Count an image whose file could not be written."""
        self.not_written += 1
        if len(self.reasons) < LISTED:
            self.reasons.append((image_id, reason))

    def leaves_out(self, row: Row, marks: Marks, only: Only) -> bool:
        """Whether a row gives no file, and count it; its photograph is not looked at."""
        image_id = row["image_id"]
        if row["error_kind"] is not None:
            self.failed += 1
        elif not is_chosen(image_id, marks, only):
            self.not_chosen += 1
        elif not is_safe_id(image_id):
            self.refuse(image_id, "its id is no relative path without '..' and empty parts")
        else:
            return False
        return True

    def counts(self) -> dict[str, Any]:
        """Counts and reasons as JSON holds them; :meth:`add` takes them in."""
        numbers = {name: getattr(self, name) for name in COUNTED}
        lost = {name: getattr(self.photographs, name) for name in LOST}
        return numbers | lost | {"reasons": self.reasons}

    def add(self, counts: dict[str, Any]) -> None:
        """Add what another export, of a part, has counted."""
        for name in COUNTED:
            setattr(self, name, getattr(self, name) + counts[name])
        for name in LOST:
            setattr(self.photographs, name, getattr(self.photographs, name) + counts[name])
        self.reasons += [(image_id, reason) for image_id, reason in counts["reasons"]]
        del self.reasons[LISTED:]

    def lines(self, to: str, noun: str = "file") -> Iterator[str]:
        """Name the images whose files could not be written; the last line counts everything."""
        for image_id, reason in self.reasons:
            yield f"not written: {image_id}: {reason}"
        if self.not_written > len(self.reasons):
            yield f"not written: {self.not_written - len(self.reasons):,} more"
        counts = (
            f"{self.failed:,} failed in the run" if self.failed else "",
            f"{self.not_chosen:,} not chosen by their marks" if self.not_chosen else "",
            self.photographs.describe(),
            f"{self.not_written:,} could not be written" if self.not_written else "",
        )
        why = ", ".join(filter(None, counts))
        files = noun if self.written == 1 else f"{noun}s"
        images = "image" if self.left_out == 1 else "images"
        total = f"{self.written:,} {files} in {to}; {self.left_out:,} {images} left out"
        if self.nothing_found:
            empty = "1 image" if self.nothing_found == 1 else f"{self.nothing_found:,} images"
            yield f"no foreground found in {empty}: the mask is empty"
        if self.not_matted:
            yield f"{self.not_matted:,} of the cut-outs {NOT_MATTED}"
        yield f"{total}: {why}" if why else total


# Names


class PictureNames:
    """Names of picture files: an image's id with ``.png`` for its extension.

    An image keeps its extension where another has the same id without it, or where a folder of
    other images has that name.

    Parameters
    ----------
    image_ids : iterable of str
        Ids of the images that have a result.

    Examples
    --------
    >>> names = PictureNames(["cat.jpg", "dog.jpg", "dog.png"])
    >>> names.name("cat.jpg"), names.name("dog.jpg")
    ('cat.png', 'dog.jpg.png')
    """

    def __init__(self, image_ids: Iterable[str]) -> None:
        self._uses: Counter[str] = Counter()
        self._folders: set[str] = set()
        for image_id in image_ids:
            self._uses.update({image_id, without_extension(image_id)})
            folder = posixpath.dirname(image_id)
            while folder and folder not in self._folders:
                self._folders.add(folder)
                folder = posixpath.dirname(folder)

    def name(self, image_id: str) -> str:
        """File name of an image's picture, relative to the folder of the export."""
        return f"{self.stem(image_id)}.png"

    def stem(self, image_id: str) -> str:
        """Such a name without its extension; no other image has it."""
        stem = without_extension(image_id)
        return image_id if self._uses[stem] > 1 or f"{stem}.png" in self._folders else stem


def without_extension(image_id: str) -> str:
    """Id without the extension of its last part: ``a.b/cat.jpg`` gives ``a.b/cat``."""
    return posixpath.splitext(image_id)[0]


# Writing


def export_pictures(
    output: Folder,
    to: Folder,
    what: What,
    stage: str = "pseudo_labels",
    *,
    overwrite: bool = False,
    threshold: float = 0.5,
    matting: bool = False,
    only: Only = Only.ALL,
    access: Access = ANYTHING,
) -> ExportSummary:
    """Write one PNG file per image, named by its id, into a folder or prefix.

    Parameters
    ----------
    output : Folder
        A run.
    to : Folder
        Made if it does not exist; nothing is written outside it.
    what : {"mask", "confidence", "overlay", "cutout"}
        See :func:`saff.pictures.picture`.
    stage : str
        ``"pseudo_labels"`` or ``"predictions"``.
    overwrite : bool
        Replace files that exist.  Otherwise only a file with the same content is no hindrance.
    threshold : float
        Confidence in [0, 1] from which a pixel is foreground in a mask or an overlay.
    matting : bool
        Give cut-outs soft edges (:func:`saff.matting.matte`), where that does no harm.
    only : Only
        Images to write, by the marks of :mod:`saff.marks`.
    access : Access
        What the addresses of the images may name.

    Returns
    -------
    summary : ExportSummary
        What was written, and what was left out and why.  No image keeps the others from being
        written.

    Raises
    ------
    SettingsError
        If the output is no run, the stage is empty, or a file would be written over an input of the
        run.
    StorageError
        If the folder cannot be written to at all, or the disk is full.
    """
    if matting:
        check_matting(what)
    results = rows_of(output, stage, ["image_id", "error_kind"])
    columns = ["image_id", "uri", "sha256", "height", "width", "error_kind"]
    columns += columns_of_mask(output, stage, threshold, what)
    ids = (row["image_id"] for row in results if row["error_kind"] is None)
    known = [image_id for image_id in ids if is_safe_id(image_id)]
    names = PictureNames(known)
    refuse_inputs(output, stage, lambda: (f"{to.uri}/{names.name(i)}" for i in known))
    folder = TargetFolder(to, overwrite=overwrite)
    summary = ExportSummary(photographs=Photographs(access))
    marks = read_marks(output)
    for row in rows_of(output, stage, with_answer(columns, stage)):
        row.setdefault("confidence", None)
        if summary.leaves_out(row, marks, only):
            continue
        data = _encoded(row, what, threshold, matting, summary)
        if data is None:
            continue
        image_id = row["image_id"]
        if reason := folder.write(names.name(image_id), data):
            summary.refuse(image_id, reason)
        else:
            summary.written += 1
            summary.nothing_found += not has_foreground(row)
    folder.close()
    return summary


def columns_of_mask(output: Folder, stage: str, threshold: float, what: str) -> list[str]:
    """Columns that the mask or confidence of a stage is read from.

    Raises
    ------
    SettingsError
        If the run does not keep what is needed.
    """
    is_mask = what not in ("confidence", "cutout") and threshold == DEFAULT_THRESHOLD
    if stage == Stage.PSEUDO_LABELS and is_mask and Large.CONFIDENCE not in read_kept(output):
        return ["pseudo_label"]
    require_columns(output, stage, ["confidence"], f"{what} from {threshold:g} on")
    return ["confidence"]


def check_matting(what: What) -> None:
    """Check that pictures of a kind can have soft edges, and load what makes them.

    Raises
    ------
    SettingsError
        If the kind is no cut-out, or the package is missing.
    """
    if what != "cutout":
        raise SettingsError(
            f"--matting softens the edges of a cut-out and does nothing for {what}; use it with "
            "--what cutout"
        )
    load_pymatting()


def draw(
    what: What,
    confidence: AnyArray,
    image: Image | None,
    *,
    threshold: float = 0.5,
    foreground_found: bool = True,
    matting: bool = False,
) -> tuple[AnyArray, bool]:
    """Draw one result, a cut-out with soft edges if that is wanted and does no harm.

    Parameters
    ----------
    what, confidence, image, threshold, foreground_found
        As for :func:`saff.pictures.picture`.
    matting : bool
        Give a cut-out soft edges; its mask is of the threshold.

    Returns
    -------
    drawn : uint8 array
        As :func:`saff.pictures.picture` gives it.
    as_wanted : bool
        False where soft edges were wanted and the cut-out has those of the confidence.
    """
    if matting and image is not None and foreground_found:
        soft = matte(image, mask_from(confidence, threshold))
        if soft is not None:
            return np.dstack([soft.colours, soft.alpha]), True
    plain = picture(what, confidence, image, threshold=threshold, foreground_found=foreground_found)
    return plain, not (matting and foreground_found)


def encode_row(
    row: Row, what: What, image: Image | None, *, threshold: float, matting: bool
) -> tuple[bytes, bool]:
    """Draw a row that has a result as :func:`draw` does, and encode it as a PNG file."""
    drawn, as_wanted = draw(
        what,
        levels_of(row),
        image,
        threshold=threshold,
        foreground_found=has_foreground(row),
        matting=matting,
    )
    return encode_picture(drawn), as_wanted


def _encoded(
    row: Row, what: What, threshold: float, matting: bool, summary: ExportSummary
) -> bytes | None:
    """Picture file of a row; None, and counted, where it cannot be drawn."""
    image = summary.photographs.read(row) if needs_image(what) else None
    if image is None and needs_image(what):
        return None
    try:
        data, as_wanted = encode_row(row, what, image, threshold=threshold, matting=matting)
        summary.not_matted += not as_wanted
        return data
    except (StorageError, ValueError) as error:  # a damaged map, or a size that no encoder takes
        summary.refuse(row["image_id"], str(error))
        return None


# One picture


def check_target(target: str, source: str, what: What) -> str:
    """Check the file that one picture is to be written to, before the work that it is for.

    Parameters
    ----------
    target : str
        Path of a file, or ``-`` for standard output.
    source : str
        Path or URI of the photograph, or ``-`` for standard input.
    what : {"mask", "confidence", "overlay", "cutout"}
        What is to be drawn.

    Returns
    -------
    format : str
        As of :func:`saff.pictures.picture_format`; PNG for standard output.

    Raises
    ------
    SettingsError
        If the extension does not say a format that can hold the picture, the target is the
        photograph itself, or it could not be written.
    """
    if target == STANDARD:
        return "PNG"
    if source != STANDARD and is_same_file(target, source):
        raise SettingsError(
            f"{target} is the photograph itself, which would be lost; name another file"
        )
    file_format = picture_format(target, what)
    folder = os.path.dirname(os.path.abspath(target))
    if os.path.isdir(target) or not os.access(folder, os.W_OK):
        raise SettingsError(f"cannot write {target}: name a file in a folder that exists")
    return file_format


def save_picture(
    target: str,
    what: What,
    confidence: AnyArray,
    image: Image,
    file_format: str,
    *,
    threshold: float = 0.5,
    foreground_found: bool = True,
    matting: bool = False,
) -> bool:
    """Draw one result into a file that a person named, or to standard output for ``-``.

    Parameters
    ----------
    target : str
        Path of a file, or ``-``.
    what, confidence, image, threshold, foreground_found, matting
        As for :func:`draw`.
    file_format : str
        As :func:`check_target` gives it.

    Returns
    -------
    as_wanted : bool
        As of :func:`draw`.

    Raises
    ------
    SettingsError
        If no such file can hold a picture of this size.
    StorageError
        If it cannot be written.
    """
    drawn, as_wanted = draw(
        what,
        confidence,
        image,
        threshold=threshold,
        foreground_found=foreground_found,
        matting=matting,
    )
    try:
        data = encode_picture(drawn, file_format)
    except ValueError as error:
        raise SettingsError(f"cannot write {target}: {error}") from error
    if target == STANDARD:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return as_wanted
    folder, name = os.path.split(os.path.abspath(target))
    try:
        Folder(LOCAL, folder).write(name, data)
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error
    return as_wanted


def read_photograph(source: str) -> bytes:
    """Read a photograph that a person named by path or URI, or standard input for ``-``.

    Raises
    ------
    OSError, SaffError
        If it cannot be read.
    """
    if source == STANDARD:
        return sys.stdin.buffer.read()
    with retry_limit(BRIEF):
        return read_bytes(source)
