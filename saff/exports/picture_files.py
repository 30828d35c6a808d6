"""Picture files of every result, as ``saff export`` draws them."""

from collections.abc import Iterable, Iterator

from saff import images
from saff.exports.results import Result
from saff.exports.sink import Sink
from saff.picture_export import encode_row
from saff.pictures import What, needs_image


class PictureFiles:
    """One PNG file for each image.

    Parameters
    ----------
    what : {"mask", "confidence", "overlay", "cutout"}
        See :func:`saff.pictures.picture`.
    matting : bool
        Give cut-outs soft edges.
    """

    def __init__(self, what: What, *, matting: bool = False) -> None:
        self.what: What = what
        self.matting = matting
        self.needs_photograph = needs_image(what)

    def write_part(self, results: Iterable[Result], part: str, sink: Sink) -> None:
        """Write the pictures of a part."""
        for result, (data, as_wanted) in sink.described(results, self._drawn):
            sink.write_files(result, {f"{result.stem}.png": data})
            sink.summary.not_matted += not as_wanted

    def targets(self, part: str, stems: Iterable[str]) -> Iterator[str]:
        """Names of the files that a part may become."""
        yield from (f"{stem}.png" for stem in stems)

    def finish(self, parts: list[str], sink: Sink) -> list[str]:
        """Nothing is written once."""
        return []

    def _drawn(self, result: Result) -> tuple[bytes, bool]:
        height, width = result.shape
        photograph = None
        if self.needs_photograph:
            photograph = images.decode(result.photograph, max_pixels=height * width)
        threshold = result.settings.threshold
        return encode_row(
            result.row, self.what, photograph, threshold=threshold, matting=self.matting
        )
