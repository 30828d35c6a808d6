"""Commands that fit the models that saff ships, and make the paper's tables; jobs only."""

from pathlib import Path
from typing import Annotated

import typer

from saff.addresses import local_path
from saff.cli.options import (
    ConfigOption,
    GpusOption,
    TruthFormat,
    TruthFormatOption,
    WorkersOption,
    refuse_relative,
)
from saff.cli.pictures import check_writable, save
from saff.config_files import read_config
from saff.errors import SettingsError
from saff.log import say
from saff.sources import list_images
from saff.storage import Folder


def tables(
    voc: Annotated[
        Path,
        typer.Option(
            parser=local_path, metavar="PATH", help="Folder VOCdevkit/VOC2012 of the data set."
        ),
    ],
    output: Annotated[
        str, typer.Option(help="Folder or s3:// prefix to write runs, tables and figures to.")
    ],
    config: ConfigOption = "paper",
    workers: WorkersOption = None,
    gpus: GpusOption = None,
) -> None:
    """Run every row of the paper's tables; write tables.md, figure2.svg and figure3.png.

    The configuration says which network is trained and how. Run the same command again to resume.
    """
    refuse_relative(str(voc))
    refuse_relative(output)
    chosen = read_config(config)
    from saff.cluster.pipeline import Scale
    from saff.cluster.tables import make_tables

    page = make_tables(
        voc,
        Folder.at(output),
        chosen,
        scale=Scale(workers=workers, gpus=gpus),
        say=say,
    )
    typer.echo(f"open {page}")


def fit_saliency(
    images: Annotated[str, typer.Option(help="Images: a folder, a glob or an s3:// prefix.")],
    truth: Annotated[str, typer.Option(help="Folder of true masks, named like the images.")],
    output: Annotated[
        Path,
        typer.Option(
            parser=local_path, metavar="PATH", help="Model file to write: saliency.safetensors."
        ),
    ],
    truth_format: TruthFormatOption = TruthFormat.binary,
    folds: Annotated[int, typer.Option(min=2, help="Number of folds of the cross-validation.")] = 5,
    trees: Annotated[int, typer.Option(min=1, help="Number of boosted trees.")] = 250,
) -> None:
    """Fit the regressor of saliency "drfi" to images with masks, as drfi:FILE."""
    check_writable(output)
    from saff.cluster.fitting import fit_saliency as fit
    from saff.saliency.fitting import Boosting

    fitted = fit(
        list(list_images(images)), truth, truth_format.value, Boosting(trees=trees), folds=folds
    )
    save(output, fitted.data)
    for reason in fitted.left_out:
        say(f"left out: {reason}")
    summary = fitted.summary
    typer.echo(f"max F mean_pr {summary['mean_pr']['max_f']:.4f}, {folds}-fold cross-validated")
    typer.echo(f"IoU {summary['iou']:.4f}, MAE {summary['mae']:.4f}, {summary['images']:,} images")


def fit_edges(
    images: Annotated[str, typer.Option(help="Images: a folder, a glob or an s3:// prefix.")],
    boundaries: Annotated[
        str, typer.Option(help="Folder of .mat (BSDS500) or .png files named like the images.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            parser=local_path, metavar="PATH", help="Model file to write: edges.safetensors."
        ),
    ],
    validation_images: Annotated[
        str | None, typer.Option(help="Images to measure the fitted network on.")
    ] = None,
    validation_boundaries: Annotated[
        str | None, typer.Option(help="Boundaries of the images to measure on.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps of the training.")] = 900,
) -> None:
    """Fit the network of edges "learned" to boundaries that people drew, as learned:FILE."""
    if bool(validation_images) != bool(validation_boundaries):
        raise SettingsError("name both --validation-images and --validation-boundaries, or none")
    from saff.cluster import fitting
    from saff.edges import load as load_edges
    from saff.edges.fitting import EdgeFitting

    check_writable(output)
    rows = list(list_images(images))
    unseen = list(list_images(validation_images)) if validation_images else []
    save(output, fitting.fit_edges(rows, boundaries, EdgeFitting(steps=steps)))
    if validation_boundaries:
        fitted = load_edges(f"learned:{output.absolute()}")
        scores = fitting.measure_edges(fitted, unseen, validation_boundaries)
        typer.echo(f"ODS {scores.ods:.4f} at {scores.threshold:.2f}, OIS {scores.ois:.4f}")
