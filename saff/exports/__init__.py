"""Results in the files of other tools: annotation files, data sets, pictures.

A format is a class with the methods of :class:`saff.exports.sink.Format`, in a module of its own.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from saff.errors import SettingsError

if TYPE_CHECKING:
    from saff.exports.sink import Format

PICTURES = ("mask", "confidence", "overlay", "cutout")
ANNOTATIONS = ("coco", "yolo", "label-studio", "cvat", "hugging-face", "webdataset")
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
    if name not in ANNOTATIONS:
        raise SettingsError(f"no format {name!r} of an export; known: {', '.join(FORMATS)}")
    return _annotations()[name]()


def _annotations() -> "dict[str, Callable[[], Format]]":
    from saff.exports import coco, cvat, hugging_face, label_studio, web_dataset, yolo

    formats: dict[str, Any] = {
        "coco": coco.Coco,
        "yolo": yolo.Yolo,
        "label-studio": label_studio.LabelStudio,
        "cvat": cvat.Cvat,
        "hugging-face": hugging_face.HuggingFace,
        "webdataset": web_dataset.WebDataset,
    }
    return formats
