"""COCO instances: one JSON file, each connected component an object with its run lengths.

An object has ``iscrowd`` 0, ``area`` in pixels, ``bbox`` as left, top, width and height, and its
``segmentation`` as compressed run lengths, which keep every pixel and every hole.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import saff
from saff.addresses import redact
from saff.errors import SettingsError
from saff.exports.results import LABEL, Result
from saff.exports.shapes import Component, column_runs, connected_components
from saff.exports.sink import Sink

Entry = dict[str, Any]
MERGED = "annotations.json"
CATEGORIES = [{"id": 1, "name": LABEL, "supercategory": ""}]
HEAD: Entry = {
    "info": {"description": f"masks of saff {saff.__version__}", "version": "1.0"},
    "licenses": [],
    "categories": CATEGORIES,
}


class Coco:
    """COCO instances; ``annotations.json`` beside one such file for each part."""

    needs_photograph = False

    def __init__(self) -> None:
        _run_length_coder()  # a missing package is reported before anything is written

    def write_part(self, results: Iterable[Result], part: str, sink: Sink) -> None:
        """Write the COCO file of a part; its ids count from 1."""
        images: list[Entry] = []
        annotations: list[Entry] = []
        for result, objects in sink.described(results, objects_of):
            images.append(image_entry(result) | {"id": len(images) + 1})
            for found in objects:
                ids = {"id": len(annotations) + 1, "image_id": len(images)}
                annotations.append(ids | found)
            sink.count(result)
        content = HEAD | {"images": images, "annotations": annotations}
        with sink.whole(_name(part)) as path, open(path, "w") as file:
            file.write(json.dumps(content, separators=(",", ":")))  # faster than json.dump

    def targets(self, part: str, stems: Iterable[str]) -> Iterator[str]:
        """Names of the files that a part may become."""
        yield from (_name(part), MERGED)

    def finish(self, parts: list[str], sink: Sink) -> list[str]:
        """Merge the files of all parts into one; two passes, so that one part is in memory."""
        with sink.whole(MERGED) as path, open(path, "w") as file:
            file.write(json.dumps(HEAD)[:-1])
            for kind in ("images", "annotations"):
                file.write(f', "{kind}": [')
                separator = "\n"
                for entry in _renumbered(kind, parts, sink):
                    file.write(separator + json.dumps(entry, separators=(",", ":")))
                    separator = ",\n"
                file.write("\n]")
            file.write("}\n")
        return [MERGED]


def _name(part: str) -> str:
    return f"parts/{part}.json"


def _renumbered(kind: str, parts: list[str], sink: Sink) -> Iterator[Entry]:
    """Entries of all parts with ids that count on from one part to the next."""
    images = annotations = 0
    for part in parts:
        content = json.loads(sink.to.read(_name(part)))
        for entry in content[kind]:
            if kind == "images":
                yield entry | {"id": images + entry["id"]}
            else:
                ids = {"id": annotations + entry["id"], "image_id": images + entry["image_id"]}
                yield entry | ids
        images += len(content["images"])
        annotations += len(content["annotations"])


def image_entry(result: Result) -> Entry:
    """Entry of an image, without its number; ``file_name`` is its id."""
    height, width = result.shape
    entry: Entry = {"file_name": result.image_id, "width": width, "height": height}
    if "://" in result.url:
        entry["coco_url"] = redact(result.url)
    if result.quality is not None:
        entry["quality"] = result.quality
    if result.columns:
        entry["columns"] = result.columns
    return entry


def objects_of(result: Result) -> list[Entry]:
    """Entries of the objects of an image, without their numbers, the largest first."""
    components = connected_components(result.mask, result.settings.smallest)
    return [_object(component, result.shape) for component in components]


def _object(component: Component, shape: tuple[int, int]) -> Entry:
    height, width = shape
    runs = column_runs(component, shape).tolist()
    packed = _run_length_coder().frPyObjects(
        {"counts": runs, "size": [height, width]}, height, width
    )
    return {
        "category_id": 1,
        "segmentation": {"size": [height, width], "counts": packed["counts"].decode()},
        "area": component.area,
        "bbox": list(component.box),
        "iscrowd": 0,
    }


def _run_length_coder() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise SettingsError(
            "COCO files are written with pycocotools, which is not installed: "
            "pip install 'saff[coco]'"
        ) from error
    return mask
