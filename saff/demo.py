"""The demonstration: real photographs that an installed package carries, through the whole job."""

import dataclasses
from pathlib import Path

import typer
from skimage import data

from saff import config, images
from saff.cluster.pipeline import run_pipeline
from saff.config import Config
from saff.errors import printable
from saff.log import say
from saff.picture_export import export_pictures
from saff.pictures import What
from saff.sources import list_images
from saff.storage import Folder

PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "motorcycle", "rocket")
STEPS = 40  # a real training takes hundreds of steps on thousands of photographs


def settings() -> Config:
    """The recommended settings with a training so short that it shows the way and no more."""
    default = config.default()
    short = dataclasses.replace(
        default.training,
        steps=STEPS,
        batch_size=4,
        warmup_steps=5,
        ema_decay=0.9,
        checkpoint_interval=20,
    )
    return dataclasses.replace(default, training=short)


def run(output: Path) -> None:
    """Label the photographs, train a network for a moment, and write pictures and the report.

    Parameters
    ----------
    output : Path
        Folder for the photographs and everything made of them; run again it resumes.
    """
    photos = output / "photos"
    write_photographs(photos)
    folder = Folder.at(str(output / "run"))
    source = Folder.at(str(photos)).uri
    page = run_pipeline(
        source, list_images(str(photos)), folder, settings(), rounds=1, say=typer.echo
    )
    drawn: tuple[What, ...] = ("mask", "overlay", "cutout")
    for what in drawn:
        for stage, home in (("pseudo_labels", output), ("predictions", output / "network")):
            to = Folder.at(str(home / what))
            summary = export_pictures(folder, to, what, stage)
            if not summary.complete:
                for line in summary.lines(to.uri):
                    say(printable(line))
    typer.echo(f"{len(PHOTOGRAPHS)} photographs. Look at")
    typer.echo(f"  {page}")
    typer.echo(f"  {output / 'overlay'}, {output / 'mask'} and {output / 'cutout'}: pseudo labels")
    typer.echo(
        f"  {output / 'network'}: by a network that saw these {len(PHOTOGRAPHS)} pictures "
        f"in {STEPS} steps: a demonstration of the way, not of the quality"
    )


def write_photographs(folder: Path) -> None:
    """Write the photographs as PNG files; files that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        path = folder / f"{name}.png"
        if not path.exists():
            source = getattr(data, "stereo_motorcycle" if name == "motorcycle" else name)()
            image = source[0] if isinstance(source, tuple) else source  # the left of the pair
            path.write_bytes(images.encode_png(image))
