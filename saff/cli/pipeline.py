"""Commands that do everything: run, demo."""

from pathlib import Path
from typing import Annotated

import typer

from saff.cli.options import (
    MINUTES,
    ConfigOption,
    GpusOption,
    ImagesOption,
    ManifestOption,
    NewOutputOption,
    PatienceOption,
    RetryOption,
    SourceArgument,
    TakeOverOption,
    TruthFormat,
    TruthFormatOption,
    WorkersOption,
    open_source,
    read_config,
    refuse_relative,
)
from saff.storage import Folder


def run(
    source: SourceArgument = None,
    images: ImagesOption = None,
    manifest: ManifestOption = None,
    output: NewOutputOption = ...,  # type: ignore[assignment]
    config: ConfigOption = "default",
    rounds: Annotated[
        int, typer.Option(min=1, help="Trainings; each learns from the masks of the one before.")
    ] = 1,
    workers: WorkersOption = None,
    gpus: GpusOption = None,
    truth: Annotated[str | None, typer.Option(help="Folder of masks to measure with.")] = None,
    truth_format: TruthFormatOption = TruthFormat.binary,
    retry_failed: RetryOption = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Once labelled, forget earlier networks and predictions."),
    ] = False,
    patience: PatienceOption = MINUTES,
    take_over: TakeOverOption = False,
) -> None:
    """Do everything: label, train a network on the labels, infer with it, measure, report.

    Killed at any point, the same command continues. Run it again for new images: they are labelled
    and inferred, the networks stay as they are; [bold]--restart[/] trains them anew, on all.
    """
    for name in (output, *([truth] if truth else [])):
        refuse_relative(name)
    chosen, images_of = read_config(config), open_source(source, images, manifest=manifest)
    from saff.cluster.pipeline import Scale, run_pipeline

    page = run_pipeline(
        images_of.name,
        images_of.rows,
        Folder.at(output),
        chosen,
        rounds=rounds,
        scale=Scale(workers=workers, gpus=gpus, patience=60 * patience, take_over=take_over),
        truth=truth,
        truth_format=truth_format.value,
        retry_failed=retry_failed,
        restart=restart,
        say=lambda line: typer.echo(line, err=True),
    )
    typer.echo(f"open {page}")


def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("demo"),
) -> None:
    """Label photographs that scikit-image carries; write masks, overlays and the report."""
    from saff.demo import run

    run(output)
