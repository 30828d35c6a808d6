"""A data set for Hugging Face: Parquet files whose schema says which columns are pictures."""

import json
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saff.exports.results import Result
from saff.exports.sink import Sink

ROWS_PER_GROUP, BYTES_PER_GROUP = 100, 64 * 2**20  # that a writer or a viewer holds at once
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COLUMNS = {
    "image": PICTURE,
    "mask": PICTURE,
    "image_id": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "quality": pa.float64(),
    "sha256": pa.string(),
    "columns": pa.string(),
}
CARD = "README.md"
CARD_TEXT = """\
---
task_categories:
- image-segmentation
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---

Photographs and their foreground masks (0 background, 255 foreground), made without annotation by
saff. `quality` says how far a mask can be trusted, from 0 to 1.
"""


def _feature(kind: pa.DataType) -> dict[str, str]:
    if kind == PICTURE:
        return {"_type": "Image"}
    return {"dtype": "float64" if kind == pa.float64() else str(kind), "_type": "Value"}


SCHEMA = pa.schema(
    list(COLUMNS.items()),
    metadata={
        "huggingface": json.dumps(
            {"info": {"features": {name: _feature(kind) for name, kind in COLUMNS.items()}}}
        )
    },
)


class HuggingFace:
    """``data/train-*.parquet`` and a card, as ``datasets.load_dataset(FOLDER)`` reads them."""

    needs_photograph = True

    def write_part(self, results: Iterable[Result], part: str, sink: Sink) -> None:
        """Write the Parquet file of a part."""
        with sink.whole(_name(part)) as path, pq.ParquetWriter(path, SCHEMA) as out:
            for group in _groups(_counted(results, sink)):
                out.write_table(pa.Table.from_pylist(group, SCHEMA))

    def targets(self, part: str, stems: Iterable[str]) -> Iterator[str]:
        """Names of the files that a part may become."""
        yield from (_name(part), CARD)

    def finish(self, parts: list[str], sink: Sink) -> list[str]:
        """Write the card."""
        sink.to.write(CARD, CARD_TEXT.encode())
        return [CARD]


def _name(part: str) -> str:
    return f"data/train-{part.rpartition('-')[2]}.parquet"


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows in groups, each of so many at most and ended by the row with which it is large."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row["image"]["bytes"])
        if len(group) == ROWS_PER_GROUP or size >= BYTES_PER_GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _counted(results: Iterable[Result], sink: Sink) -> Iterator[dict[str, Any]]:
    for result, row in sink.described(results, row_of):
        sink.count(result)
        yield row


def row_of(result: Result) -> dict[str, Any]:
    """Row of an image: both pictures as files, and what is known of it."""
    height, width = result.shape
    name = posixpath.basename(result.stem)
    return {
        "image": {"bytes": result.photograph, "path": f"{name}.{result.extension}"},
        "mask": {"bytes": result.mask_png, "path": f"{name}.png"},
        "image_id": result.image_id,
        "width": width,
        "height": height,
        "quality": result.quality,
        "sha256": result.row["sha256"],
        "columns": json.dumps(result.columns) if result.columns else None,
    }
