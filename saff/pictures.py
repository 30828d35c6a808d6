"""Pictures of a result, and picture files: arrays in, arrays or bytes out.

What ``saff export`` and ``saff segment`` draw.
"""

import io
import posixpath
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
import PIL.Image

from saff import images
from saff.arrays import AnyArray, Image
from saff.errors import SettingsError

What: TypeAlias = Literal["mask", "confidence", "overlay", "cutout"]
OVERLAY_COLOUR = (255, 40, 120)  # RGB
OVERLAY_OPACITY = 0.55
JPEG_QUALITY = 95
LONGEST_SIDE_OF_CV2 = 1_000_000  # pixels; libpng's limit, to which Pillow does not keep
FORMATS = {
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
}
LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}  # pixels, of formats that have such a limit
HOW: dict[str, dict[str, Any]] = {
    "PNG": {},
    "TIFF": {"compression": "tiff_adobe_deflate"},
    "WEBP": {"lossless": True, "exact": True},  # exact: colours stay where alpha is 0
    "JPEG": {"quality": JPEG_QUALITY, "subsampling": "4:4:4"},
}


def picture(
    what: What,
    confidence: AnyArray,
    image: Image | None = None,
    *,
    threshold: float = 0.5,
    foreground_found: bool = True,
) -> AnyArray:
    """Draw one result.

    Parameters
    ----------
    what : {"mask", "confidence", "overlay", "cutout"}
        Mask as 0 and 255; confidence as 0..255; the image with its foreground tinted and outlined;
        the image with the confidence as its alpha channel.
    confidence : uint8 array of shape (H, W)
        0..255.
    image : uint8 array of shape (H, W, 3), optional
        RGB; needed for the last two.
    threshold : float
        Confidence in [0, 1] from which a pixel is foreground in a mask or an overlay.
    foreground_found : bool
        False: everything but the confidence itself is drawn as for a confidence of 0.

    Returns
    -------
    drawn : uint8 array of shape (H, W), (H, W, 3) or (H, W, 4)
        As large as the image.

    Raises
    ------
    ValueError
        If the image is needed and missing, or of another size than the confidence map.
    """
    if what == "confidence":
        return confidence
    mask = mask_from(confidence, threshold) & foreground_found
    if what == "mask":
        drawn: AnyArray = mask.astype(np.uint8) * 255
        return drawn
    if image is None or image.shape[:2] != confidence.shape:
        raise ValueError(f"a {what} needs the image, in the size of its confidence map")
    if what == "cutout":
        return np.dstack([image, confidence * np.uint8(foreground_found)])
    tinted = image.astype(np.float32)
    tinted[mask] += OVERLAY_OPACITY * (np.asarray(OVERLAY_COLOUR, np.float32) - tinted[mask])
    tinted[~mask] *= 1 - OVERLAY_OPACITY
    drawn = np.rint(tinted).astype(np.uint8)
    outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(max(mask.shape) / 400))
    return cv2.drawContours(drawn, outline, -1, (255, 255, 255), width)


def mask_from(confidence: AnyArray, threshold: float) -> AnyArray:
    """Mask of the pixels whose 8-bit confidence is at least a threshold in [0, 1].

    Examples
    --------
    >>> mask_from(np.array([[127, 128]], np.uint8), 0.5).tolist()
    [[False, True]]
    """
    return np.asarray(confidence >= np.ceil(255 * threshold))


def needs_image(what: What) -> bool:
    """Whether a picture shows the photograph as well as the result."""
    return what in ("overlay", "cutout")


def picture_format(name: str, what: What) -> str:
    """Format of a picture file by the extension of its name.

    JPEG is for overlays alone: it has no alpha channel for a cut-out, and it changes the values of
    a mask or a confidence map.

    Parameters
    ----------
    name : str
        File name; its extension counts without case.
    what : {"mask", "confidence", "overlay", "cutout"}
        What the file is to show.

    Returns
    -------
    format : {"PNG", "TIFF", "WEBP", "JPEG"}
        For :func:`encode_picture`.

    Raises
    ------
    SettingsError
        If the extension is missing, is of another format, or is JPEG's and the picture no overlay.

    Examples
    --------
    >>> picture_format("mask.TIF", "mask")
    'TIFF'
    """
    extension = posixpath.splitext(name)[1].lower()
    if extension not in FORMATS:
        came = f"the extension {extension!r}" if extension else "no extension"
        raise SettingsError(
            f"{name} has {came}; name a file that ends in .png, .tiff or .webp, or in .jpg for an "
            "overlay"
        )
    if FORMATS[extension] == "JPEG" and what != "overlay":
        why = "has no transparency" if what == "cutout" else "would change its values"
        raise SettingsError(
            f"{name}: a {what} is not written as JPEG, which {why}; name a file that ends in .png, "
            ".tiff or .webp"
        )
    return FORMATS[extension]


def encode_picture(drawn: AnyArray, file_format: str = "PNG") -> bytes:
    """Encode a picture as a file.

    Parameters
    ----------
    drawn : uint8 array of shape (H, W), (H, W, 3) or (H, W, 4)
        Grey, RGB or RGBA.
    file_format : {"PNG", "TIFF", "WEBP", "JPEG"}
        The first three keep every value; JPEG has quality 95 and colours at full resolution.

    Returns
    -------
    data : bytes
        The file, never empty.

    Raises
    ------
    ValueError
        If the array is no such picture, the format cannot hold its size, or the encoder fails.
    """
    if drawn.dtype != np.uint8 or drawn.ndim < 2 or drawn.shape[2:] not in ((), (3,), (4,)):
        came = f"{drawn.dtype} of shape {drawn.shape}"
        raise ValueError(f"drawn must be uint8 (H, W), (H, W, 3) or (H, W, 4), got {came}")
    longest = max(drawn.shape[:2])
    if longest > LONGEST_SIDE.get(file_format, longest):
        raise ValueError(
            f"a {file_format} file has at most {LONGEST_SIDE[file_format]:,} pixels on a side, "
            f"and this picture has {longest:,}; choose PNG or TIFF"
        )
    if file_format == "PNG":
        data = _to_png(drawn)
    else:
        data = _with_pillow(drawn, file_format)
    if not data:
        raise ValueError(f"the {file_format} encoder wrote nothing for a picture {drawn.shape}")
    return data


def _to_png(drawn: AnyArray) -> bytes:
    if drawn.ndim != 3 or drawn.shape[2] != 4:
        return images.encode_png(drawn)
    if max(drawn.shape) > LONGEST_SIDE_OF_CV2:
        return _with_pillow(drawn, "PNG")
    encoded, data = cv2.imencode(".png", cv2.cvtColor(drawn, cv2.COLOR_RGBA2BGRA))
    return data.tobytes() if encoded else b""


def _with_pillow(drawn: AnyArray, file_format: str) -> bytes:
    stream = io.BytesIO()
    try:
        PIL.Image.fromarray(drawn).save(stream, file_format, **HOW[file_format])
    except OSError as error:  # "encoder error -2 when writing image file"
        raise ValueError(f"the {file_format} encoder failed: {error}") from error
    return stream.getvalue()
