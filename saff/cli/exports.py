"""Command that takes results out of a run: export."""

from typing import Annotated

import typer

from saff import overwriting, picture_export
from saff.access import Access
from saff.cli.options import (
    MattingOption,
    Output,
    PrivateOption,
    StageOption,
    ThresholdOption,
    What,
)
from saff.errors import SettingsError, printable
from saff.exports import PICTURES, FileFormat
from saff.exports.results import Settings
from saff.exports.run import Export, export_here
from saff.layout import Stage
from saff.log import say
from saff.marks import Only
from saff.picture_export import ExportSummary
from saff.plan import plan_stage
from saff.storage import Folder

ToOption = Annotated[str, typer.Option(help="Folder or s3:// prefix to write to.")]
FormatOption = Annotated[
    FileFormat,
    typer.Option(
        "--format",
        help="Files to write. png: a picture for each image; coco, yolo, label-studio, cvat: "
        "annotations; hugging-face, webdataset: photographs and masks as a data set.",
    ),
]
WhatOption = Annotated[
    What | None, typer.Option(help="Kind of picture to write as PNG; default: mask.")
]
SmallestOption = Annotated[
    int,
    typer.Option(
        "--smallest",
        min=1,
        help="Pixels of the smallest connected piece of foreground that becomes an object of an "
        "annotation file.",
    ),
]
UrlPrefixOption = Annotated[
    str,
    typer.Option(
        "--url-prefix",
        help="Text before an image's id where a file names photographs by their address; default: "
        "the address that the run has read.",
    ),
]
OnlyOption = Annotated[
    Only,
    typer.Option(
        help="Images to export, by the marks that saff review has taken in: all, accepted, or "
        "not-rejected."
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the files of an earlier export.")
]


def export(
    output: Output,
    to: ToOption,
    form: FormatOption = FileFormat.png,
    what: WhatOption = None,
    stage: StageOption = Stage.PSEUDO_LABELS,
    threshold: ThresholdOption = 0.5,
    matting: MattingOption = False,
    smallest: SmallestOption = 1,
    url_prefix: UrlPrefixOption = "",
    only: OnlyOption = Only.ALL,
    overwrite: OverwriteOption = False,
    private: PrivateOption = False,
) -> None:
    """Write results as PNG files, annotations or data sets of other tools; masks are 0 and 255.

    Photographs of the run are never written over. The exit code is 1 if a file could not be written
    or a photograph could not be read; the other files are written.
    """
    export = open_export(
        output,
        to,
        form,
        what,
        stage=stage,
        threshold=threshold,
        matting=matting,
        smallest=smallest,
        url_prefix=url_prefix,
        only=only,
        overwrite=overwrite,
        private=private,
    )
    if form is FileFormat.png:
        summary = picture_export.export_pictures(
            export.output,
            export.to,
            (what or What.mask).value,
            stage.value,
            overwrite=overwrite,
            threshold=threshold,
            matting=matting,
            only=only,
            access=export.access,
        )
        report_export(export, summary)
        return
    once = export_here(export)
    report_export(export, export.summary(), once)


def open_export(
    output: str,
    to: str,
    form: FileFormat,
    what: What | None,
    *,
    stage: Stage,
    threshold: float,
    matting: bool,
    smallest: int,
    url_prefix: str,
    only: Only,
    overwrite: bool,
    private: bool,
) -> Export:
    """Put the options of an export together.

    Raises
    ------
    SettingsError
        If an option belongs to another format.
    """
    is_png = form is FileFormat.png
    if not is_png and (what or matting):
        raise SettingsError(
            f"--what and --matting choose a picture, and --format {form.value} writes none; leave "
            "them out, or name --format png"
        )
    if is_png and (smallest != 1 or url_prefix):
        raise SettingsError(
            "--smallest and --url-prefix are of annotation files, and --format png writes "
            "pictures; leave them out, or name another format"
        )
    return Export(
        output=Folder.at(output),
        to=Folder.at(to),
        format=(what or What.mask).value if is_png else form.value,
        stage=stage.value,
        settings=Settings(threshold, smallest, url_prefix),
        matting=matting,
        only=only,
        overwrite=overwrite,
        access=Access(private=private),
    )


def report_export(export: Export, summary: ExportSummary, once: list[str] | None = None) -> None:
    """Print what an export has written and left out; the exit code is 1 where files are missing."""
    if overwriting.is_among_images(export.output, export.to.uri):
        note = f"note: {export.to.uri} lies among the images; saff label would label its files, too"
        say(printable(note))
    noun = "file" if export.format in PICTURES else "image"
    for line in summary.lines(export.to.uri, noun):
        say(printable(line))
    if left := plan_stage(export.output, export.stage).left:
        say(f"{left:,} images of the run have no result yet and are not exported")
    for name in once or ():
        typer.echo(printable(f"{export.to.uri}/{name}"))
    if not summary.complete:
        raise typer.Exit(1)
