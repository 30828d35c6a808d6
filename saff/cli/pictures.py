"""Commands that give people something to look at: segment, report."""

import os
from collections.abc import Collection
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saff import picture_export
from saff.access import Access
from saff.addresses import expand_home, local_path
from saff.cli.options import (
    AllowCodeOption,
    ConfigOption,
    MattingOption,
    NetworkOption,
    Output,
    PrivateOption,
    ThresholdOption,
    What,
)
from saff.config_files import read_config
from saff.errors import SettingsError, printable
from saff.log import say
from saff.storage import Folder

if TYPE_CHECKING:  # torch takes seconds to import
    from saff.network import Network


class Method(str, Enum):
    """How one picture is segmented."""

    network = "network"
    label = "label"


def segment(
    image: Annotated[str, typer.Argument(help="Path or URI of a picture; - reads standard input.")],
    to: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="File to write: .png, .tiff or .webp, for an overlay also .jpg; - writes PNG to "
            "standard output.",
        ),
    ],
    what: Annotated[What, typer.Option(help="Kind of picture to write.")] = What.mask,
    network: NetworkOption = None,
    method: Annotated[
        Method,
        typer.Option(help="Use a trained network, or label the picture as saff label does."),
    ] = Method.network,
    threshold: ThresholdOption = 0.5,
    matting: MattingOption = False,
    config: ConfigOption = "default",
    allow_code: AllowCodeOption = None,
) -> None:
    """Segment one picture: its mask, confidence, overlay or cut-out.

    The network that comes with saff does it, or the one of a run with [bold]--network RUN[/],
    averaged with what the picture says by itself.
    """
    from saff import images
    from saff.quality import to_levels

    if network and method is Method.label:
        raise SettingsError(
            "--network names a network, and --method label uses none; leave one of them out"
        )
    to = to if to == picture_export.STANDARD else str(local_path(to))
    image = expand_home(image)
    file_format = picture_export.check_target(to, image, what.value)
    if matting:
        picture_export.check_matting(what.value)
    chosen = read_config(config)
    try:
        pixels = images.decode(picture_export.read_photograph(image), max_pixels=chosen.max_pixels)
    except (OSError, images.ImageError) as error:
        raise SettingsError(f"{image}: {error}") from error
    if method is Method.label:
        from saff.labeling import label_image

        confidence, found = label_image(pixels, chosen).confidence, True
    else:
        from saff.fused_prediction import models_beside, predict_fused

        trained = _load_network(network, allow_code or ())
        ((confidence, found),) = predict_fused(trained, [pixels], chosen, models_beside(chosen))
    levels = to_levels(confidence)
    as_wanted = picture_export.save_picture(
        to,
        what.value,
        levels,
        pixels,
        file_format,
        threshold=threshold,
        foreground_found=found,
        matting=matting,
    )
    if not as_wanted:
        say(printable(f"{image}: {picture_export.NOT_MATTED}"))
    if not found:
        say(printable(f"{image}: no foreground found; the mask is empty"))


def _load_network(run: str | None, allow_code: Collection[str]) -> "Network":
    """Network of a run, or the one that comes with saff: fewer imports, for it is used most."""
    if run:
        from saff.trained import load_trained

        return load_trained(Folder.at(run), allow_code).network
    from saff.network.shipped import load_shipped

    return load_shipped().network


def report(
    output: Output,
    cards: Annotated[int, typer.Option(min=1, help="Largest number of images to show.")] = 200,
    to: Annotated[
        str | None,
        typer.Option(
            help="HTML file, folder or s3:// prefix to write to instead of OUTPUT/report."
        ),
    ] = None,
    private: PrivateOption = False,
) -> None:
    """Write OUTPUT/report/index.html: a page of results that a browser opens from disk.

    Images whose photographs have changed or vanished are left out and counted.
    """
    from saff.report.stored import write_report  # with plots: more than one picture needs

    report = write_report(Folder.at(output), to=to, max_cards=cards, access=Access(private=private))
    typer.echo(f"open {report.uri}")
    if report.lost_photographs:
        say(f"not shown: {report.lost_photographs}")


def save(path: Path, data: bytes) -> None:
    """Write a file that a person named."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error}") from error


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written, before the work that it is for."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise SettingsError(f"cannot write {path}: name a file in a folder that exists")
