"""The first bytes name the format; extensions are never looked at."""

import re

from saff.errors import ImageError
from saff.images.boxes import read_brands

EXPECTED = "expected JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, JPEG 2000 or HEIC data"

READ = {
    b"\xff\xd8": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"BM": "BMP",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",  # without a container
}
PICTURES = {
    b"MM\0+": "a big-endian BigTIFF file",  # Pillow takes its offsets for 32 bit
    b"IIRO": "an Olympus ORF camera raw file",
    b"IIRS": "an Olympus ORF camera raw file",
    b"MMOR": "an Olympus ORF camera raw file",
    b"IIU\0": "a Panasonic RW2 camera raw file",
    b"II\x1a\0\0\0HEAPCCDR": "a Canon CRW camera raw file",
    b"FUJIFILMCCD-RAW": "a Fujifilm RAF camera raw file",
    b"FOVb": "a Sigma X3F camera raw file",
    b"\0MRM": "a Minolta MRW camera raw file",
    b"II\xbc": "a JPEG XR file",
    b"8BPS": "a Photoshop document",
    b"gimp xcf": "a GIMP XCF document",
    b"%PDF": "a PDF document",
    b"%!PS": "a PostScript document",
    b"\xc5\xd0\xd3\xc6": "a PostScript document",
    b"AT&TFORM": "a DjVu document",
    b"\0\0\1\0": "an icon file",
    b"\0\0\2\0": "a cursor file",
    b"icns": "an icon file",
    b"\0\0\0\x0cJXL ": "a JPEG XL file",
    b"\xff\x0a": "a JPEG XL file",
    b"\x76\x2f\x31\x01": "an OpenEXR file",
    b"#?RADIANCE": "a Radiance HDR file",
    b"#?RGBE": "a Radiance HDR file",
    b"DDS ": "a DirectDraw surface",
    b"qoif": "a QOI file",
    b"BPG\xfb": "a BPG file",
    b"FLIF": "a FLIF file",
    b"\x01\xda": "an SGI file",
    b"\x59\xa6\x6a\x95": "a Sun raster file",
    b"\x97JB2\r\n\x1a\n": "a JBIG2 file",
    b"\x8aMNG\r\n\x1a\n": "an MNG animation",
    b"\x8bJNG\r\n\x1a\n": "a JNG file",
    b"\xd7\xcd\xc6\x9a": "a Windows metafile",
    b"SIMPLE  =": "a FITS file",
    b"/* XPM */": "an XPM file",
    b"PF\n": "a PFM file",
    b"Pf\n": "a PFM file",
    b"\x1aE\xdf\xa3": "a Matroska or WebM video",
    b"FLV\1": "a Flash video",
    b"0&\xb2u\x8ef\xcf\x11": "a Windows Media video",
    b"\0\0\1\xba": "an MPEG video",
    b"\0\0\1\xb3": "an MPEG video",
}
"""Pictures, or films, that are not read."""
NO_PICTURES = {
    b"PK\3\4": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\0": "an XZ archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"\x7fELF": "a program",
    b"PAR1": "a Parquet file",
    b"SQLite format 3\0": "an SQLite database",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"ID3": "an audio file",
    b"fLaC": "an audio file",
    b"version https://git-lfs": "the pointer that Git LFS puts in a file's place",
    b"OggS": "an Ogg audio or video file",
}
_RIFF = {b"AVI ": ("unsupported", "an AVI video"), b"WAVE": ("not_an_image", "an audio file")}
_NETPBM = re.compile(rb"P([1-6])\s+(#[^\n]*\n\s*)*\d+\s+\d+|P7\s+(#[^\n]*\n\s*)*WIDTH\s")
_QUICKTIME = (b"moov", b"mdat", b"wide")
"""First boxes of films that were written before files named their brand."""


