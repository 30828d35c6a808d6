"""Draw docs/images/demo.png from the folder that ``saff demo --output demo`` writes.

python docs/images/make_demo.py demo
"""

import sys
from pathlib import Path

from PIL import Image

NAMES = ("astronaut", "coffee", "chelsea", "motorcycle", "camera", "rocket")
HEIGHT = 160  # pixels of a cell
GAP = 6
COLOURS = 255  # one of the 256 of a palette is kept for the gaps


def cells(demo: Path, name: str) -> list[Image.Image]:
    """Photo, overlay and cut-out on white, in that order."""
    cutout = Image.open(demo / "cutout" / f"{name}.png")
    white = Image.new("RGB", cutout.size, "white")
    white.paste(cutout, mask=cutout.getchannel("A"))
    photo = Image.open(demo / "photos" / f"{name}.png").convert("RGB")
    overlay = Image.open(demo / "overlay" / f"{name}.png").convert("RGB")
    width = round(HEIGHT * photo.width / photo.height)
    return [p.resize((width, HEIGHT), Image.Resampling.LANCZOS) for p in (photo, overlay, white)]


def main(demo: Path, to: Path) -> None:
    """Draw one column per photograph; gaps are transparent, for light and dark pages."""
    columns = [cells(demo, name) for name in NAMES]
    width = sum(column[0].width for column in columns) + GAP * (len(columns) - 1)
    size = (width, 3 * HEIGHT + 2 * GAP)
    sheet, covered = Image.new("RGB", size), Image.new("L", size)
    left = 0
    for column in columns:
        for row, cell in enumerate(column):
            corner = (left, row * (HEIGHT + GAP))
            sheet.paste(cell, corner)
            covered.paste(255, (*corner, corner[0] + cell.width, corner[1] + cell.height))
        left += column[0].width + GAP
    palette = sheet.quantize(COLOURS)  # a second call dithers; the first would not
    drawn = sheet.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    drawn.paste(COLOURS, mask=covered.point(lambda value: 255 - value))
    drawn.save(to, optimize=True, transparency=COLOURS)
    print(f"{to}: {size[0]} x {size[1]} pixels, {to.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).with_name("demo.png"))
