"""True masks: what a person sees in a viewer, or a refusal that names the option that reads it.

:func:`read_truth` is the only reader of masks that people made; :class:`Masks` knows which of a
folder's masks belongs to which image.

A mask is a PNG, BMP, GIF or TIFF file (other formats may have changed its values), and its values
are of one of five formats:

``binary``
    Black is background, white is foreground, at any bit depth, with a grey palette or as grey RGB.
    Exactly two levels of which the lower is 0 (0 and 1, 0 and 255, 0 and 65535, ...): the upper is
    foreground.  Otherwise levels from half of the full range on are foreground (127.5 of 255), if
    a viewer would show dark and light areas with soft outlines between them.  Where the colour is
    the same everywhere, alpha holds the mask.  Refused are colours, a picture in which nothing is
    dark or nothing is light, large areas of a third level (an unknown region, class numbers), and
    transparency that does not agree with the levels.  An inverted mask is never guessed.
``half``
    Grey levels from half of the full range on are foreground, whatever else there is.
``voc``
    Class numbers as PASCAL VOC has them: 0 background, 1..20 foreground, 255 void (left out).
    Palette indices or grey levels at any bit depth, never scaled; a picture or palette in VOC's
    own colours is read by its colours.
``nonzero``
    Every pixel that is not black is foreground: colours of a labelling tool, instance numbers.
    Nothing is void.
``alpha``
    Pixels that are at least half opaque are foreground: cut-outs.

EXIF orientation is applied, as it is to photographs.  A file of several pictures (pages, frames) is
refused.
"""

import os
import sqlite3
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from saff.arrays import AnyArray
from saff.errors import ImageError, SettingsError
from saff.images import DEFAULT_MAX_PIXELS, Samples, read_samples
from saff.sources import list_images
from saff.storage import NO_FILE, Folder, as_storage_error, is_folder, with_brief_retries

TruthFormat: TypeAlias = Literal["binary", "half", "voc", "nonzero", "alpha"]
Flags: TypeAlias = NDArray[np.bool_]
"""bool (H, W)."""

LOSSLESS = ("PNG", "BMP", "GIF", "TIFF")
CLASSES = 20
VOID = 255
NOISE = 20 / 255  # of the full range: how far levels of one area may lie apart at 8 and 16 bit
EXTENSIONS = (".png", ".bmp", ".gif", ".tif", ".tiff")
"""Extensions of the files that are read as masks, in lower case."""


class Truth(NamedTuple):
    """A true mask.

    Attributes
    ----------
    mask, valid : bool arrays of shape (H, W)
        Foreground, and the pixels that count.
    """

    mask: Flags
    valid: Flags


