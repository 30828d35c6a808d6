"""Samples of every depth and kind: as they are stored, or as 8 bit RGB."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import PIL.Image

from saff.arrays import AnyArray
from saff.images.file import PictureFile, corrupt, truncated, unsupported


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Samples:
    """The numbers that a file stores for its pixels, never scaled, and what they mean."""

    format: str
    """``PNG``, ``TIFF``, ``BMP``, ``GIF``, ``WebP``, ``JPEG 2000`` or ``JPEG``.  The last is lossy,
    and so are most files of the two before it."""
    mode: Literal["grey", "palette", "colour"]
    """What ``values`` are: levels from black to white, indices into ``palette``, or RGB."""
    bits: int
    """Bits per value, 1 to 16: values lie in 0 .. 2**bits - 1."""
    values: AnyArray
    """uint8 or, above 8 bits, uint16: (H, W), or (H, W, 3) for colour. 0 is black."""
    palette: AnyArray | None = None
    """uint8 (N, 3), RGB; an index may lie beyond it in a damaged file."""
    alpha: AnyArray | None = None
    """uint8 or uint16 (H, W) if the file has transparency: 0 is clear, the type's maximum opaque.
    A transparent palette entry or colour key counts as well."""
    several: bool = False
    """Whether the file holds other pictures than this, its first."""


def to_rgb(file: PictureFile, picture: PIL.Image.Image) -> AnyArray:
    """Show a picture as 8 bit RGB: uint8 (H, W, 3), transparent pixels over white."""
    if file.deep_colour:
        return _from_deep_colour(file)
    if picture.mode.startswith("I"):  # 16 bit grey: "I;16", "I;16B" or, in old Pillow, "I"
        return _from_deep_grey(file, picture)
    if file.key and file.depth < 8:
        picture.info["transparency"] = file.key[0] * 255 // (2**file.depth - 1)
    if file.format == "JPEG 2000" and file.depth < 8:  # Pillow fills up with zeros
        picture = picture.point(
            [(level >> 8 - file.depth) * 255 // (2**file.depth - 1) for level in range(256)]
            * len(picture.getbands())
        )
    return _from_pillow(picture)


def _from_pillow(picture: PIL.Image.Image) -> AnyArray:
    """8 bit samples of any mode, composited over white: (H, W, 3)."""
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = PIL.Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture)
        picture = white
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _from_deep_grey(file: PictureFile, picture: PIL.Image.Image) -> AnyArray:
    """16 bit grey, perhaps with one transparent level: (H, W, 3)."""
    samples = np.asarray(picture).astype(np.uint16, copy=False)  # from big-endian or 32 bit
    grey = _to_8_bit(samples)
    if file.format == "TIFF" and file.colour == 0:  # white is zero
        grey = cv2.bitwise_not(grey)
    if "transparency" in picture.info:
        grey[samples == picture.info["transparency"]] = 255
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


def _read_deep_colour(file: PictureFile) -> AnyArray:
    """16 bit RGB or RGBA: uint16 (H, W, 3 or 4). Pillow has seen that every pixel is there."""
    if not file.whole:  # OpenCV is stricter than Pillow, and loud about it
        raise truncated(file.format)
    try:
        samples = cv2.imdecode(np.frombuffer(file.data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise corrupt(file.format, "OpenCV cannot read its 16 bit samples") from error
    if samples is None or samples.dtype != np.uint16 or samples.shape[2:] not in ((3,), (4,)):
        raise corrupt(file.format, "OpenCV cannot read its 16 bit samples")
    code = cv2.COLOR_BGR2RGB if samples.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return cv2.cvtColor(samples, code)


def _from_deep_colour(file: PictureFile) -> AnyArray:
    """16 bit RGB, perhaps with alpha: (H, W, 3)."""
    samples = _read_deep_colour(file)
    if samples.shape[2] == 3:
        return _to_8_bit(samples)
    pixels = samples.reshape(-1, 4)
    colours = np.empty((len(pixels), 3), np.uint8)
    for start in range(0, len(pixels), 2**20):  # a part at a time: 32 bit samples are large
        part = pixels[start : start + 2**20].astype(np.uint32)
        alpha = part[:, 3:]
        blend = part[:, :3] * alpha + 65535 * (65535 - alpha)  # at most 65535**2 < 2**32
        colours[start : start + 2**20] = np.round(blend / (65535 * 257))
    return colours.reshape(*samples.shape[:2], 3)


def stored_samples(file: PictureFile, picture: PIL.Image.Image) -> Samples:
    """Give the samples as the file has them, with what they mean."""
    if file.deep_colour:
        return _deep_samples(file)
    if picture.mode in _LIKE_RGB:
        picture = picture.convert(_LIKE_RGB[picture.mode])
    if picture.mode not in _STORED_MODES:
        raise unsupported(
            f"a {file.format} file of {picture.mode} samples", "grey, palette or RGB samples"
        )
    stored = np.array(picture)
    bits, alpha = file.depth, None
    if picture.mode in ("LA", "PA", "RGBA"):
        stored, alpha = stored[..., :-1], stored[..., -1]
        stored = stored[..., 0] if stored.shape[2] == 1 else stored
    if picture.mode in ("P", "PA"):
        palette = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
        alpha = _palette_alpha(picture, stored) if alpha is None else alpha
        return Samples(
            format=file.format,
            mode="palette",
            bits=bits,
            values=stored,
            palette=palette,
            alpha=alpha,
        )
    if picture.mode.startswith("I"):
        stored = stored.astype(np.uint16, copy=False)  # from big-endian or 32 bit
        if file.format == "JPEG 2000":  # which Pillow fills up with zeros
            stored >>= 16 - bits
        if file.format == "TIFF" and file.colour == 0:  # white is zero
            stored = ~stored
    elif picture.mode == "1":
        stored, bits = stored.astype(np.uint8), 1
    elif picture.mode == "L" and file.format in ("PNG", "TIFF"):
        stored //= 255 // (2**bits - 1)  # by which Pillow multiplied
    elif file.format == "JPEG 2000" and bits > 8:
        raise unsupported(
            f"a JPEG 2000 file of {bits} bit colour samples", "8 bit samples or 16 bit grey"
        )
    elif file.format == "JPEG 2000":
        stored >>= 8 - bits
    if file.key:
        alpha = _key_alpha(stored, file.key)
    elif file.format == "GIF" and "transparency" in picture.info:
        alpha = _key_alpha(stored, (picture.info["transparency"],))
    mode: Literal["grey", "colour"] = "colour" if stored.ndim == 3 else "grey"
    return Samples(format=file.format, mode=mode, bits=bits, values=stored, alpha=alpha)


_LIKE_RGB = {"La": "LA", "RGBa": "RGBA", "YCbCr": "RGB", "RGBX": "RGB"}
_STORED_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L"}


def _key_alpha(stored: AnyArray, key: tuple[int, ...]) -> AnyArray:
    """Make the one transparent level or colour clear and everything else opaque."""
    clear = (stored.reshape(*stored.shape[:2], -1) == np.array(key)).all(axis=2)
    return np.where(clear, 0, np.iinfo(stored.dtype).max).astype(stored.dtype)


def _palette_alpha(picture: PIL.Image.Image, indices: AnyArray) -> AnyArray | None:
    """Look up the alpha of palette entries: of one clear entry, or of the first few."""
    clear = picture.info.get("transparency")
    if clear is None:
        return None
    levels = np.full(256, 255, np.uint8)
    if isinstance(clear, bytes):
        levels[: len(clear)] = np.frombuffer(clear, np.uint8)[:256]
    else:
        levels[clear] = 0
    return levels[indices]


def _deep_samples(file: PictureFile) -> Samples:
    """16 bit samples of several channels."""
    samples = _read_deep_colour(file)
    colour, alpha = samples[..., :3], samples[..., 3] if samples.shape[2] == 4 else None
    if file.format == "PNG" and file.colour == 4:  # grey and alpha
        return Samples(format="PNG", mode="grey", bits=16, values=colour[..., 0], alpha=alpha)
    return Samples(format=file.format, mode="colour", bits=16, values=colour, alpha=alpha)


def _to_8_bit(samples: AnyArray) -> AnyArray:
    """Divide 16 bit samples by 257 and round: 65535 becomes 255."""
    return cv2.convertScaleAbs(samples, alpha=1 / 257)
