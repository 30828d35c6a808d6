"""In what, and by how much, the images of two outputs differ."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby

from saff.shards import Row
from saff.storage import Folder
from saff.verification.catalogue import Catalogue
from saff.verification.files import DamagedError, schema_of, stored_rows
from saff.verification.findings import Distance
from saff.verification.rows import differing_columns, examine


def measure_differences(
    image_ids: Iterable[str],
    catalogue: Catalogue,
    outputs: Sequence[Folder],
    stages: Sequence[str],
) -> dict[str, Distance]:
    """By how much the maps of some images differ between two outputs, for each stage."""
    differing: dict[str, list[tuple[str, str, str]]] = {stage: [] for stage in stages}
    for image_id in image_ids:
        places = catalogue.find(image_id)
        if len(places) < 2:
            continue
        for stage, *digests in zip(stages, places[0][1], places[1][1], strict=True):
            if all(digests) and digests[0] != digests[1]:
                differing[stage].append((places[0][0], places[1][0], image_id))
    distances = {}
    for stage, images in differing.items():
        distance = Distance()
        for parts, group in groupby(sorted(images), key=lambda place: place[:2]):
            ids = {image_id for *_, image_id in group}
            one, other = (
                {row["image_id"]: row for row in _rows(folder / stage, part, stage, ids)}
                for folder, part in zip(outputs, parts, strict=True)
            )
            for image_id in one.keys() & other.keys():
                distance.add(examine(one[image_id])[0], examine(other[image_id])[0])
        if distance.images:
            distances[stage] = distance
    return distances


def describe_difference(
    image_id: str, catalogue: Catalogue, outputs: Sequence[Folder], stages: Sequence[str]
) -> str:
    """In what an image differs between two outputs."""
    places = catalogue.find(image_id)
    if len(places) == 1:
        (there,) = places
        return f"{image_id!r} is not in {outputs[1 - there].uri}"
    found_differences = []
    for number, stage in enumerate(stages):
        one, other = (places[output][1][number] for output in (0, 1))
        if one and other and one != other:
            found = [
                examine(row)[0]
                for output, folder in enumerate(outputs)
                for row in _rows(folder / stage, places[output][0], stage, {image_id})
            ]
            found_differences.append(f"{stage} differ in {', '.join(differing_columns(*found))}")
        elif one != other:
            lacking = outputs[0 if other else 1]
            found_differences.append(f"{stage} are not in {lacking.uri}")
    return f"{image_id!r}: {'; '.join(found_differences)}"


def _rows(folder: Folder, part: str, stage: str, ids: set[str]) -> Iterator[Row]:
    """Rows of some images of a part, the first of each; a part that is damaged is a fault already.

    Not read further than the last of them.
    """
    left = set(ids)
    with suppress(DamagedError):
        for row in stored_rows(folder, part, schema_of(stage)):
            if row["image_id"] in left:
                left.remove(row["image_id"])
                yield row
            if not left:
                return