def read_truth(
    data: bytes, truth_format: TruthFormat = "binary", *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Truth:
    """Read a true mask from the bytes of its file.

    Parameters
    ----------
    data : bytes
        A PNG, BMP, GIF or TIFF file.
    truth_format : {"binary", "half", "voc", "nonzero", "alpha"}
        What its values mean; see the head of this module.
    max_pixels : int
        Masks that announce more pixels are refused before they are decoded.

    Returns
    -------
    truth : Truth
        Foreground, and the pixels that count, EXIF orientation applied.

    Raises
    ------
    SettingsError
        If the format is unknown, or the file is no such mask: the reason, and where there is one,
        the format that would read it.

    Examples
    --------
    >>> from saff.images import encode_png
    >>> read_truth(encode_png(np.array([[0, 1]], np.uint8))).mask
    array([[False,  True]])
    """
    if truth_format not in get_args(TruthFormat):
        expected = ", ".join(get_args(TruthFormat))
        raise SettingsError(f"a truth format is one of {expected}; got {truth_format!r}")
    try:
        samples = read_samples(data, max_pixels=max_pixels)
    except ImageError as error:
        raise SettingsError(str(error)) from error
    if samples.format not in LOSSLESS:
        raise SettingsError(
            f"it is a {samples.format} file, whose compression may change values; save it as PNG"
        )
    if samples.several:
        raise SettingsError(
            "it holds several pictures, pages or frames, of which any could be the mask; save the "
            "mask as a file of its own"
        )
    if truth_format == "voc":
        return _voc(samples)
    mask = _FORMATS[truth_format](samples)
    return Truth(mask, np.ones_like(mask))


# Formats


def _binary(samples: Samples) -> Flags:
    if samples.alpha is not None and not _is_opaque(samples.alpha):
        return _partly_transparent(samples, samples.alpha)
    return _two_tones(*_grey(samples))


def _partly_transparent(samples: Samples, alpha: AnyArray) -> Flags:
    """Read a mask with transparency by its alpha, if nothing that is seen says something else."""
    refusal = SettingsError(
        "it is partly transparent, and its colours say something else than its alpha channel; "
        "--truth-format alpha takes the opaque pixels for foreground; remove the transparency if "
        "black and white are meant"
    )
    if alpha.min() == alpha.max():
        raise SettingsError(
            "all of it is transparent; --truth-format alpha takes the opaque pixels for "
            "foreground; remove the transparency if black and white are meant"
        )
    colours = _colours(samples)
    colours = colours.reshape(*colours.shape[:2], -1)
    shown = alpha > 0
    seen = colours[shown]
    if (seen == seen[0]).all():
        if seen[0].any() or not colours[~shown].any():
            return _two_tones(alpha, 8 * alpha.itemsize)
        raise refusal
    if (colours != colours[..., :1]).any():
        raise refusal
    by_alpha = _two_tones(alpha, 8 * alpha.itemsize)
    if (by_alpha != _two_tones(*_grey(samples))).any():
        raise refusal
    return by_alpha


def _half(samples: Samples) -> Flags:
    _refuse_transparency(samples)
    levels, bits = _grey(samples)
    return _light(levels, bits)


def _nonzero(samples: Samples) -> Flags:
    _refuse_transparency(samples)
    colours = _colours(samples)
    flat = colours.reshape(*colours.shape[:2], -1)
    mask = np.asarray(flat.any(axis=2))
    if mask.all() and (flat != flat[0, 0]).any():
        raise SettingsError(
            "no pixel of it is black, so that all of it would be foreground; make its background "
            "black, or name the format that it has: --truth-format binary, half, voc or alpha"
        )
    return mask


def _alpha(samples: Samples) -> Flags:
    if samples.alpha is None or _is_opaque(samples.alpha):
        raise SettingsError(
            "no pixel of it is transparent, so that all of it would be foreground; --truth-format "
            "binary reads black and white"
        )
    levels = np.unique(samples.alpha)
    if len(levels) == 2 and levels[0] == 0:
        return np.asarray(samples.alpha > 0)
    return _light(samples.alpha, 8 * samples.alpha.itemsize)


_FORMATS: dict[str, Callable[[Samples], Flags]] = {
    "binary": _binary,
    "half": _half,
    "nonzero": _nonzero,
    "alpha": _alpha,
}


def _voc(samples: Samples) -> Truth:
    classes = _class_numbers(samples)
    present = np.flatnonzero(_histogram(classes))
    strange = present[(present > CLASSES) & (present != VOID)]
    if strange.size:
        raise SettingsError(
            f"it holds {_some(strange.tolist())}, expected 0 (background), 1..20 (classes) and "
            "255 (void); --truth-format nonzero takes all numbers but 0 for foreground, binary "
            "reads black and white"
        )
    mask = (classes > 0) & (classes != VOID)
    if samples.alpha is not None and not samples.alpha[mask].all():
        raise SettingsError(
            "some of its classes are transparent, so that nobody sees them; remove the transparency"
        )
    return Truth(mask, classes != VOID)


def _class_numbers(samples: Samples) -> AnyArray:
    """Class numbers (H, W): indices or levels as stored, or what colours of VOC stand for."""
    if samples.mode == "grey":
        return samples.values
    if samples.mode == "palette":
        return _classes_of_palette(samples)
    values = samples.values
    if samples.bits == 8:
        codes, where = np.unique(_code(values), return_inverse=True)
        if all(int(code) in VOC_COLOURS for code in codes):
            numbers = np.array([VOC_COLOURS[int(code)] for code in codes], np.uint8)
            return numbers[where.reshape(values.shape[:2])]
    if (values != values[..., :1]).any():
        raise SettingsError(
            f"it holds {_a_colour(values)}, which is no colour of PASCAL VOC; --truth-format "
            "nonzero takes every colour but black for foreground"
        )
    return np.ascontiguousarray(values[..., 0])


def _classes_of_palette(samples: Samples) -> AnyArray:
    assert samples.palette is not None
    used = np.flatnonzero(_histogram(samples.values))
    known = used[used < len(samples.palette)]
    shown = {int(i): VOC_COLOURS.get(int(_code(samples.palette[i]))) for i in known}
    classes = {index: number for index, number in shown.items() if number is not None}
    if len(classes) == len(used):
        _refuse_one_colour(samples.palette[used])
        numbers = np.zeros(256, np.uint8)
        numbers[list(classes)] = list(classes.values())
        return np.asarray(numbers[samples.values])
    moved = [index for index, number in classes.items() if number != index]
    if moved:
        raise SettingsError(
            f"its palette shows number {moved[0]} in the colour that PASCAL VOC gives to "
            f"{classes[moved[0]]}, and others in colours of its own, so that numbers and colours "
            "disagree; save the class numbers as grey levels"
        )
    return samples.values


def _voc_colours() -> dict[int, int]:
    """Colours of PASCAL VOC as 24 bit numbers, and the class that each stands for."""
    colours = {}
    for number in (*range(CLASSES + 1), VOID):
        channels = [0, 0, 0]
        for bit in range(8):  # bits 0, 1, 2 of the number are the highest of R, G, B, and so on
            channels[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
        colours[channels[0] << 16 | channels[1] << 8 | channels[2]] = number
    return colours


VOC_COLOURS = _voc_colours()


# Levels and colours


def _two_tones(levels: AnyArray, bits: int) -> Flags:
    """Tell light from dark, where a viewer shows these two and nothing else."""
    top = 2**bits - 1
    present = np.flatnonzero(_histogram(levels))
    low, high = int(present[0]), int(present[-1])
    if len(present) == 1 and high in (0, 1, 255, top):
        return np.asarray(levels > 0)
    if len(present) == 1:
        raise SettingsError(
            f"every pixel of it has the level {high} of {top}, neither black nor white; "
            "--truth-format half takes levels from half on for foreground, nonzero all but black"
        )
    if len(present) == 2 and low == 0:
        return np.asarray(levels > 0)
    if 2 * high < top or 2 * low > top:
        raise SettingsError(
            f"its levels, {_some(present.tolist())} of {top}, are all "
            f"{'dark' if 2 * high < top else 'light'}; --truth-format voc reads class numbers, "
            "nonzero takes all but black for foreground, half levels from half on"
        )
    between = present[(present > 0) & (present != top)]
    if bits >= 8 and between.size > 0 and between[-1] <= (CLASSES if bits == 8 else 255):
        raise SettingsError(
            f"its levels are {_some(present.tolist())}, which look like class numbers and void; "
            "--truth-format voc reads these, half takes levels from half on for foreground"
        )
    _refuse_third_tone(levels, top, NOISE * top if bits >= 8 else 0)
    return _light(levels, bits)


def _refuse_third_tone(levels: AnyArray, top: int, apart: float) -> None:
    """Refuse large areas of different levels on one side of half: 3 x 3 equal pixels or more."""
    square = np.ones((3, 3), np.uint8)
    same = cv2.erode(levels, square) == cv2.dilate(levels, square)
    inner = same[1:-1, 1:-1]  # where the square lies inside
    areas = np.flatnonzero(_histogram(levels[1:-1, 1:-1][inner]))
    for side in (areas[2 * areas < top], areas[2 * areas > top]):
        if side.size and side[-1] - side[0] > apart:
            raise SettingsError(
                f"it has areas of the levels {_some(areas.tolist())} of {top}, more than one dark "
                "and one light: an unknown region, or class numbers? --truth-format half takes "
                "levels from half on for foreground, nonzero all but black, voc reads class numbers"
            )


def _light(levels: AnyArray, bits: int) -> Flags:
    """Levels from half of the full range on: 127.5 of 255."""
    return np.asarray(levels > (2**bits - 1) // 2)


def _grey(samples: Samples) -> tuple[AnyArray, int]:
    """Levels (H, W) as they are shown, and their bits; refuses colours."""
    colours = _colours(samples)
    bits = 8 if samples.mode == "palette" else samples.bits
    if colours.ndim == 2:
        return colours, bits
    if (colours != colours[..., :1]).any():
        raise SettingsError(
            f"it holds {_a_colour(colours)}; --truth-format nonzero takes every colour but black "
            "for foreground, voc reads class numbers and the colours of PASCAL VOC"
        )
    return np.ascontiguousarray(colours[..., 0]), bits


def _colours(samples: Samples) -> AnyArray:
    """What is shown: levels (H, W) or colours (H, W, 3)."""
    if samples.mode != "palette":
        return samples.values
    assert samples.palette is not None
    used = np.flatnonzero(_histogram(samples.values))
    if used[-1] >= len(samples.palette):
        raise SettingsError(
            f"its number {used[-1]} has no colour in its palette of {len(samples.palette)}; "
            "--truth-format voc reads class numbers without their colours"
        )
    _refuse_one_colour(samples.palette[used])
    shown: AnyArray = samples.palette[samples.values]
    return shown


def _refuse_one_colour(colours: AnyArray) -> None:
    if len(colours) > 1 and (colours == colours[0]).all():
        raise SettingsError(
            f"its palette shows all of its {len(colours)} numbers in one colour; save the numbers "
            "as grey levels"
        )


def _refuse_transparency(samples: Samples) -> None:
    if samples.alpha is not None and not _is_opaque(samples.alpha):
        raise SettingsError(
            "it is partly transparent; --truth-format alpha takes the opaque pixels for "
            "foreground; remove the transparency if its colours are meant"
        )


def _is_opaque(alpha: AnyArray) -> bool:
    return bool((alpha == np.iinfo(alpha.dtype).max).all())


def _a_colour(colours: AnyArray) -> str:
    """Name the first pixel that is not grey: ``colours such as (250, 50, 83)``."""
    coloured = (colours != colours[..., :1]).any(axis=2)
    place = np.unravel_index(int(coloured.argmax()), coloured.shape)
    return f"colours such as {tuple(colours[place].tolist())}"


def _code(colours: AnyArray) -> AnyArray:
    """8 bit RGB (..., 3) as 24 bit numbers."""
    red, green, blue = np.moveaxis(colours.astype(np.uint32), -1, 0)
    return np.asarray(red << 16 | green << 8 | blue)


def _histogram(values: AnyArray) -> NDArray[np.int64]:
    """Count each value; some rows at a time, since counting takes 8 bytes a pixel."""
    counts = np.zeros(2 ** (8 * values.itemsize), np.int64)
    flat = values.ravel()
    for start in range(0, flat.size, 2**20):
        counts += np.bincount(flat[start : start + 2**20], minlength=counts.size)
    return counts


def _some(values: list[int]) -> str:
    """Name a few numbers."""
    listed = ", ".join(map(str, values[:5]))
    return listed if len(values) <= 5 else f"{listed}, ... {values[-1]} ({len(values)} levels)"


# A folder of masks


class Masks:
    """True masks of a folder or prefix, listed once, and the images that they belong to.

    The mask of ``dogs/a.jpg`` is the first of ``dogs/a.jpg.png``, ``dogs/a.png``, ``a.jpg.png`` and
    ``a.png`` that is there; other lossless formats, and extensions in capitals, count as well.
    Names are compared after Unicode normalisation (NFC).  The listing is kept in a temporary file,
    so that memory does not grow with it.

    Parameters
    ----------
    truth : str
        Folder or prefix.

    Raises
    ------
    SettingsError
        If there is no such folder, or no mask in it.
    """

    def __init__(self, truth: str) -> None:
        self.truth = truth
        self.folder = Folder.at(truth)
        with with_brief_retries(truth):
            if not is_folder(self.folder.fs, self.folder.path):
                raise SettingsError(f"no masks at {truth}: no such folder or prefix")
        self._table = sqlite3.connect("").cursor()  # in a file that goes with this object
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute(
            "CREATE TABLE files (stem TEXT, readable INTEGER, name TEXT, twin TEXT, "
            "claims INTEGER NOT NULL DEFAULT 0, images INTEGER NOT NULL DEFAULT 0, "
            "first TEXT, second TEXT, "
            "PRIMARY KEY (stem, readable)) WITHOUT ROWID"
        )
        self._table.executemany(
            "INSERT INTO files (stem, readable, name) VALUES (?, ?, ?) "
            "ON CONFLICT DO UPDATE SET twin = excluded.name",
            self._listed(),
        )
        if not self.count():
            raise SettingsError(
                f"no masks at {truth}: expected PNG, BMP, GIF or TIFF files named like the images"
            )

    def _listed(self) -> Iterator[tuple[str, int, str]]:
        try:
            for row in list_images(self.truth):
                stem, extension = os.path.splitext(row["image_id"])
                yield _normal(stem), extension.lower() in EXTENSIONS, row["image_id"]
        except SettingsError as error:
            raise SettingsError(f"no masks at {self.truth}: {error}") from error

    def count(self) -> int:
        """How many masks there are."""
        (count,) = self._table.execute("SELECT count(*) FROM files WHERE readable").fetchone()
        return int(count)

    def claim(self, image_id: str, *, measured: bool = True) -> bool:
        """Note that there is an image of that id; say whether it has a mask.

        An image that is not measured keeps its mask from being :meth:`unused`, but gives no
        :meth:`conflicts`: ``a.json`` beside ``a.jpg`` is in a run, as a row that failed.
        """
        found = self._first(image_id, "stem", "readable")
        if found:
            self._table.execute(
                "UPDATE files SET claims = claims + 1, images = images + :one, "
                "first = iif(:one AND images = 0, :id, first), "
                "second = iif(:one AND images = 1, :id, second) WHERE stem = :stem AND readable",
                {"one": int(measured), "id": image_id, "stem": found[0]},
            )
        return found is not None

    def find(self, image_id: str) -> str | None:
        """Name of the mask of an image; None where there is none or :meth:`conflicts` has it."""
        found = self._first(image_id, "stem, name, twin, images", "readable")
        if not found:
            return None
        _, name, twin, images = found
        return name if twin is None and images <= 1 else None

    def unread(self, image_id: str) -> str | None:
        """Name of a file that may be meant as the mask of an image, but is not read."""
        found = self._first(image_id, "stem, name", "NOT readable")
        return found[1] if found else None

    def conflicts(self, most: int) -> tuple[int, list[str]]:
        """Masks that several images would have, and images that have several.

        Returns
        -------
        images : int
            How many images have no mask for that.
        named : list of str
            The first few in words, at most ``most``.
        """
        which = "FROM files WHERE readable AND (images > 1 OR images > 0 AND twin IS NOT NULL)"
        (count,) = self._table.execute(f"SELECT total(images) {which}").fetchone()
        rows = self._table.execute(
            f"SELECT name, twin, images, first, second {which} ORDER BY name LIMIT ?", (most,)
        )
        return int(count), [_conflict(*row) for row in rows]

    def unused(self, most: int) -> tuple[int, list[str]]:
        """Count the masks that no image has claimed, and name the first few."""
        which = "FROM files WHERE readable AND claims = 0"
        (count,) = self._table.execute(f"SELECT count(*) {which}").fetchone()
        rows = self._table.execute(f"SELECT name {which} ORDER BY name LIMIT ?", (most,))
        return int(count), [name for (name,) in rows]

    def _first(self, image_id: str, columns: str, which: str) -> Any:
        """Row of the best of the names that a mask of an image may have."""
        stems = _stems(image_id)
        marks = ", ".join("?" * len(stems))
        rows = self._table.execute(
            f"SELECT {columns} FROM files WHERE stem IN ({marks}) AND {which}", stems
        ).fetchall()
        return min(rows, key=lambda row: stems.index(row[0]), default=None)


def _conflict(name: str, twin: str | None, images: int, first: str, second: str) -> str:
    if twin is not None:
        return f"{name} and {twin} are both masks of {first}"
    more = f" and {images - 2:,} more" if images > 2 else ""
    return f"{name} would be the mask of {first}, {second}{more}"


def read_mask(
    masks: Folder, name: str, truth_format: TruthFormat, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Truth:
    """Read a mask of a folder, by the name that :class:`Masks` has found.

    Raises
    ------
    SettingsError
        As of :func:`read_truth`; the name is not in it.
    """
    with as_storage_error(f"mask {name} of {masks.uri}"):
        try:
            data = masks.read(name)
        except NO_FILE:
            raise SettingsError("it was listed, but it is gone, or a broken link") from None
    return read_truth(data, truth_format, max_pixels=max_pixels)


def _stems(image_id: str) -> list[str]:
    """Names, without extension, that a mask of an image may have, the best first."""
    whole = _normal(image_id)
    last = PurePosixPath(whole).name
    return list(dict.fromkeys(s for n in (whole, last) for s in (n, os.path.splitext(n)[0])))


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)
