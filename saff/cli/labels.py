"""Commands that label images: label, plan, manifest."""

import os
from typing import Annotated

import typer

from saff import layout
from saff.cli.options import (
    MINUTES,
    ColumnsOption,
    ConfigOption,
    ImagesOption,
    KeepOption,
    ManifestOption,
    NewOutputOption,
    PartOption,
    PatienceOption,
    PrivateOption,
    RetryOption,
    SchemeOption,
    SourceArgument,
    TakeOverOption,
    open_source,
    refuse_relative,
)
from saff.config_files import read_config
from saff.kept import check_kept
from saff.layout import PART_SUFFIX
from saff.log import say
from saff.manifests import extend_manifest
from saff.plan import Share
from saff.runs import claim_source
from saff.storage import Folder, with_brief_retries

CpusOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of CPUs that an estimate is made for; default: those of this machine."
    ),
]
CpuPriceOption = Annotated[
    float | None,
    typer.Option(min=0, help="Price of one CPU for an hour in dollars, for the cost."),
]


def label(
    source: SourceArgument = None,
    images: ImagesOption = None,
    manifest: ManifestOption = None,
    output: NewOutputOption = ...,  # type: ignore[assignment]
    config: ConfigOption = "default",
    keep: KeepOption = None,
    retry_failed: RetryOption = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Report what would be done, how long it would take and what it would cost.",
        ),
    ] = False,
    sample: Annotated[
        int,
        typer.Option(
            min=0, help="Number of images that a dry run labels to estimate time and size."
        ),
    ] = 8,
    cpus: CpusOption = None,
    cpu_price: CpuPriceOption = None,
    part: PartOption = "1/1",
    patience: PatienceOption = MINUTES,
    take_over: TakeOverOption = False,
    private: PrivateOption = False,
    schemes: SchemeOption = None,
    columns: ColumnsOption = None,
) -> None:
    """Label images: write a pseudo label for each to Parquet files.

    Submitted with [bold]ray job submit[/], it runs on that cluster; otherwise it starts Ray on this
    machine. An image that cannot be used becomes a row with an error. Run the same command again to
    resume.
    """
    refuse_relative(output)
    chosen, folder, kept = read_config(config), Folder.at(output), check_kept(keep or ())
    images_of = open_source(
        source,
        images,
        manifest=manifest,
        output=folder,
        private=private,
        schemes=schemes,
        columns=columns,
    )
    share = Share.read(part)
    from saff import cluster  # Ray takes seconds to import; a mistake above is reported at once

    if dry_run:
        lines = cluster.preview(
            images_of.name,
            images_of.rows,
            folder,
            chosen,
            retry_failed=retry_failed,
            share=share,
            sample=sample,
            cpus=cpus or os.cpu_count() or 1,
            price=cpu_price,
            access=images_of.access,
            kept=kept,
        )
        typer.echo(lines)
        return
    say(f"settings: {config} {chosen.digest()[:12]}, output: {folder.uri}")
    job = cluster.labelling_job(
        images_of,
        folder,
        chosen,
        share=share,
        patience=60 * patience,
        take_over=take_over,
        kept=kept,
    )
    done = job.complete(retry_failed=retry_failed)
    say(f"done: {done}", "done", **done.counts)
    if done.failed:
        say(f"saff report {output} shows why images failed")


def plan(
    source: SourceArgument = None,
    images: ImagesOption = None,
    manifest: ManifestOption = None,
    output: Annotated[
        str, typer.Option(help="Output that the run would have; what is done there is left out.")
    ] = ...,  # type: ignore[assignment]
    config: ConfigOption = "default",
    keep: KeepOption = None,
    sample: Annotated[
        int, typer.Option(min=1, help="Number of images that are labelled and predicted.")
    ] = 20,
    cpus: CpusOption = None,
    cpu_price: CpuPriceOption = None,
    private: PrivateOption = False,
    schemes: SchemeOption = None,
) -> None:
    """Estimate what a run will take: time, bytes read and written, and cost; nothing is written.

    Some of the images, chosen at random, are labelled and predicted on one core of this machine,
    with the network that comes with saff. A training is not in the estimate: it takes the same time
    however many images there are.
    """
    refuse_relative(output)
    chosen, folder, kept = read_config(config), Folder.at(output), check_kept(keep or ())
    images_of = open_source(
        source, images, manifest=manifest, output=folder, private=private, schemes=schemes
    )
    from saff import cluster

    lines = cluster.preview(
        images_of.name,
        images_of.rows,
        folder,
        chosen,
        sample=sample,
        cpus=cpus or os.cpu_count() or 1,
        price=cpu_price,
        access=images_of.access,
        kept=kept,
        predict=True,
    )
    typer.echo(lines)


def manifest(
    source: SourceArgument = None,
    images: ImagesOption = None,
    manifest: ManifestOption = None,
    output: NewOutputOption = ...,  # type: ignore[assignment]
    private: PrivateOption = False,
    schemes: SchemeOption = None,
    columns: ColumnsOption = None,
) -> None:
    """Take images into an output without labelling them, so that several jobs can share them.

    Afterwards [bold]saff label ... --part 1/4[/] to [bold]--part 4/4[/] label a quarter each, at
    the same time and into the same output. Run this command again to take in new images.
    """
    refuse_relative(output)
    folder = Folder.at(output)
    images_of = open_source(
        source,
        images,
        manifest=manifest,
        output=folder,
        private=private,
        schemes=schemes,
        columns=columns,
    )
    claim_source(folder, images_of.name)
    with with_brief_retries(folder.uri):
        parts = layout.manifest(folder)
        intake = extend_manifest(folder, images_of.rows)
    say(f"{intake.added:,} new images; {len(parts.names(PART_SUFFIX)):,} parts")
    for line in intake.lines():
        say(line)
