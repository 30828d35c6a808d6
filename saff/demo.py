"""The demonstration: real photographs that an installed package carries, through the whole job."""

from pathlib import Path

import typer
from skimage import data

from saff import config, images, results
from saff.cluster import label_corpus
from saff.storage import Folder, list_images

PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "motorcycle", "rocket")


def run(output: Path) -> None:
    """Label the photographs and write masks, overlays and the report.

    Parameters
    ----------
    output : Path
        Folder for the photographs and everything made of them; run again it resumes.
    """
    photos = output / "photos"
    write_photographs(photos)
    folder = Folder.at(str(output / "run"))
    done = label_corpus(
        Folder.at(str(photos)).uri, list_images(str(photos)), folder, config.default()
    )
    for what in ("mask", "overlay", "cutout"):
        results.export(folder, output / what, what)
    page = results.write_report(folder)
    typer.echo(f"{done.done} photographs labelled. Look at")
    typer.echo(f"  {page}")
    typer.echo(f"  {output / 'overlay'}, {output / 'mask'} and {output / 'cutout'}")


def write_photographs(folder: Path) -> None:
    """Write the photographs as PNG files, those that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        path = folder / f"{name}.png"
        if not path.exists():
            source = getattr(data, "stereo_motorcycle" if name == "motorcycle" else name)()
            image = source[0] if isinstance(source, tuple) else source  # the left of the pair
            path.write_bytes(images.encode_png(image))
