"""All images of a run, the least trustworthy first, so that a person looks where it matters."""

import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from saff import layout
from saff.arrays import AnyArray
from saff.errors import StorageError
from saff.exports.shapes import connected_components
from saff.kept import Large, read_kept, require_columns
from saff.layout import PART_SUFFIX, Stage
from saff.manifests import listed_columns
from saff.marks import Marks
from saff.quality import mask_iou
from saff.rows import decode_map, parts_of
from saff.shards import Row, read_all_rows
from saff.storage import Folder

RANKING = "ranking"  # .parquet and .csv
NEEDED = ["image_id", "uri", "height", "width", "pseudo_label", "quality", "error_kind"]
SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("trust", pa.float64()),
        ("quality", pa.float64()),
        ("agreement", pa.float64()),
        ("foreground_share", pa.float64()),
        ("components", pa.int32()),
        ("largest_component", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("error_kind", pa.string()),
        ("mark", pa.string()),
        ("part", pa.string()),
    ]
)


def rank(output: Folder, stage: str, marks: Marks) -> pa.Table:
    """Rank the images of a stage.

    Parameters
    ----------
    output : Folder
        A run.
    stage : str
        ``"pseudo_labels"`` or ``"predictions"``.
    marks : dict
        As :func:`saff.marks.read_marks` gives them.

    Returns
    -------
    ranking : pyarrow.Table
        A row for each image, by ``trust`` from the lowest on, those that failed at the end.
        ``trust`` is ``quality`` times ``agreement``, the IoU of the masks of both stages, or
        ``quality`` alone where there is one stage.
    """
    require_columns(output, stage, ["pseudo_label"], "a ranking")
    tables = []
    for part in parts_of(output, stage):
        rows = [row | _mark(row, marks) for row in _part_rows(output, stage, part)]
        further = listed_columns(output, part)
        names = {f"list_{name}" for columns in further.values() for name in columns}
        fields = [*SCHEMA, *((name, pa.string()) for name in sorted(names))]
        for row in rows:
            columns = further.get(row["image_id"], {})
            row |= {f"list_{n}": None if v is None else str(v) for n, v in columns.items()}
        tables.append(pa.Table.from_pylist(rows, pa.schema(fields)))
    order = [("trust", "ascending"), ("image_id", "ascending")]
    return pa.concat_tables(tables, promote_options="default").sort_by(
        order
    )  # null, of images that failed, is last


def _mark(row: Row, marks: Marks) -> Row:
    mark = marks.get(row["image_id"])
    return {"mark": None if mark is None else str(mark)}


def _part_rows(output: Folder, stage: str, part: str) -> Iterator[Row]:
    other = Stage.PREDICTIONS if stage == Stage.PSEUDO_LABELS else Stage.PSEUDO_LABELS
    masks: dict[str, Row] = {}
    is_comparable = other == Stage.PREDICTIONS or Large.PSEUDO_LABEL in read_kept(output)
    if is_comparable and part in (output / other).names(PART_SUFFIX):
        columns = ["image_id", "height", "width", "pseudo_label"]
        masks = {r["image_id"]: r for r in read_all_rows(output / other, part, columns)}
    for row in read_all_rows(output / stage, part, NEEDED):
        ranked = {name: row[name] for name in ("image_id", "width", "height", "error_kind")}
        ranked["part"] = part
        yield ranked if row["pseudo_label"] is None else ranked | _measures(row, masks)


def _measures(row: Row, others: dict[str, Row]) -> Row:
    mask = _mask(row)
    agreement = None
    other = others.get(row["image_id"])
    if other is not None and other["pseudo_label"] is not None:
        second = _mask(other)
        if second.shape == mask.shape:
            agreement = mask_iou(mask, second)
    quality = row["quality"]
    areas = [component.area for component in connected_components(mask)]
    doubt = 1.0 if agreement is None else agreement
    return {
        "trust": None if quality is None else quality * doubt,
        "quality": quality,
        "agreement": agreement,
        "foreground_share": float(mask.mean()),
        "components": len(areas),
        "largest_component": areas[0] / mask.size if areas else 0.0,
    }


def _mask(row: Row) -> AnyArray:
    mask: AnyArray = decode_map(row, "pseudo_label") > 0
    if mask.shape != (row["height"], row["width"]):
        raise StorageError(f"the mask of {row['image_id']} is not of the size of its image")
    return mask


def write_ranking(output: Folder, ranking: pa.Table) -> list[str]:
    """Write a ranking as Parquet and as CSV into ``OUTPUT/review``; the addresses of both."""
    folder = layout.review(output)
    with folder.replacing(f"{RANKING}.parquet") as path:
        pq.write_table(ranking, path)
    stream = io.BytesIO()
    pa.csv.write_csv(ranking, stream)
    folder.write(f"{RANKING}.csv", stream.getvalue())
    return [f"{folder.uri}/{RANKING}{ending}" for ending in (".parquet", ".csv")]


def head(ranking: pa.Table, count: int) -> Iterator[str]:
    """Lines that show the first images of a ranking that nobody has marked."""
    shown = 0
    for row in ranking.to_batches(max_chunksize=1024):
        for image in row.to_pylist():
            if shown == count:
                return
            if image["mark"] is None and image["trust"] is not None:
                shown += 1
                agreement = image["agreement"]
                agrees = "" if agreement is None else f", agreement {agreement:.2f}"
                yield (
                    f"{image['trust']:.3f}  {image['image_id']}  quality {image['quality']:.2f}"
                    f"{agrees}, {image['components']} components, "
                    f"{image['foreground_share']:.0%} foreground"
                )
