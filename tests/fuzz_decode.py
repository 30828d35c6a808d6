"""Look for bytes that saff.images does not answer with a picture or an ImageError.

Needs atheris, which instruments Python.  A test runs it for seconds; for longer, from the
repository, with a folder of small images to start from, into which it writes what reached new
code::

    python tests/fuzz_decode.py -max_total_time=600 -rss_limit_mb=3000 FOLDER
"""

import sys

import atheris

with atheris.instrument_imports(include=["saff.images"]):
    from saff.images import ImageError, decode, decode_png

MOST_PIXELS = 10_000


def check(data: bytes) -> None:
    for read in (decode, decode_png):
        try:
            samples = read(data, max_pixels=MOST_PIXELS)
        except ImageError:
            continue
        assert samples.shape[0] * samples.shape[1] <= MOST_PIXELS


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
