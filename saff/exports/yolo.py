"""YOLO segmentation: a text file of polygons beside each photograph, as Ultralytics reads them.

Each connected component is a line: the class 0, then the points of its outline as shares of width
and height.  A hole is cut open to the outline, because a line has one list of points.  A point lies
a quarter of a pixel from the corner of its own, so that a reader who multiplies, then rounds or
rounds down, and fills, gets the mask back to the pixel.
"""

from collections.abc import Iterable, Iterator

from saff.exports.results import EXTENSIONS, LABEL, Result
from saff.exports.shapes import Points, connected_components, cut_open
from saff.exports.sink import Sink

WITHIN = 0.25  # of a pixel
SHARE = "%.7g"  # finer than a tenth of a pixel of a million
DATA = "data.yaml"
DATA_TEXT = f"""\
# Relative to this file. For a training, split the images: train and val may also name text files.
train: images
val: images
names:
  0: {LABEL}
"""


class Yolo:
    """``images/``, ``labels/`` with a file of polygons for each, and ``data.yaml``."""

    needs_photograph = True

    def write_part(self, results: Iterable[Result], part: str, sink: Sink) -> None:
        """Write the photographs and label files of a part."""
        for result, files in sink.described(results, _files):
            sink.write_files(result, files)

    def targets(self, part: str, stems: Iterable[str]) -> Iterator[str]:
        """Names of the files that a part may become."""
        yield DATA
        for stem in stems:
            yield f"labels/{stem}.txt"
            yield from (f"images/{stem}.{extension}" for extension in EXTENSIONS.values())

    def finish(self, parts: list[str], sink: Sink) -> list[str]:
        """Write ``data.yaml``."""
        sink.to.write(DATA, DATA_TEXT.encode())
        return [DATA]


def _files(result: Result) -> dict[str, bytes]:
    text = "".join(f"{line}\n" for line in lines_of(result))
    return {
        f"images/{result.stem}.{result.extension}": result.photograph,
        f"labels/{result.stem}.txt": text.encode(),
    }


def lines_of(result: Result) -> Iterator[str]:
    """Lines of an image's label file; none for an image without foreground."""
    for component in connected_components(result.mask, result.settings.smallest):
        yield f"0 {_shares(cut_open(component), result.shape)}"


def _shares(points: Points, shape: tuple[int, int]) -> str:
    height, width = shape
    shares = ((points + WITHIN) / (width, height)).ravel()
    return " ".join([SHARE] * len(shares)) % tuple(shares.tolist())  # far faster than one by one
