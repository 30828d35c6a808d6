"""One row: whether it holds what its stage promises, and a digest of its content."""

import hashlib
import re
from collections.abc import Collection, Iterator

import numpy as np

from saff import images
from saff.access import ANYTHING, Access
from saff.addresses import is_local, locate
from saff.arrays import AnyArray
from saff.images import DEFAULT_MAX_PIXELS, ImageError
from saff.kept import BY_DEFAULT, Large
from saff.metrics import HALF
from saff.quality import prediction_quality
from saff.rows import has_foreground
from saff.shards import EMBEDDING, Row
from saff.storage import NO_FILE, as_storage_error, read_bytes

MAPS = {"confidence": np.uint8, "pseudo_label": np.uint8, "superpixels": np.uint16}
OF_ANY_ROW = ("image_id", "uri", "sha256", "height", "width", "error", "error_kind")
FEATURES = 4  # numbers of a superpixel; the weights are one for each and the bias
NORM_ERROR = 0.01  # of an embedding, whose numbers are rounded to 16 bit
SHA256 = re.compile("[0-9a-f]{64}")


def examine(row: Row, kept: Collection[str] = BY_DEFAULT) -> tuple[Row, list[str]]:
    """Decode the maps of a stage's row.

    Parameters
    ----------
    row : dict
        As it is stored.
    kept : collection of str
        Large columns that its run keeps.

    Returns
    -------
    content : dict
        The row with its maps as arrays, where they can be decoded.
    faults : list of str
        What is wrong with it.
    """
    if row["error"] is not None or row["error_kind"] is not None:
        return row, list(_failure_faults(row))
    content, faults = dict(row), list(_hash_faults(row))
    height, width = row["height"] or 0, row["width"] or 0
    if min(height, width) < 1:
        faults.append(
            f"height and width must be at least 1, got {row['height']} and {row['width']}"
        )
    fitting: dict[str, AnyArray] = {}
    for name in (name for name in MAPS if name in row):
        if row[name] is None:
            if name in kept:
                faults.append(f"{name} is missing, and there is no error")
            continue
        try:
            found = images.decode_png(row[name], max_pixels=max(height * width, DEFAULT_MAX_PIXELS))
        except ImageError as error:
            faults.append(f"{name} does not decode: {error}")
            continue
        content[name] = found
        if found.shape == (height, width) and found.dtype == MAPS[name]:
            fitting[name] = found
        else:
            faults.append(
                f"{name} is {found.dtype} {found.shape}, expected {MAPS[name].__name__} "
                f"{(height, width)}"
            )
    return content, [*faults, *_map_faults(row, fitting), *_number_faults(row, fitting, kept)]


def _failure_faults(row: Row) -> Iterator[str]:
    if not (row["error"] and row["error_kind"]):
        yield (f"error and error_kind go together, got {row['error']!r} and {row['error_kind']!r}")
    for name, value in row.items():
        if name not in OF_ANY_ROW and value is not None:
            yield f"has an error and yet {name}"
    if row["sha256"] is not None:
        yield from _hash_faults(row)


def _hash_faults(row: Row) -> Iterator[str]:
    if not SHA256.fullmatch(row["sha256"] or ""):
        yield f"sha256 must be 64 hexadecimal digits, got {row['sha256']!r}"


def _map_faults(row: Row, maps: dict[str, AnyArray]) -> Iterator[str]:
    """What is wrong in maps of the right size and type."""
    if "pseudo_label" in maps and maps["pseudo_label"].max() > 1:
        yield f"pseudo_label holds the value {maps['pseudo_label'].max()}, expected 0 and 1"
    elif "pseudo_label" in maps and "confidence" in maps:
        # Exact: 255 x is 127.5 or more, and rounds to 128, for x = 0.5 and no float32 below.
        mask = (maps["confidence"] >= HALF) & has_foreground(row)
        differ = np.count_nonzero(maps["pseudo_label"] != mask)
        if differ and has_foreground(row):
            yield f"pseudo_label is not confidence from one half on, at {differ:,} pixels"
        elif differ:
            yield f"pseudo_label holds {differ:,} pixels, and foreground_found is false"
    if "superpixels" in maps:
        gaps = np.flatnonzero(np.bincount(maps["superpixels"].ravel()) == 0)
        if gaps.size:
            last = maps["superpixels"].max()
            yield f"superpixels skips {gaps.size:,} labels of 0..{last}, the first is {gaps[0]}"


