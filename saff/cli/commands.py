"""The commands by name: each is imported when it is called, and not for the list of all."""

from importlib import import_module
from typing import Any, NamedTuple, cast

import typer
from typer.core import TyperCommand, TyperGroup

from saff import log


class Place(NamedTuple):
    """Where a command is, and the first line of its help."""

    module: str
    summary: str


COMMANDS = {
    "label": Place("labels", "Label images: write a pseudo label for each to Parquet files."),
    "plan": Place(
        "labels",
        "Estimate what a run will take: time, bytes read and written, and cost; nothing is "
        "written.",
    ),
    "manifest": Place(
        "labels",
        "Take images into an output without labelling them, so that several jobs can share them.",
    ),
    "run": Place(
        "pipeline",
        "Run all stages: label, train a network on the labels, predict with it, measure, report.",
    ),
    "train": Place("network", "Train a segmentation network on the pseudo labels of a run."),
    "reinfer": Place(
        "network", "Predict masks with a trained network, for the images of a run or for new ones."
    ),
    "segment": Place("pictures", "Segment one picture: its mask, confidence, overlay or cut-out."),
    "serve": Place(
        "serving", "Answer with masks over HTTP, and to a browser with a page for photographs."
    ),
    "export": Place(
        "exports",
        "Write results as PNG files, annotations or data sets of other tools; masks are 0 and 255.",
    ),
    "export-network": Place(
        "network",
        "Convert a trained network to one file that runs without saff: ONNX, or torch's format.",
    ),
    "evaluate": Place(
        "checks",
        "Measure results with true masks: max F in three conventions, IoU, MAE and more, "
        "P-R curve.",
    ),
    "verify": Place("checks", "Prove that an output is whole, or that two outputs hold the same."),
    "report": Place(
        "pictures",
        "Write OUTPUT/report/index.html: a page of results that a browser opens from disk.",
    ),
    "review": Place(
        "review",
        "Rank all images, the least trustworthy first, and take in what you accept or reject.",
    ),
    "doctor": Place(
        "checks",
        "Check what a run needs, on every node: versions, storage, models, threads, GPUs and more.",
    ),
    "demo": Place(
        "pipeline",
        "Label the photographs that come with scikit-image; write masks, overlays and the report.",
    ),
}


class Command(TyperCommand):
    """A command that says in its log what it is and which run it works on."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        command, output = str(ctx.info_name).removesuffix(".py"), ctx.params.get("output")
        if output and log.structured():
            from saff.storage import Folder  # takes a while, and only lines of this kind need it

            output = Folder.at(str(output)).uri
        log.begin(command, output)
        return super().invoke(ctx)


class Commands(TyperGroup):
    """All commands of the program."""

    lists_names = False
    """Whether names and summaries are enough: while the help of the program is written."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {  # what lists and suggestions need
            name: TyperCommand(name, help=place.summary) for name, place in COMMANDS.items()
        }

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """Import a command; None if there is none of that name."""
        if self.lists_names or cmd_name not in COMMANDS:
            return cast(TyperCommand | None, self.commands.get(cmd_name))
        return load(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of the program without importing any command."""
        self.lists_names = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self.lists_names = False


def load(name: str) -> TyperCommand:
    """Import the command of a name."""
    module = import_module(f"saff.cli.{COMMANDS[name].module}")
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
    alone.command(name, cls=Command)(getattr(module, name.replace("-", "_")))
    return cast(TyperCommand, typer.main.get_command(alone))
