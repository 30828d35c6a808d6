"""Training samples: which image comes when, its pixels from a bounded cache, a random crop of it.

Everything drawn at random depends on the seed and on the sample's position in the run alone.  So
the n-th batch is the same on one worker and on eight, and training continues after an interruption
with the number of the step and nothing else.
"""

import hashlib
import os
import re
import tempfile
import uuid
import zipfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.filesize import decimal

from saff.access import ANYTHING, Access
from saff.arrays import AnyArray, Image
from saff.augmentation import blur, can_be_pasted, paste, recolour
from saff.config import Training
from saff.errors import SettingsError, StorageError, UnreadableError
from saff.layout import part_number
from saff.manifests import later_addresses
from saff.resize import shrink
from saff.rows import decode_map, original
from saff.shards import Row, count_rows, read_all_rows
from saff.storage import NO_SPACE, Folder, read_each, with_retries

WINDOW = 4096  # images that are shuffled among each other; more are taken window by window
CACHE_BYTES = 8 * 2**30  # of decoded images on a node's local disk
PASTED_FROM = 64  # positions before a sample from which a foreground is pasted: still cached
GREY = 127  # around an image that is smaller than the crop
NEEDED = ["image_id", "uri", "sha256", "height", "width", "confidence", "error_kind"]
TO_SEE = ["image_id", "height", "width", "pseudo_label"]
SPAN = re.compile(r"(\d+)(?:-(\d+))?")  # of numbers of parts
MOST_LOOKED_AT = 10_000  # labels among which one must have a foreground


class Batch(NamedTuple):
    """What one worker learns from in one step."""

    image: NDArray[np.uint8]
    """(N, C, C, 3), RGB."""
    confidence: NDArray[np.uint8]
    """(N, C, C), 0..255: the label before it is binarised."""
    valid: NDArray[np.bool_]
    """(N, C, C), False outside of the image."""
    keys: list[int]
    """(N,), one number for each sample of a run: seeds what else is drawn for it."""
    missing: tuple[str, ...] = ()
    """``PART:ROW`` of photographs that are gone or have changed; their samples hold nothing."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Labels to learn from: shards of a stage, and how many usable rows each holds.

    Attributes
    ----------
    labels : Folder
        Shards with ``uri``, ``sha256`` and ``confidence``.
    parts : tuple of str
        Names of the shards.
    counts : tuple of int
        Usable rows of each.
    kept : tuple
        For a part of which a person has rejected images, the usable rows that are left, by number;
        None for another.  Empty if nothing was rejected.
    """

    labels: Folder
    parts: tuple[str, ...]
    counts: tuple[int, ...]
    kept: tuple[tuple[int, ...] | None, ...] = ()

    def __len__(self) -> int:
        """Images to learn from."""
        return sum(self.counts)

    @property
    def spans(self) -> str:
        """Numbers of the parts, as ``"0-3,7"``."""
        ends: list[list[int]] = []
        for number in map(part_number, self.parts):
            if ends and number == ends[-1][1] + 1:
                ends[-1][1] = number
            else:
                ends.append([number, number])
        return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ends)

    def within(self, spans: str) -> "Corpus":
        """Give those parts that have one of these numbers."""
        ends = sorted((int(span[1]), int(span[2] or span[1])) for span in SPAN.finditer(spans))

        def is_within(name: str) -> bool:
            number = part_number(name)
            place = bisect_right(ends, number, key=itemgetter(0)) - 1
            return place >= 0 and number <= ends[place][1]

        which = [number for number, name in enumerate(self.parts) if is_within(name)]
        return Corpus(
            self.labels,
            tuple(self.parts[number] for number in which),
            tuple(self.counts[number] for number in which),
            tuple(self.kept[number] for number in which) if self.kept else (),
        )

    def without(self, rejected: frozenset[str]) -> "Corpus":
        """Give the same but for some images, named by id.

        Raises
        ------
        SettingsError
            If nothing is left.
        """
        parts, counts, kept = [], [], []
        for part, count in zip(self.parts, self.counts, strict=True):
            rows = read_all_rows(self.labels, part, ("image_id", "error_kind"))
            usable = [row["image_id"] for row in rows if row["error_kind"] is None]
            left = tuple(n for n, image_id in enumerate(usable) if image_id not in rejected)
            if left:
                parts.append(part)
                counts.append(len(left))
                kept.append(left if len(left) < count else None)
        if not parts:
            raise SettingsError(
                f"all images of {self.labels.uri} are rejected, so there is nothing to learn; "
                "saff review takes marks away"
            )
        return Corpus(self.labels, tuple(parts), tuple(counts), tuple(kept))


