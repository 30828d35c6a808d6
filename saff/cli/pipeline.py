"""Commands that run all stages: run, demo."""

from pathlib import Path
from typing import Annotated

import typer

from saff.addresses import local_path
from saff.cli.options import (
    MINUTES,
    ConfigOption,
    GpusOption,
    ImagesOption,
    ManifestOption,
    NewOutputOption,
    PatienceOption,
    PrivateOption,
    RetryOption,
    SchemeOption,
    SourceArgument,
    TakeOverOption,
    TrackOption,
    TruthFormat,
    TruthFormatOption,
    WorkersOption,
    open_source,
    refuse_relative,
)
from saff.config_files import read_config
from saff.log import say
from saff.storage import Folder


def run(
    source: SourceArgument = None,
    images: ImagesOption = None,
    manifest: ManifestOption = None,
    output: NewOutputOption = ...,  # type: ignore[assignment]
    config: ConfigOption = "default",
    rounds: Annotated[
        int,
        typer.Option(
            min=1, help="Number of trainings; each learns from the masks of the network before it."
        ),
    ] = 1,
    workers: WorkersOption = None,
    gpus: GpusOption = None,
    truth: Annotated[
        str | None, typer.Option(help="Folder of true masks to measure the results with.")
    ] = None,
    truth_format: TruthFormatOption = TruthFormat.binary,
    retry_failed: RetryOption = False,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Forget earlier networks and predictions once all images are labelled.",
        ),
    ] = False,
    patience: PatienceOption = MINUTES,
    take_over: TakeOverOption = False,
    private: PrivateOption = False,
    schemes: SchemeOption = None,
    track: TrackOption = None,
) -> None:
    """Run all stages: label, train a network on the labels, predict with it, measure, report.

    Run the same command again to resume, wherever it was interrupted, or to add new images: these
    are labelled and predicted, and the networks stay as they are. [bold]--restart[/] trains the
    networks again, on all images.
    """
    for name in (output, *([truth] if truth else [])):
        refuse_relative(name)
    chosen, folder = read_config(config), Folder.at(output)
    images_of = open_source(
        source, images, manifest=manifest, output=folder, private=private, schemes=schemes
    )
    from saff.cluster.pipeline import Scale, run_pipeline

    page = run_pipeline(
        images_of.name,
        images_of.rows,
        folder,
        chosen,
        rounds=rounds,
        scale=Scale(workers=workers, gpus=gpus, patience=60 * patience, take_over=take_over),
        truth=truth,
        truth_format=truth_format.value,
        retry_failed=retry_failed,
        restart=restart,
        access=images_of.access,
        say=say,
        track=track is not None,
    )
    typer.echo(f"open {page}")


def demo(
    output: Annotated[
        Path, typer.Option(parser=local_path, metavar="PATH", help="Folder to write everything to.")
    ] = Path("demo"),
) -> None:
    """Label the photographs that come with scikit-image; write masks, overlays and the report."""
    from saff.demo import run

    run(output)
