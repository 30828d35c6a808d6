"""Train a segmentation network on the pseudo labels of a run, on Ray Train; resumable."""

from typing import Annotated

import typer

from saff.cli import run_alone
from saff.cli.options import (
    MINUTES,
    ConfigOption,
    GpusOption,
    PatienceOption,
    PrivateOption,
    TakeOverOption,
    TrackOption,
    WorkersOption,
    access_of_run,
    refuse_relative,
)
from saff.cluster.training import train_network
from saff.config_files import read_config
from saff.layout import Stage
from saff.log import say
from saff.plan import plan_stage
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
    """Train a network on pseudo labels; write checkpoints and weights to OUTPUT/network."""
    refuse_relative(output)
    folder, settings = Folder.at(output), read_config(config).training
    access = access_of_run(folder, private=private)  # the folder is the output of a run
    labels = plan_stage(folder, Stage.PSEUDO_LABELS)  # what there is to learn from
    if labels.left:
        say(f"{labels.left:,} images are not labelled yet; the network does not learn from them")
    results = train_network(  # from the newest checkpoint to the last step
        folder,
        settings,
        workers=workers,
        gpus=gpus,
        restart=restart,
        patience=60 * patience,
        take_over=take_over,
        access=access,
        track=track is not None,
    )
    done = f"done: {settings.steps:,} steps, weights in {results.folder.uri}"
    say(done, "done", steps=settings.steps)


if __name__ == "__main__":
    run_alone(train)