def open_corpus(labels: Folder) -> Corpus:
    """Count what there is to learn from.

    Raises
    ------
    SettingsError
        If there are no labels, all rows have failed, or no label has a foreground.
    """
    names = labels.names(".parquet")
    if not names:
        raise SettingsError(f"no labels at {labels.uri}: run saff label first")
    counted = list(read_each(count_rows, labels, names))
    usable = [(n, rows - failed) for n, (rows, failed) in zip(names, counted, strict=True)]
    kept = [(n, count) for n, count in usable if count]
    if not kept:
        raise SettingsError(
            f"all {sum(rows for rows, _ in counted)} images of {labels.uri} have failed; "
            "saff report shows why"
        )
    corpus = Corpus(labels, *zip(*kept, strict=True))
    if not _any_foreground(corpus):
        raise SettingsError(
            f"no label in {labels.uri} has a foreground, so there is nothing to learn; look at "
            "them with saff report"
        )
    return corpus


def _any_foreground(corpus: Corpus) -> bool:
    looked = 0
    for part in corpus.parts:
        for row in read_all_rows(corpus.labels, part, TO_SEE):
            if row["pseudo_label"] is not None:
                looked += 1
                if decode_map(row, "pseudo_label").any():
                    return True
            if looked >= MOST_LOOKED_AT:
                return False
    return False


# Which image comes when


def draw(corpus: Corpus, seed: int, position: int) -> tuple[str, int]:
    """Part and row of the image at a position of the run.

    Every image comes once an epoch.  Parts are shuffled; images are shuffled within windows of
    parts, so that a corpus of any size is read part after part.
    """
    epoch, rest = divmod(position, len(corpus))
    for number, (parts, size) in enumerate(_windows(corpus, seed, epoch)):
        if rest < size:
            order = _window_order(corpus, seed, epoch, number, parts)
            part, row = order[rest].tolist()
            kept = corpus.kept[part] if corpus.kept else None
            return corpus.parts[part], row if kept is None else kept[row]
        rest -= size
    raise AssertionError("a position lies within its epoch")


@lru_cache(maxsize=2)
def _windows(corpus: Corpus, seed: int, epoch: int) -> list[tuple[tuple[int, ...], int]]:
    """Parts of each window, in order, and the number of their images."""
    windows = []
    parts: list[int] = []
    size = 0
    for part in np.random.default_rng([seed, epoch]).permutation(len(corpus.parts)).tolist():
        parts.append(part)
        size += corpus.counts[part]
        if size >= WINDOW:
            windows.append((tuple(parts), size))
            parts, size = [], 0
    return [*windows, (tuple(parts), size)] if parts else windows


@lru_cache(maxsize=4)
def _window_order(
    corpus: Corpus, seed: int, epoch: int, window: int, parts: tuple[int, ...]
) -> NDArray[np.int64]:
    """(size, 2): part and row of each image of a window, shuffled."""
    pairs = [np.stack([np.full(n, p), np.arange(n)], 1) for p in parts for n in [corpus.counts[p]]]
    rng = np.random.default_rng([seed, epoch, 1 + window])
    return rng.permutation(np.concatenate(pairs), axis=0)


def image_ids(corpus: Corpus, places: Iterable[str]) -> Iterator[str]:
    """Image ids of ``PART:ROW``, as :class:`Batch` names photographs that are missing."""
    for place in places:
        part, _, number = place.rpartition(":")
        rows = read_all_rows(corpus.labels, part, ("image_id", "error_kind"))
        usable = (row["image_id"] for row in rows if row["error_kind"] is None)
        yield next(islice(usable, int(number), None))


# Pixels


def scratch(name: str) -> Path:
    """Folder of this user for what can be made again."""
    return Path(tempfile.gettempdir()) / f"saff-{name}-{os.getuid()}"


