"""Commands that give people something to look at: segment, export, report."""

import os
from pathlib import Path
from typing import Annotated

import typer

from saff import overwriting, picture_export
from saff.cli.options import ConfigOption, NetworkOption, Output, StageOption, What, read_config
from saff.errors import SettingsError, printable
from saff.layout import Stage
from saff.report.stored import write_report
from saff.storage import Folder


def segment(
    image: Annotated[str, typer.Argument(help="A picture; - reads standard input.")],
    to: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="File to write: .png, .tiff or .webp, or .jpg for an overlay; - writes PNG to "
            "standard output.",
        ),
    ],
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

    file_format = picture_export.check_target(to, image, what.value)
    chosen = read_config(config)
    try:
        pixels = images.decode(picture_export.read_photograph(image), max_pixels=chosen.max_pixels)
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
    picture_export.save_picture(to, what.value, confidence, pixels, file_format)


def export(
    output: Output,
    to: Annotated[str, typer.Option(help="Folder or s3:// prefix for the PNG files.")],
    what: Annotated[What, typer.Option(help="What to draw.")] = What.mask,
    stage: StageOption = Stage.PSEUDO_LABELS,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of an earlier export.")
    ] = False,
) -> None:
    """Write results as PNG files named like the images, in their size; masks are 0 and 255.

    Nothing that the run was made from is written over. Exit code 1 if a file could not be written
    or a photograph could not be reached; the others are written.
    """
    run, folder = Folder.at(output), Folder.at(to)
    summary = picture_export.export_pictures(
        run, folder, what.value, stage.value, overwrite=overwrite
    )
    if overwriting.is_among_images(run, folder.uri):
        note = f"note: {folder.uri} lies among the images; saff label would label its files, too"
        typer.echo(printable(note), err=True)
    for line in summary.lines(folder.uri):
        typer.echo(printable(line), err=True)
    if not summary.complete:
        raise typer.Exit(1)


def report(
    output: Output,
    cards: Annotated[int, typer.Option(min=1, help="Images to draw at most.")] = 200,
    to: Annotated[
        str | None,
        typer.Option(help="File .html, or folder or s3:// prefix, to write to instead."),
    ] = None,
) -> None:
    """Write OUTPUT/report/index.html: a page that opens from disk.

    Images whose photographs have changed or vanished are left out and counted.
    """
    report = write_report(Folder.at(output), to=to, max_cards=cards)
    typer.echo(f"open {report.uri}")
    if report.lost_photographs:
        typer.echo(f"not shown: {report.lost_photographs}", err=True)


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
