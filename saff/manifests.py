"""The images of an output: parts of its manifest, which are added and never replaced.

An output prefix holds ``manifest/part-N.parquet`` (which images) and, per stage, a shard of the
same name (what was found).  A shard appears whole or not at all and its name says which images it
holds, so resuming is a comparison of two listings, and no image is ever there twice.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice, takewhile

import pyarrow as pa

from saff import layout
from saff.errors import SettingsError
from saff.ids import Ids
from saff.layout import OWN_NAMES, PART_SUFFIX, Stage, part_name
from saff.shards import LISTED, MANIFEST, Row, open_writer, read_all_rows, read_rows
from saff.storage import Folder, read_each

SMALLEST_PART, LARGEST_PART = 2, 1024  # images per part: little work lost, few files
SMALL_PART = 8  # from here on, what a task costs beside its images hardly shows
FEWEST_PARTS = 25  # of a small list, before its parts grow to that
PARTS_WANTED = 256  # enough to keep many workers busy to the end
LOOK_AHEAD = 65_536  # images listed before the size of a part is chosen


@dataclass(frozen=True, slots=True)
class Intake:
    """What a source has brought into a manifest.

    Attributes
    ----------
    added : int
        Images that were new.
    renewed : int
        Images that are not done and have another address than before, which they take.
    kept : int
        Images that are done and have another address in the source: their results stay.
    without_address : int
        Images among the new ones to which the source gives no address.
    """

    added: int = 0
    renewed: int = 0
    kept: int = 0
    without_address: int = 0

    def lines(self) -> list[str]:
        """Say what a person may not expect."""
        said = []
        if self.without_address:
            said.append(f"{self.without_address:,} images have no address, and fail")
        if self.renewed:
            said.append(
                f"{self.renewed:,} images that are not done have another address now, and are "
                "read from there (those that failed, with --retry-failed)"
            )
        if self.kept:
            said.append(
                f"{self.kept:,} images that are done have another address now; their results stay "
                "as they are"
            )
        return said


def extend_manifest(output: Folder, rows: Iterable[Row]) -> Intake:
    """Add the images that an output does not know yet to its manifest, in new parts.

    A part of the manifest is never changed.  Where the source has another address for an image
    that is known, the address is added beside the manifest (:func:`renew_addresses`).

    Parameters
    ----------
    output : Folder
        The run's output.
    rows : iterable of dict
        Manifest rows; ids unique.

    Returns
    -------
    intake : Intake
        What was new.

    Raises
    ------
    SettingsError
        If an id comes twice, or another job takes images in at the same time.
    """
    folder = layout.manifest(output)
    names = manifest_parts(output)
    ids = known_ids(output)
    fresh = new_rows(output, rows, ids)
    buffer = list(islice(fresh, LOOK_AHEAD))
    size = LARGEST_PART if len(buffer) == LOOK_AHEAD else part_size(len(buffer))
    added = without_address = 0
    fresh = chain(buffer, fresh)
    free = (name for name in map(part_name, count(len(names))) if name not in names)
    while part := list(islice(fresh, size)):
        name, content = next(free), _table_bytes(part)
        try:
            folder.create(name, content)
        except FileExistsError:
            raise SettingsError(
                f"another job takes images into {output.uri} at this moment: {name} appeared; wait "
                "until it is done, then run the same command again"
            ) from None
        added += len(part)
        without_address += sum(not row["uri"] for row in part)
    renewed, kept = renew_addresses(output, ids)
    return Intake(added, renewed, kept, without_address)


def part_size(images: int) -> int:
    """Images in a part of a list of so many, from 2 to 1024.

    Examples
    --------
    >>> [part_size(images) for images in (9, 100, 1000, 10_000, 1_000_000)]
    [2, 4, 8, 39, 1024]
    """
    small = min(images // FEWEST_PARTS, SMALL_PART)
    return min(max(images // PARTS_WANTED, small, SMALLEST_PART), LARGEST_PART)


def _table_bytes(rows: list[Row]) -> bytes:
    stream = pa.BufferOutputStream()
    schema = LISTED if any("columns" in row for row in rows) else MANIFEST
    with open_writer(stream, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema))
    data: bytes = stream.getvalue().to_pybytes()
    return data


def manifest_parts(output: Folder) -> list[str]:
    """List the parts of an output's manifest, also those that a listing does not show yet.

    Some stores list an object only a while after it was written, while it can be read by its name
    at once.  Parts have consecutive numbers, so the first that is not listed is looked for by name,
    and if it exists the next one, until none is left.
    """
    folder = layout.manifest(output)
    names = folder.names(PART_SUFFIX)
    listed = set(names)
    unlisted = (name for name in map(part_name, count()) if name not in listed)
    return sorted([*names, *takewhile(folder.exists, unlisted)])


def known_ids(output: Folder) -> Ids:
    """Images that an output has, with the address of each."""
    ids = Ids()
    names = manifest_parts(output)
    renewed = {*layout.addresses(output).names(PART_SUFFIX)}

    def read(folder: Folder, name: str) -> list[tuple[str, str]]:
        rows = list(read_rows(folder, name, MANIFEST.names))
        if name in renewed:
            rows = _renewed(rows, read_all_rows(layout.addresses(output), name))
        return [(row["image_id"], row["uri"]) for row in rows]

    for name, images in zip(names, read_each(read, layout.manifest(output), names), strict=True):
        ids.know(name, images)
    return ids


def new_rows(output: Folder, rows: Iterable[Row], ids: Ids | None = None) -> Iterator[Row]:
    """Those of some manifest rows whose images an output does not know yet; ids must be unique.

    What a run writes is no image, where its output lies inside their folder.
    """
    own = tuple(f"{output.uri}/{name}" for name in OWN_NAMES)
    ids = ids or known_ids(output)
    for row in rows:
        try:
            fresh = ids.name(row["image_id"], row["uri"])
        except KeyError:
            raise SettingsError(
                f"image_id {row['image_id']!r} comes twice; ids must be unique"
            ) from None
        if fresh and not row["uri"].startswith(own):
            yield row


# Addresses that were corrected, or signed anew


def read_part(output: Folder, name: str) -> list[Row]:
    """Images of a part of the manifest, each with the address that was named last."""
    rows = read_all_rows(layout.manifest(output), name, MANIFEST.names)
    addresses = layout.addresses(output)
    if not addresses.exists(name):
        return rows
    return _renewed(rows, read_all_rows(addresses, name))


def listed_columns(output: Folder, name: str) -> dict[str, Row]:
    """Further columns that the list has of the images of a part, by image id.

    Images of a run whose list has no such columns are not in it.
    """
    manifest = layout.manifest(output)
    if not manifest.exists(name):
        return {}
    rows = read_all_rows(manifest, name)
    return {row["image_id"]: json.loads(row["columns"]) for row in rows if row.get("columns")}


def later_addresses(addresses: Folder, name: str) -> dict[str, list[str]]:
    """Addresses that images of a part were given after they were taken in, the last one first.

    Parameters
    ----------
    addresses : Folder
        ``layout.addresses`` of the output.
    name : str
        Of the part.
    """
    found: dict[str, list[str]] = {}
    if addresses.exists(name):
        for row in reversed(read_all_rows(addresses, name)):
            found.setdefault(row["image_id"], []).append(row["uri"])
    return found


def _renewed(rows: list[Row], later: list[Row]) -> list[Row]:
    last = {row["image_id"]: row["uri"] for row in later}
    return [row | {"uri": last.get(row["image_id"], row["uri"])} for row in rows]


def renew_addresses(output: Folder, ids: Ids) -> tuple[int, int]:
    """Note the addresses that a source has changed, in a file for each part that is concerned.

    The file of a part appears whole, or stays as it was.  It keeps the addresses that were there
    before: finished results name the one that they were read from.

    Returns
    -------
    renewed, kept : int
        Images that are not done and take the new address, and images that are done.
    """
    addresses = layout.addresses(output)
    renewed = kept = 0
    for name, uris in ids.changed():
        before = read_all_rows(addresses, name) if addresses.exists(name) else []
        after = [{"image_id": image_id, "uri": uri} for image_id, uri in uris.items()]
        addresses.write(name, _table_bytes([*before, *after]))
        done = _done(output, name)
        kept += len(done & uris.keys())
        renewed += len(uris.keys() - done)
    return renewed, kept


def _done(output: Folder, name: str) -> set[str]:
    """Images of a part that have a result."""
    for stage in Stage:
        folder = output / stage
        if folder.exists(name):
            rows = read_all_rows(folder, name, ["image_id", "error_kind"])
            return {row["image_id"] for row in rows if row["error_kind"] is None}
    return set()
