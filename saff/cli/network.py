"""Commands for networks: train, reinfer, export-network."""

from pathlib import Path
from typing import Annotated

import typer

from saff.addresses import local_path
from saff.cli.options import (
    MINUTES,
    AllowCodeOption,
    ConfigOption,
    GpusOption,
    NetworkOption,
    PartOption,
    PatienceOption,
    PrivateOption,
    RetryOption,
    SchemeOption,
    TakeOverOption,
    TrackOption,
    WorkersOption,
    access_of_run,
    open_source,
    refuse_relative,
)
from saff.config_files import read_config
from saff.errors import SettingsError
from saff.log import say
from saff.plan import Share, plan_stage
from saff.storage import Folder


def train(
    output: Annotated[str, typer.Option(help="Output of a run whose images are labelled.")],
    config: ConfigOption = "default",
    workers: WorkersOption = None,
    gpus: GpusOption = None,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart/--resume",
            help="Start the training again, or continue it from the last checkpoint.",
        ),
    ] = False,
    patience: PatienceOption = MINUTES,
    take_over: TakeOverOption = False,
    private: PrivateOption = False,
    track: TrackOption = None,
) -> None:
    """Train a segmentation network on the pseudo labels of a run.

    Run the same command again to continue from the last checkpoint. Only the section
    [bold]training[/] of the configuration is used.
    """
    refuse_relative(output)
    chosen = read_config(config).training
    folder = Folder.at(output)
    access = access_of_run(folder, private=private)
    from saff.cluster.training import train_network

    if left := plan_stage(folder).left:
        say(f"{left:,} images are not labelled yet; the network does not learn from them")
    results = train_network(
        folder,
        chosen,
        workers=workers,
        gpus=gpus,
        restart=restart,
        patience=60 * patience,
        take_over=take_over,
        access=access,
        track=track is not None,
    )
    done = f"done: {chosen.steps:,} steps, weights in {results.folder.uri}"
    say(done, "done", steps=chosen.steps)


def reinfer(
    output: Annotated[
        str, typer.Option(help="Output of a run; for new images, a new folder or s3:// prefix.")
    ],
    network: NetworkOption = None,
    images: Annotated[
        str | None, typer.Option(help="New images: a folder, a glob, an s3:// prefix or one file.")
    ] = None,
    manifest: Annotated[
        str | None,
        typer.Option(
            help="List of new images: a Parquet or CSV file with the columns image_id and uri."
        ),
    ] = None,
    config: ConfigOption = "default",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of processes; default: one per GPU, or one per CPU where there is no GPU.",
        ),
    ] = None,
    gpus: GpusOption = None,
    retry_failed: RetryOption = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget earlier predictions.")] = False,
    part: PartOption = "1/1",
    patience: PatienceOption = MINUTES,
    take_over: TakeOverOption = False,
    allow_code: AllowCodeOption = None,
    private: PrivateOption = False,
    schemes: SchemeOption = None,
) -> None:
    """Predict masks with a trained network, for the images of a run or for new ones.

    [bold]saff reinfer --output RUN[/] predicts the images that the network of RUN was trained on.
    [bold]saff reinfer --output NEW --network RUN --images IMAGES[/] predicts new images, which need
    no labels. Run the same command again to resume.
    """
    new_images = bool(images or manifest)
    if new_images != bool(network):
        raise SettingsError("new images need both --network RUN and --images or --manifest")
    for name in (output, *([network] if network else [])):
        refuse_relative(name)
    chosen, folder = read_config(config), Folder.at(output)
    if new_images:
        images_of = open_source(
            images, manifest=manifest, output=folder, private=private, schemes=schemes
        )
        access = images_of.access
    else:
        images_of, access = None, access_of_run(folder, private=private)
    from saff.cluster.predictions import prediction_job

    job = prediction_job(
        folder,
        Folder.at(network) if network else folder,
        chosen,
        source=images_of,
        access=access,
        workers=workers,
        gpus=gpus,
        restart=restart,
        share=Share.read(part),
        patience=60 * patience,
        take_over=take_over,
        allow_code=allow_code or (),
    )
    done = job.complete(retry_failed=retry_failed)
    say(f"done: {done}", "done", **done.counts)


def export_network(
    output: Annotated[str, typer.Argument(help="Output of a run whose network is trained.")],
    to: Annotated[
        Path,
        typer.Option(
            parser=local_path,
            metavar="PATH",
            help="File to write: model.onnx, or model.pt2 for torch.",
        ),
    ],
    allow_code: AllowCodeOption = None,
) -> None:
    """Convert a trained network to one file that runs without saff: ONNX, or torch's format.

    A JSON file beside it says how to prepare images. The converted file is run once, and its output
    is compared with that of the network. ONNX needs [bold]pip install 'saff[export]'[/].
    """
    from saff import network_export

    done = network_export.export_network(Folder.at(output), to, allow_code or ())
    checked = (
        "its form is checked; pip install onnxruntime to have its output compared, too"
        if done.difference is None
        else f"differs from the network by at most {done.difference:.0e}"
    )
    say(f"{done.model} and {done.description}; {checked}")
