"""WebDataset: tar files in which a photograph, its mask and a JSON file have one key."""

import io
import json
import posixpath
import tarfile
from collections.abc import Iterable, Iterator

from saff.exports.results import Result
from saff.exports.sink import Sink


class WebDataset:
    """One tar file for each part; a sample has ``KEY.jpg``, ``KEY.mask.png`` and ``KEY.json``."""

    needs_photograph = True

    def write_part(self, results: Iterable[Result], part: str, sink: Sink) -> None:
        """Write the tar file of a part."""
        with (
            sink.whole(_name(part)) as path,
            tarfile.open(path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar,
        ):
            for result, files in sink.described(results, files_of):
                for name, data in files.items():
                    member = tarfile.TarInfo(name)  # dated 1970, so that equal content has
                    member.size = len(data)  # equal bytes
                    tar.addfile(member, io.BytesIO(data))
                sink.count(result)

    def targets(self, part: str, stems: Iterable[str]) -> Iterator[str]:
        """Names of the files that a part may become."""
        yield _name(part)

    def finish(self, parts: list[str], sink: Sink) -> list[str]:
        """Nothing is written once."""
        return []


def _name(part: str) -> str:
    return f"{part}.tar"


def key_of(stem: str) -> str:
    """Key of a sample: a stem without dots in its last part, where an extension would begin.

    Examples
    --------
    >>> key_of("d.e/cat.1%")
    'd.e/cat%2E1%25'
    """
    folder, name = posixpath.split(stem)
    return posixpath.join(folder, name.replace("%", "%25").replace(".", "%2E"))


def files_of(result: Result) -> dict[str, bytes]:
    """Members of an image's sample by name."""
    key = key_of(result.stem)
    height, width = result.shape
    about = {"image_id": result.image_id, "width": width, "height": height}
    about |= {"quality": result.quality, "sha256": result.row["sha256"]}
    if result.columns:
        about["columns"] = result.columns
    return {
        f"{key}.{result.extension}": result.photograph,
        f"{key}.mask.png": result.mask_png,
        f"{key}.json": json.dumps(about).encode(),
    }
