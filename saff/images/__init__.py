"""Bytes to RGB array; every refusal has a name.

A corpus of millions of files holds web pages called ``cat.jpg``, half downloads, scans with 16 bit
samples and photographs that only their EXIF tag turns upright. :func:`decode` gives the picture as
a person would see it, or an :class:`ImageError` whose ``kind`` can be counted, in four steps:

1. ``signatures.py``: the first bytes name the format; extensions are never looked at.
2. ``headers.py``, ``jpeg.py``, ``tiff.py``, ``boxes.py``, ``jpeg2000.py``: a reader for that format
   finds the announced size and the orientation before anything is decoded. It also cuts out
   comments, thumbnails, colour profiles and animation.
3. ``decoding.py``: Pillow decodes what is left. Accepted is a file with every pixel of its picture.
4. ``samples.py``: the samples become 8 bit RGB.

Where formats leave a choice: of several frames or pages the first is taken, a thumbnail never;
alpha is composited over white, because transparent pixels carry arbitrary colours; 16 bit samples
are divided by 257 and rounded, never clipped; colour profiles are ignored (CMYK is converted
without one); orientation is EXIF's, XMP's is ignored. docs/formats.md lists all decisions.

:func:`read_samples` gives the samples of a mask as they are stored. :func:`encode_png` and
:func:`decode_png` are for the maps that storage keeps: exact, 8 or 16 bit.
"""

from saff.errors import ImageError
from saff.images.decoding import decode, read, read_samples
from saff.images.file import DEFAULT_MAX_PIXELS
from saff.images.png import decode_png, encode_png
from saff.images.samples import Samples

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "ImageError",
    "Samples",
    "decode",
    "decode_png",
    "encode_png",
    "read",
    "read_samples",
]