@dataclass(frozen=True, slots=True)
class Cache:
    """Decoded and shrunk images with their labels, on this node's disk; the oldest parts go first.

    Attributes
    ----------
    labels : Folder
        Shards to read from.
    side : int
        Longer images are shrunk to this many pixels.
    folder : Path
        Where; shared by the processes of a node, of this run alone.
    limit : int
        Bytes.
    access : Access
        What the addresses of the images may name.
    addresses : Folder, optional
        Where the run keeps addresses that images were given later.
    """

    labels: Folder
    side: int
    folder: Path = field(default_factory=lambda: scratch("cache"))
    limit: int = CACHE_BYTES
    access: Access = ANYTHING
    addresses: Folder | None = None

    def read(self, part: str, rows: Sequence[int]) -> list[AnyArray]:
        """Images of a part: uint8 (H, W, 4), RGB and confidence; (0, 0, 4) if a file has changed.

        Parameters
        ----------
        part : str
            Name of the shard.
        rows : sequence of int
            Numbers among the usable rows of the part.
        """
        path = self.folder / self._name(part)
        while True:
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    return [arrays[str(row)] for row in rows]
            except (FileNotFoundError, NotADirectoryError):  # not written yet, or room was made
                self._fill(part, path)

    def _name(self, part: str) -> str:
        fs, path = self.labels.fs, f"{self.labels.path}/{part}"
        version = with_retries(fs, fs.checksum, path)  # another after a retry
        text = f"{self.labels.uri} {part} {version} {self.side}"
        return hashlib.sha256(text.encode()).hexdigest()[:32] + ".npz"

    def _fill(self, part: str, path: Path) -> None:
        draft = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.touch()
        except OSError as error:
            raise self._unusable(error) from error
        try:
            while not self._write(part, draft):
                pass
            self._make_room(draft)
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    def _write(self, part: str, draft: Path) -> bool:
        """Write the images of a part; False if the disk was full and some room could be made."""
        rows = read_all_rows(self.labels, part, NEEDED)
        later = {} if self.addresses is None else later_addresses(self.addresses, part)
        usable = (row for row in rows if row["error_kind"] is None)
        try:
            with zipfile.ZipFile(draft, "w") as archive:
                for number, row in enumerate(usable):
                    pixels = load(row, self.side, self.access, later.get(row["image_id"], ()))
                    with archive.open(f"{number}.npy", "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, pixels, allow_pickle=False)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            if not self._remove_oldest(draft):
                raise self._unusable(error) from error
            return False
        return True

    def _unusable(self, error: OSError) -> StorageError:
        return StorageError(
            f"the training cache {self.folder} cannot be written: {error.strerror}; it holds "
            f"decoded images, up to {decimal(self.limit)}: free room there, or set TMPDIR to a "
            "folder that has it, and the same command continues"
        )

    def _remove_oldest(self, draft: Path) -> bool:
        """Remove the file that was written first, of whatever run; False if there is none."""
        files = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                if path != draft:
                    files.append((path.stat().st_mtime_ns, path))
        if not files:
            return False
        min(files)[1].unlink(missing_ok=True)
        return True

    def _make_room(self, draft: Path) -> None:
        """Remove the oldest files, drafts of killed processes among them, to keep the limit."""
        files = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process has just made room, or is done
                files.append((path.stat(), path))
        total = sum(stat.st_size for stat, _ in files)
        for stat, oldest in sorted(files, key=lambda entry: entry[0].st_mtime_ns):
            if total <= self.limit or oldest == draft:
                break
            oldest.unlink(missing_ok=True)
            total -= stat.st_size


def load(row: Row, side: int, access: Access = ANYTHING, later: Sequence[str] = ()) -> AnyArray:
    """Read the image of a labelled row and shrink it with its confidence.

    Parameters
    ----------
    row : dict
        Columns ``image_id``, ``uri``, ``sha256``, ``height``, ``width``, ``confidence``.
    side : int
        Longer images are shrunk to this many pixels.
    access : Access
        What the address of the image may name.
    later : sequence of str
        Addresses to read where there is nothing, or another image, at the row's own.

    Returns
    -------
    pixels : uint8 array of shape (H, W, 4)
        RGB and confidence; (0, 0, 4) if the file is gone or not the one that was labelled.
    """
    image = _first_original(row, [row["uri"], *later], access)
    if image is None:
        return np.zeros((0, 0, 4), np.uint8)
    confidence = decode_map(row, "confidence")
    return shrink(np.dstack([image, confidence]), side)


def _first_original(row: Row, uris: Sequence[str], access: Access) -> Image | None:
    """Image of a row, from the first of its addresses where it still is."""
    for uri in uris:
        try:
            image = original({**row, "uri": uri}, access)
        except UnreadableError:  # refused there: a signature that has expired, say
            if uri == uris[-1]:
                raise
            continue
        if image is not None:
            return image
    return None


def crop(
    pixels: AnyArray, rng: np.random.Generator, training: Training
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
    """Scale, crop and flip at random.

    Parameters
    ----------
    pixels : uint8 array of shape (H, W, 4)
        RGB and confidence.
    rng : numpy.random.Generator
        Four numbers are drawn.
    training : Training
        Says how.

    Returns
    -------
    image, confidence, valid : uint8 (C, C, 3), uint8 (C, C), bool (C, C)
        A crop within the image; where the scaled image is smaller than the crop, it lies at random
        within it, and what is around is grey and not valid.
    """
    low, high = np.log(training.scale_range)
    scale = np.exp(low + (high - low) * rng.random())
    across, down, flip = rng.random(3)
    side = training.crop_size
    height, width = pixels.shape[:2]
    if not pixels.size:
        nothing = np.zeros((side, side), np.uint8)
        return np.full((side, side, 3), GREY, np.uint8), nothing, nothing.astype(bool)
    left, top = across * (width - side / scale), down * (height - side / scale)
    sign = -1 if flip < 0.5 else 1
    start = side - 1 + scale * left if sign < 0 else -scale * left
    affine = np.array([[sign * scale, 0, start], [0, scale, -scale * top]], np.float64)
    border = (GREY, GREY, GREY, 0)
    warped = cv2.warpAffine(pixels, affine, (side, side), borderValue=border)
    whole = np.full((height, width), 255, np.uint8)
    valid = cv2.warpAffine(whole, affine, (side, side), flags=cv2.INTER_NEAREST, borderValue=(0,))
    return (
        np.ascontiguousarray(warped[..., :3], np.uint8),
        np.ascontiguousarray(warped[..., 3], np.uint8),
        np.asarray(valid > 0),
    )


# Batches


@dataclass(frozen=True, slots=True)
class Loader:
    """Makes the batch of a step; a callable that Ray maps over steps.

    Attributes
    ----------
    corpus : Corpus
        What to learn from.
    training : Training
        Settings.
    cache : Cache
        Cache of decoded images.
    rank, workers : int
        Which worker's share of the batch.
    """

    corpus: Corpus
    training: Training
    cache: Cache
    rank: int = 0
    workers: int = 1

    def __call__(self, step: int) -> Batch:
        """Samples ``rank``, ``rank + workers``, ... of the batch of a step."""
        training = self.training
        first = step * training.batch_size
        positions = range(first + self.rank, first + training.batch_size, self.workers)
        crops, missing = [], []
        for position in positions:
            part, row = draw(self.corpus, training.seed, position)
            (pixels,) = self.cache.read(part, [row])
            if not pixels.size:
                missing.append(f"{part}:{row}")
            # a first number that no epoch has, so that no two generators are the same
            rng = np.random.default_rng([training.seed, 2**40, position])
            sample = crop(pixels, rng, training)
            crops.append(self._augment(*sample, position, rng) if pixels.size else sample)
        image, confidence, valid = (np.stack(column) for column in zip(*crops, strict=True))
        keys = [_key(training.seed, position) for position in positions]
        return Batch(image, confidence, valid, keys, tuple(missing))

    def _augment(
        self,
        image: NDArray[np.uint8],
        confidence: NDArray[np.uint8],
        valid: NDArray[np.bool_],
        position: int,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
        """Paste a foreground of an image that came shortly before, and change colours."""
        training = self.training
        if rng.random() < training.paste_probability:
            before = max(0, position - int(rng.integers(1, PASTED_FROM)))
            part, row = draw(self.corpus, training.seed, before)
            (other,) = self.cache.read(part, [row])
            if can_be_pasted(other[..., 3]):
                image, confidence, valid = paste(image, confidence, valid, other, rng)
        if training.color_jitter:
            image = blur(recolour(image, rng), rng)
        return image, confidence, valid

    def blank(self) -> Batch:
        """Give a batch of that shape which holds nothing."""
        side = self.training.crop_size
        count = len(range(self.rank, self.training.batch_size, self.workers))
        image, confidence = (np.zeros((count, side, side, *c), np.uint8) for c in ((3,), ()))
        return Batch(image, confidence, confidence > 0, [0] * count)


def _key(seed: int, position: int) -> int:
    digest = hashlib.sha256(f"{seed} {position}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def batches(loader: Loader, start: int = 0, ahead: int = 2) -> Iterator[Batch]:
    """Batches of the steps from ``start`` on, made by one thread while the last one is used."""
    steps = iter(range(start, loader.training.steps))
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(loader, step) for step in islice(steps, ahead)]
        while waiting:
            batch = waiting.pop(0).result()
            if (step := next(steps, None)) is not None:
                waiting.append(pool.submit(loader, step))
            yield batch
