"""Label Studio: tasks whose predictions are masks painted with its brush."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

import saff
from saff.arrays import AnyArray
from saff.exports.results import LABEL, Result
from saff.exports.sink import Sink

MERGED = "tasks.json"
CHANNELS = 4  # a brush paints RGBA; all four have the value of the mask
SIZES = (3, 4, 8, 16)  # bits of a run's length, of which each run names one
LONGEST_RUN = 1 << SIZES[-1]
WORD = 8  # bits of a value


class LabelStudio:
    """``tasks.json`` beside one such file for each part, for the import of a project."""

    needs_photograph = False

    def write_part(self, results: Iterable[Result], part: str, sink: Sink) -> None:
        """Write the tasks of a part."""
        tasks = []
        for result, task in sink.described(results, task_of):
            tasks.append(task)
            sink.count(result)
        with sink.whole(_name(part)) as path, open(path, "w") as file:
            file.writelines(_json_list(tasks))

    def targets(self, part: str, stems: Iterable[str]) -> Iterator[str]:
        """Names of the files that a part may become."""
        yield from (_name(part), MERGED)

    def finish(self, parts: list[str], sink: Sink) -> list[str]:
        """Merge the tasks of all parts into one file, a part in memory at a time."""
        tasks = (task for part in parts for task in json.loads(sink.to.read(_name(part))))
        with sink.whole(MERGED) as path, open(path, "w") as file:
            file.writelines(_json_list(tasks))
        return [MERGED]


def _name(part: str) -> str:
    return f"parts/{part}.json"


def _json_list(entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Text of a list, an entry in each line."""
    separator = "[\n"
    for entry in entries:
        yield separator + json.dumps(entry, separators=(",", ":"))
        separator = ",\n"
    yield "\n]\n" if separator == ",\n" else "[]\n"


def task_of(result: Result) -> dict[str, Any]:
    """Task of an image: its address, and its mask as a prediction.

    The names ``tag`` and ``image`` are those of Label Studio's own template for brushes.
    """
    height, width = result.shape
    mask = result.mask
    painted = {
        "id": "mask",
        "type": "brushlabels",
        "from_name": "tag",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": [LABEL]},
    }
    prediction: dict[str, Any] = {
        "model_version": f"saff {saff.__version__}",
        "result": [painted] if mask.any() else [],
    }
    if result.quality is not None:
        prediction["score"] = result.quality
    return {
        "data": {**result.columns, "image": result.url, "image_id": result.image_id},
        "predictions": [prediction],
    }


def encode_brush(mask: AnyArray) -> list[int]:
    """Pack a mask as Label Studio's brush does, in the rle-pack format of thi.ng.

    Its bits are: the number of values (32), the size of a value (5), four sizes of run lengths (4
    each); then for each run a 1, which of the sizes its length has (2), the length and the value.

    Parameters
    ----------
    mask : bool array of shape (H, W)
        Foreground.

    Returns
    -------
    rle : list of int
        Bytes.
    """
    values = mask.ravel()
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    starts = np.concatenate([[0], changes])
    lengths = np.diff(starts, append=values.size) * CHANNELS
    head = f"{values.size * CHANNELS:032b}{WORD - 1:05b}" + "".join(f"{n - 1:04b}" for n in SIZES)
    runs = zip(lengths.tolist(), values[starts].tolist(), strict=True)
    bits = head + "".join(_run(length, value) for length, value in runs)
    bits += "0" * (-len(bits) % 8)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))


def _run(length: int, foreground: bool) -> str:
    value = f"{255 * foreground:0{WORD}b}"
    longest = f"111{LONGEST_RUN - 1:0{SIZES[-1]}b}{value}"
    whole, rest = divmod(length - 1, LONGEST_RUN)  # rest: one less than what is left
    size = next(n for n, bits in enumerate(SIZES) if rest < 1 << bits)
    return longest * whole + f"1{size:02b}{rest:0{SIZES[size]}b}{value}"
