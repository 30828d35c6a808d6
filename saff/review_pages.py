"""Pages on which a person accepts or rejects images, the least trustworthy first.

Each page holds its own pictures and script, fetches nothing, and is linked to the next, so that a
browser has one page of them in memory however large the run is.
"""

import posixpath
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa

from saff import layout
from saff.access import ANYTHING, Access
from saff.arrays import AnyArray
from saff.html_templates import load_template
from saff.photographs import Photographs
from saff.pictures import picture
from saff.report.cards import data_uri
from saff.report.text import visible
from saff.resize import shrink
from saff.rows import decode_map
from saff.shards import Row, read_all_rows
from saff.storage import Folder

PER_PAGE = 200
READ_AT_ONCE = 5000  # images whose rows are looked for in one reading of the run
SIDE = 320  # pixels of the longer side of a thumbnail
JPEG_QUALITY = 80
COLUMNS = ["image_id", "uri", "sha256", "height", "width", "pseudo_label"]


@dataclass(frozen=True, slots=True)
class Card:
    """One image of a page."""

    name: str
    picture: str
    has_photograph: bool
    trust: float
    components: int
    foreground_share: float


def write_pages(
    output: Folder,
    stage: str,
    ranking: pa.Table,
    count: int,
    *,
    per_page: int = PER_PAGE,
    access: Access = ANYTHING,
) -> list[str]:
    """Write the first pages of a ranking into ``OUTPUT/review``.

    Parameters
    ----------
    output : Folder
        A run.
    stage : str
        Stage of the ranking.
    ranking : pyarrow.Table
        As :func:`saff.ranking.rank` gives it.
    count : int
        Number of pages; fewer where there are fewer images with a result.
    per_page : int
        Images on a page.
    access : Access
        What the addresses of the images may name.

    Returns
    -------
    pages : list of str
        Addresses of the pages.
    """
    total = ranking.num_rows - ranking["trust"].null_count
    number_of_pages = min(count, -(-total // per_page))
    photographs, folder = Photographs(access), layout.review(output)
    pages, rows = [], {}
    together = max(1, READ_AT_ONCE // per_page)
    for number in range(number_of_pages):
        first = number * per_page
        if number % together == 0:  # images of one page lie in all parts of the run
            last = min(number + together, number_of_pages) * per_page
            rows = _rows_of(output / stage, ranking.slice(first, min(last, total) - first))
        images = ranking.slice(first, min(per_page, total - first)).to_pylist()
        text = load_template("review.html.j2").render(
            title=visible(posixpath.basename(output.path)),
            first=first + 1,
            last=first + len(images),
            total=total,
            before=_page_name(number - 1) if number else "",
            after=_page_name(number + 1) if number + 1 < number_of_pages else "",
            cards=list(_cards(images, rows, photographs)),
            facts={
                "run": output.uri,
                "ids": [image["image_id"] for image in images],
                "marks": [image["mark"] or "unmarked" for image in images],
            },
        )
        folder.write(_page_name(number), text.encode())
        pages.append(f"{folder.uri}/{_page_name(number)}")
    return pages


def _page_name(number: int) -> str:
    return f"page-{number + 1:04}.html"


def _cards(images: list[Row], rows: dict[str, Row], photographs: Photographs) -> Iterator[Card]:
    for image in images:
        drawn, has_photograph = _thumbnail(rows[image["image_id"]], photographs)
        yield Card(
            visible(image["image_id"]),
            _jpeg(drawn),
            has_photograph,
            image["trust"],
            image["components"],
            image["foreground_share"],
        )


def _rows_of(stage: Folder, images: pa.Table) -> dict[str, Row]:
    """Rows of some images of a ranking by id; each part that holds some is read once."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for image in images.select(["part", "image_id"]).to_pylist():
        wanted[image["part"]].add(image["image_id"])
    return {
        row["image_id"]: row
        for part, ids in wanted.items()
        for row in read_all_rows(stage, part, COLUMNS)
        if row["image_id"] in ids
    }


def _thumbnail(row: Row, photographs: Photographs) -> tuple[AnyArray, bool]:
    """Photograph with its foreground tinted, or the mask alone where the photograph is lost."""
    levels = decode_map(row, "pseudo_label") * np.uint8(255)
    photograph = photographs.read(row)
    if photograph is None:
        return shrink(np.dstack([levels] * 3), SIDE), False
    small = shrink(photograph, SIDE)
    height, width = small.shape[:2]
    mask = cv2.resize(levels, (width, height), interpolation=cv2.INTER_NEAREST)
    return picture("overlay", mask, small), True


def _jpeg(drawn: AnyArray) -> str:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(drawn[..., ::-1]), options)
    return data_uri("image/jpeg", data.tobytes())