def name_format(data: bytes) -> str:
    """Name the format of a file that is read.

    Parameters
    ----------
    data : bytes
        The file, or as much of it as is at hand.

    Returns
    -------
    name : str
        ``JPEG``, ``PNG``, ``WebP``, ``BMP``, ``TIFF``, ``GIF``, ``AVIF``, ``JPEG 2000`` or
        ``HEIC``.

    Raises
    ------
    ImageError
        ``empty``, ``unsupported`` or ``not_an_image``, and in words what it is.
    """
    if not data:
        raise ImageError("empty", f"image is empty: 0 bytes; {EXPECTED}")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    for signature, name in READ.items():
        if data.startswith(signature) and not (name == "BMP" and data[15:18].strip(b"\0")):
            return name  # a BMP's header has fewer than 256 bytes; other text may start with BM
    brands = read_brands(data)
    if brands & _AVIF:
        return "AVIF"
    if brands & _HEIF and b"crx " not in brands:
        return "HEIC"
    kind, what = describe(data)
    raise ImageError(kind, f"image is {what}; {EXPECTED}")


_AVIF = {b"avif", b"avis"}
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_HEIF |= {b"heif", b"mif1", b"mif2", b"msf1"}
_AUDIO_BRANDS = {b"M4A ", b"M4B ", b"M4P "}


def describe(data: bytes) -> tuple[str, str]:
    """Say in words what bytes that are no image, or none that is read, are."""
    if _is_tga(data):
        return "unsupported", "a TGA file"
    for signature, what in PICTURES.items():
        if data.startswith(signature):
            return "unsupported", what
    for signature, what in NO_PICTURES.items():
        if data.startswith(signature):
            return "not_an_image", what
    if brands := read_brands(data):
        return _describe_film(data[8:12], brands)
    if data[4:8] in _QUICKTIME:
        return "unsupported", "a QuickTime video"
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12], ("not_an_image", "a RIFF file of no known content"))
    if data[128:132] == b"DICM":
        return "unsupported", "a DICOM file"
    if data[257:262] == b"ustar":
        return "not_an_image", "a tar archive"
    if data[40:44] == b" EMF" and data[:4] == b"\1\0\0\0":
        return "unsupported", "a Windows metafile"
    if data[:1] == b"G" and data[188:189] == b"G" and data[376:377] == b"G":
        return "unsupported", "an MPEG video"
    if _NETPBM.match(data[:1024]):
        return "unsupported", "a PBM, PGM or PPM file"
    if data[:1] == b"\x0a" and data[1:2] in b"\0\2\3\4\5" and data[2:3] == b"\1":
        return "unsupported", "a PCX file"
    return _describe_text(data)


def _is_tga(data: bytes) -> bool:
    """Look for the signature at the end, or for a header of which each byte is plausible."""
    if data[-18:-2] == b"TRUEVISION-XFILE":
        return True
    head = data[:18]
    plain = head[1:8] in {bytes([0, kind, 0, 0, 0, 0, 0]) for kind in (2, 3, 10, 11)}
    return plain and len(head) == 18 and head[16] in (8, 15, 16, 24, 32) and any(head[12:16])


def _describe_film(major: bytes, brands: set[bytes]) -> tuple[str, str]:
    if b"crx " in brands:
        return "unsupported", "a Canon CR3 camera raw file"
    if b"qt  " in brands:
        return "unsupported", "a QuickTime video"
    if major in _AUDIO_BRANDS:
        return "not_an_image", "an audio file"
    return "unsupported", "an MP4 video"


def _describe_text(data: bytes) -> tuple[str, str]:
    head = data[:65536]
    if not head[:1024].strip(b"\0"):
        return "not_an_image", "zeros"
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if head.startswith(mark):
            head = head[2:].decode(encoding, "replace").encode()
    if any(byte < 32 and byte not in b"\t\n\f\r\x1b" for byte in head[:1024]):
        return "not_an_image", "data of no known format"
    lower = head.lower()
    marked = lower.lstrip(_BLANK).startswith(b"<")  # a drawing may begin with long comments
    drawing = lower.find(b"<svg", 0, None if marked else 1024)
    page = re.search(rb"<!doctype html|<html", lower[:1024])
    if page and not 0 <= drawing < page.start():
        return "not_an_image", "an HTML page"
    if drawing >= 0:
        return "unsupported", "an SVG drawing"
    if lower.lstrip(_BLANK).startswith(b"<?xml"):
        return "not_an_image", "an XML document"
    if re.match(rb"\s*(/\*.*?\*/\s*)?#define\s+\w+_width\s", head[:1024], re.DOTALL):
        return "unsupported", "an XBM file"
    return "not_an_image", "text"


_BLANK = b" \t\r\n\xef\xbb\xbf"
