"""The images of an output: parts of its manifest, which are added and never replaced.

An output prefix holds ``manifest/part-N.parquet`` (which images) and, per stage, a shard of the
same name (what was found).  A shard appears whole or not at all and its name says which images it
holds, so resuming is a comparison of two listings, and no image is ever there twice.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, count, islice

import pyarrow as pa

from saff import layout
from saff.errors import SettingsError
from saff.ids import Ids
from saff.layout import OWN_NAMES, PART_SUFFIX, part_name
from saff.shards import MANIFEST, Row, open_writer, read_column
from saff.storage import Folder, read_each

SMALLEST_PART, LARGEST_PART = 2, 1024  # images per part: little work lost, few files
PARTS_WANTED = 256  # enough to keep many workers busy to the end
LOOK_AHEAD = 65_536  # images listed before the size of a part is chosen


def extend_manifest(output: Folder, rows: Iterable[Row]) -> int:
    """Add the images that an output does not know yet to its manifest, in new parts.

    Parameters
    ----------
    output : Folder
        The run's output.
    rows : iterable of dict
        Manifest rows; ids unique.

    Returns
    -------
    added : int
        Number of images that were new.

    Raises
    ------
    SettingsError
        If an id comes twice, or another job takes images in at the same time.
    """
    folder = layout.manifest(output)
    names = folder.names(PART_SUFFIX)
    fresh = new_rows(output, rows)
    buffer = list(islice(fresh, LOOK_AHEAD))
    size = min(max(len(buffer) // PARTS_WANTED, SMALLEST_PART), LARGEST_PART)
    if len(buffer) == LOOK_AHEAD:
        size = LARGEST_PART
    added = 0
    fresh = chain(buffer, fresh)
    free = (name for name in map(part_name, count(len(names))) if name not in names)
    while part := list(islice(fresh, size)):
        name, stream = next(free), pa.BufferOutputStream()
        with open_writer(stream, MANIFEST) as writer:
            writer.write_table(pa.Table.from_pylist(part, MANIFEST))
        try:
            folder.create(name, stream.getvalue().to_pybytes())
        except FileExistsError:
            raise SettingsError(
                f"another job takes images into {output.uri} at this moment: {name} appeared; wait "
                "until it is done, then run the same command again"
            ) from None
        added += len(part)
    return added


def new_rows(output: Folder, rows: Iterable[Row]) -> Iterator[Row]:
    """Those of some manifest rows whose images an output does not know yet; ids must be unique.

    What a run writes is no image, where its output lies inside their folder.
    """
    own = tuple(f"{output.uri}/{name}" for name in OWN_NAMES)
    folder = layout.manifest(output)
    ids = Ids()
    read_ids = partial(read_column, column="image_id")
    for known in read_each(read_ids, folder, folder.names(PART_SUFFIX)):
        ids.know(known)
    for row in rows:
        try:
            fresh = ids.name(row["image_id"])
        except KeyError:
            raise SettingsError(
                f"image_id {row['image_id']!r} comes twice; ids must be unique"
            ) from None
        if fresh and not row["uri"].startswith(own):
            yield row
