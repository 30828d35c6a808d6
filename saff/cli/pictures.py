"""Commands that give people something to look at: segment, export, report."""

import os
from pathlib import Path
from typing import Annotated

import typer

from saff import results
from saff.cli.options import ConfigOption, NetworkOption, Output, StageOption, What, read_config
from saff.errors import SettingsError
from saff.layout import Stage
from saff.storage import Folder


def segment(
    image: Annotated[Path, typer.Argument(help="A picture.")],
    to: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")],
    what: Annotated[What, typer.Option(help="What to draw.")] = What.mask,
    network: NetworkOption = None,
    config: ConfigOption = "default",
) -> None:
    """Segment one picture: its mask, confidence, overlay or cut-out.

    With [bold]--network RUN[/] by the network that was trained there, otherwise by itself.
    """
    import numpy as np

    from saff import images
    from saff.labeling import label_image

    chosen = read_config(config)
    try:
        pixels = images.read(image, max_pixels=chosen.max_pixels)
    except (OSError, images.ImageError) as error:
        raise SettingsError(f"{image}: {error}") from error
    if network:
        from saff.inference import predict
        from saff.trained import load_trained

        trained = load_trained(Folder.at(network))
        found = predict(trained.network, pixels, chosen.inference)
    else:
        found = label_image(pixels, chosen).confidence
    confidence = np.rint(found * 255).astype(np.uint8)
    drawn = results.picture(what.value, confidence, pixels)
    save(to, results.to_png(drawn))


def export(
    output: Output,
    to: Annotated[Path, typer.Option(help="Folder for the PNG files.")],
    what: Annotated[What, typer.Option(help="What to draw.")] = What.mask,
    stage: StageOption = Stage.PSEUDO_LABELS,
) -> None:
    """Write results as PNG files named like the images, in their size; masks are 0 and 255."""
    written, left_out = results.export(Folder.at(output), to, what.value, stage.value)
    typer.echo(f"{written:,} files in {to}; {left_out:,} images left out", err=True)


def report(
    output: Output,
    cards: Annotated[int, typer.Option(min=1, help="Images to draw at most.")] = 200,
) -> None:
    """Write OUTPUT/report/index.html: a page that opens from disk."""
    typer.echo(f"open {results.write_report(Folder.at(output), max_cards=cards)}")


def save(path: Path, data: bytes) -> None:
    """Write a file that a person named."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error}") from error


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written, before the work that it is for."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise SettingsError(f"cannot write {path}: name a file in a folder that is there")
