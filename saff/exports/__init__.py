"""Results in the files of other tools: annotation files, data sets, pictures.

A format is a class with the methods of :class:`saff.exports.sink.Format`, in a module of its own.
"""

from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING, cast

from saff.errors import SettingsError

if TYPE_CHECKING:
    from saff.exports.sink import Format

PICTURES = ("mask", "confidence", "overlay", "cutout")


class FileFormat(str, Enum):
    """Files that results are written to; each but ``png`` with the class that writes it."""

    place: str

    png = "png"
    coco = "coco", "coco:Coco"
    yolo = "yolo", "yolo:Yolo"
    label_studio = "label-studio", "label_studio:LabelStudio"
    cvat = "cvat", "cvat:Cvat"
    hugging_face = "hugging-face", "hugging_face:HuggingFace"
    webdataset = "webdataset", "web_dataset:WebDataset"

    def __new__(cls, name: str, place: str = "") -> "FileFormat":
        """Make the format of a name."""
        member = str.__new__(cls, name)
        member._value_, member.place = name, place
        return member


ANNOTATIONS = tuple(form.value for form in FileFormat if form.place)
FORMATS = (*PICTURES, *ANNOTATIONS)
"""Names of all formats: kinds of pictures, then files of other tools."""


def load_format(name: str, *, matting: bool = False) -> "Format":
    """Make a format by its name.

    Parameters
    ----------
    name : str
        One of :data:`FORMATS`.
    matting : bool
        Give cut-outs soft edges.

    Raises
    ------
    SettingsError
        If there is none of that name, or its package is not installed.
    """
    if name in PICTURES:
        from saff.exports.picture_files import PictureFiles
        from saff.picture_export import check_matting

        if matting:
            check_matting(name)  # type: ignore[arg-type]
        return PictureFiles(name, matting=matting)  # type: ignore[arg-type]
    if name not in FORMATS:
        raise SettingsError(f"no format {name!r} of an export; known: {', '.join(FORMATS)}")
    module, _, made = FileFormat(name).place.partition(":")
    written_in = import_module(f"saff.exports.{module}")
    return cast("Format", getattr(written_in, made)())
