"""Predict masks with a trained network, for the images of a run or for new ones; resumable."""

from typing import Annotated

import typer

from saff.cli import run_alone
from saff.cli.options import (
    MINUTES,
    AllowCodeOption,
    ConfigOption,
    GpusOption,
    ImagesOption,
    ManifestOption,
    NetworkOption,
    PartOption,
    PatienceOption,
    PrivateOption,
    RetryOption,
    SchemeOption,
    TakeOverOption,
    WorkersOption,
    access_of_run,
    open_source,
    refuse_relative,
)
from saff.cluster.predictions import prediction_job
from saff.config_files import read_config
from saff.errors import SettingsError
from saff.log import say
from saff.plan import Share
from saff.storage import Folder


def reinfer(
    output: Annotated[
        str, typer.Option(help="Output of a run; for new images, a new folder or s3:// prefix.")
    ],
    network: NetworkOption = None,
    images: ImagesOption = None,
    manifest: ManifestOption = None,
    config: ConfigOption = "default",
    workers: WorkersOption = None,
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
    """Predict masks with a trained network: write one row per image to Parquet files."""
    has_new_images = bool(images or manifest)
    if has_new_images != bool(network):
        raise SettingsError("new images need both --network RUN and --images or --manifest")
    for name in filter(None, (output, network)):
        refuse_relative(name)
    folder = Folder.at(output)
    if has_new_images:
        corpus = open_source(
            images, manifest=manifest, output=folder, private=private, schemes=schemes
        )
        access = corpus.access
    else:
        corpus, access = None, access_of_run(folder, private=private)

    job = prediction_job(
        folder,
        Folder.at(network) if network else folder,
        read_config(config),
        source=corpus,
        access=access,
        workers=workers,
        gpus=gpus,
        restart=restart,
        share=Share.read(part),
        patience=60 * patience,
        take_over=take_over,
        allow_code=allow_code or (),
    )
    job.claim()  # one network and one way to ask it: others are refused by name
    job.extend_manifest()  # new images, if there are any
    todo = job.plan(retry_failed=retry_failed)  # parts of the manifest without predictions
    with job.at_work():  # no other job does the same parts at the same time
        job.map(todo)  # a pool of workers, each with the network; every task writes its part
        job.tidy()  # what processes that died have left
    done = job.plan()
    say(f"done: {done}", "done", **done.counts)


if __name__ == "__main__":
    run_alone(reinfer)