def _number_faults(row: Row, maps: dict[str, AnyArray], kept: Collection[str]) -> Iterator[str]:
    """What is wrong with the numbers of a row."""
    yield from (
        _prediction_faults(row, maps) if "foreground_found" in row else _fit_faults(row, maps, kept)
    )
    if row["quality"] is None or not 0 <= row["quality"] <= 1:
        yield f"quality must be in [0, 1], got {row['quality']}"


def _prediction_faults(row: Row, maps: dict[str, AnyArray]) -> Iterator[str]:
    if row["foreground_found"] is None:
        yield "foreground_found is missing, and there is no error"
    elif "pseudo_label" in maps and row["foreground_found"] != maps["pseudo_label"].any():
        yield f"foreground_found is {row['foreground_found']}, and the mask says otherwise"
    if "confidence" in maps:
        expected = prediction_quality(maps["confidence"]) if row["foreground_found"] else 0.0
        if row["quality"] != expected:
            yield f"quality is {row['quality']}, and the confidence gives {expected}"


def _fit_faults(row: Row, maps: dict[str, AnyArray], kept: Collection[str]) -> Iterator[str]:
    """What is wrong with the numbers of a pseudo label's fit."""
    features = np.asarray(row["features"] or [], np.float64)  # null becomes NaN
    regions = int(maps["superpixels"].max()) + 1 if "superpixels" in maps else None
    if regions is not None and Large.FEATURES in kept and features.size != FEATURES * regions:
        yield (
            f"features holds {features.size:,} numbers, expected {FEATURES} for each of "
            f"{regions:,} superpixels"
        )
    if not ((features >= 0) & (features <= 1)).all():  # NaN is neither
        yield "features holds numbers outside [0, 1], or NaN"
    yield from _embedding_faults(row.get(EMBEDDING), Large.EMBEDDING in kept)
    weights = np.asarray(row["weights"] or [], np.float64)
    if weights.size != FEATURES + 1 or not np.isfinite(weights).all():
        yield f"weights must be {FEATURES + 1} finite numbers, got {row['weights']}"
    for name in ("seeds_foreground", "seeds_background"):
        if row[name] is None or row[name] < 0:
            yield f"{name} must be at least 0, got {row[name]}"
    if row["fallback"] is None:
        yield "fallback is missing"


def _embedding_faults(embedding: list[float] | None, kept: bool) -> Iterator[str]:
    if (embedding is not None) != kept:
        yield "embedding is missing" if kept else "embedding is there, and its run keeps none"
    elif embedding is not None:
        norm = np.linalg.norm(np.asarray(embedding, np.float64))
        if norm and not abs(norm - 1) <= NORM_ERROR:  # NaN is neither
            yield f"embedding has the L2 norm {norm:.4g}, expected 1"


def digest(content: Row) -> str:
    """SHA-256 of a row's content but for ``uri``, in hexadecimal: pixels, not PNG bytes."""
    whole = hashlib.sha256()
    for name in sorted(content.keys() - {"uri"}):
        value = content[name]
        if isinstance(value, np.ndarray):
            whole.update(f"{name} {value.dtype} {value.shape}\n".encode())
            whole.update(value.tobytes())
        else:
            whole.update(f"{name} {value!r}\n".encode())
    return whole.hexdigest()


def differing_columns(one: Row, other: Row) -> list[str]:
    """Columns, but for ``uri``, in which two rows differ."""
    names = {**one, **other}
    return [n for n in names if digest({n: one.get(n)}) != digest({n: other.get(n)})]


def image_fault(row: Row, access: Access = ANYTHING) -> str:
    """Say what has become of a row's image; empty if it is as it was."""
    uri = row["uri"]
    with as_storage_error(f"image {row['image_id']!r}"):  # a URI may be signed
        try:
            data = read_bytes(uri, access)
        except NO_FILE:
            return "its image is gone"
        except OSError as error:
            if not is_local(locate(uri, signed=True)[0]):
                raise
            return f"its image cannot be read: {error.strerror}"
    return (
        "" if hashlib.sha256(data).hexdigest() == row["sha256"] else "its image has changed since"
    )
