"""CVAT for images 1.1: an XML file of masks, for the upload of annotations to a task."""

import re
from collections.abc import Iterable, Iterator
from xml.sax.saxutils import quoteattr

from saff.exports.results import LABEL, Result
from saff.exports.shapes import connected_components, run_lengths
from saff.exports.sink import Sink

MERGED = "annotations.xml"
HEAD = f"""\
<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><labels><label><name>{LABEL}</name><type>mask</type><attributes></attributes>\
</label></labels></task></meta>
"""
TAIL = "</annotations>\n"
NUMBER = re.compile(r'<image id="\d+"')
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Cvat:
    """``annotations.xml`` beside one such file for each part."""

    needs_photograph = False

    def write_part(self, results: Iterable[Result], part: str, sink: Sink) -> None:
        """Write the annotations of a part; its images are numbered from 0."""
        with sink.whole(_name(part)) as path, open(path, "w", encoding="utf-8") as file:
            file.write(HEAD)
            for number, (result, lines) in enumerate(sink.described(results, lines_of)):
                file.write(_numbered(lines, number))
                sink.count(result)
            file.write(TAIL)

    def targets(self, part: str, stems: Iterable[str]) -> Iterator[str]:
        """Names of the files that a part may become."""
        yield from (_name(part), MERGED)

    def finish(self, parts: list[str], sink: Sink) -> list[str]:
        """Merge the annotations of all parts into one file, a part in memory at a time."""
        number = 0
        with sink.whole(MERGED) as path, open(path, "w", encoding="utf-8") as file:
            file.write(HEAD)
            for part in parts:
                text = sink.to.read(_name(part)).decode()
                for line in text[len(HEAD) : -len(TAIL)].split("\n")[:-1]:
                    is_image = line.startswith("  <image ")
                    file.write(f"{_numbered(line, number) if is_image else line}\n")
                    number += is_image
            file.write(TAIL)
        return [MERGED]


def _name(part: str) -> str:
    return f"parts/{part}.xml"


def _numbered(lines: str, number: int) -> str:
    return NUMBER.sub(f'<image id="{number}"', lines, count=1)


def lines_of(result: Result) -> str:
    """Element of an image, numbered 0; each connected component of its mask is a mask.

    ``rle`` has the lengths of runs in the box of the mask, row after row, the first one of zeros.

    Raises
    ------
    ValueError
        If the image's id holds a character that XML cannot.
    """
    if found := NOT_XML.search(result.image_id):
        raise ValueError(f"its id holds {found[0]!r}, which XML cannot")
    height, width = result.shape
    lines = [
        f'  <image id="0" name={quoteattr(result.image_id)} width="{width}" height="{height}">\n'
    ]
    for component in connected_components(result.mask, result.settings.smallest):
        left, top, across, down = component.box
        runs = ", ".join(map(str, run_lengths(component.pixels.ravel()).tolist()))
        lines.append(
            f'    <mask label="{LABEL}" source="auto" occluded="0" rle="{runs}" left="{left}" '
            f'top="{top}" width="{across}" height="{down}" z_order="0"></mask>\n'
        )
    lines.append("  </image>\n")
    return "".join(lines)
