"""Commands that measure and check: evaluate, verify, doctor."""

import functools
import os
from typing import Annotated

import typer

from saff import evaluation, layout, verification
from saff.access import Access
from saff.cli.options import (
    MINUTES,
    AllowCodeOption,
    ConfigOption,
    MeasureSet,
    NetworkOption,
    Output,
    PatienceOption,
    PrivateOption,
    StageOption,
    TruthFormat,
    TruthFormatOption,
    refuse_relative,
)
from saff.config_files import read_config
from saff.errors import SettingsError
from saff.layout import PART_SUFFIX, Stage
from saff.log import say
from saff.storage import Folder, with_brief_retries

PARTS_FOR_RAY = 512  # beyond, even small parts take longer than Ray's start


def evaluate(
    source: Annotated[
        str | None, typer.Argument(metavar="[OUTPUT]", help="Output of a run, as for --output.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Output of a run: a folder or s3:// prefix.")
    ] = None,
    truth: Annotated[str, typer.Option(help="Folder of true masks, named like the images.")] = ...,  # type: ignore[assignment]
    truth_format: TruthFormatOption = TruthFormat.binary,
    stage: StageOption = Stage.PSEUDO_LABELS,
    normalise: Annotated[
        bool, typer.Option(help="Stretch each confidence map to 0..255 before it is measured.")
    ] = True,
    measures: Annotated[
        MeasureSet,
        typer.Option(
            help="Which figures: f leaves out S-measure, weighted F and boundary F, which take "
            "half of the time."
        ),
    ] = MeasureSet.all,
    partial: Annotated[
        bool, typer.Option("--partial", help="Measure even if most images have no mask.")
    ] = False,
    patience: PatienceOption = MINUTES,
) -> None:
    """Measure results with true masks: max F in three conventions, IoU, MAE and more, P-R curve.

    Whatever is left out is printed with its reason, and counted in metrics.json.
    """
    given = output or source
    if given is None or (output and source):
        raise SettingsError("name the output once")
    refuse_relative(given)
    refuse_relative(truth)
    folder = Folder.at(given)
    summary = evaluation.evaluate(
        folder,
        truth,
        truth_format.value,
        stage.value,
        normalise=normalise,
        measures=measures.value,
        partial=partial,
        map_parts=_parts_mapper(folder, stage.value, 60 * patience),
    )
    for name in ("mean_pr", "mean_f", "max_f"):
        typer.echo(f"max F {name:8} {summary[name]['max_f']:.4f}")
    typer.echo(f"IoU {summary['iou']:.4f}, MAE {summary['mae']:.4f}, {summary['images']:,} images")
    typer.echo(
        f"F at 0.5 {summary['f_at_half']:.4f}, adaptive F {summary['adaptive_f']:.4f}, "
        f"E-measure {summary['e_measure']['max']:.4f} at most"
    )
    if measures is MeasureSet.all:
        figures = (summary[name] for name in ("s_measure", "weighted_f", "boundary_f"))
        typer.echo("S-measure {:.4f}, weighted F {:.4f}, boundary F {:.4f}".format(*figures))
    if line := evaluation.describe_nothing_found(summary):
        typer.echo(line)
    for line in evaluation.describe_left_out(summary):
        say(line)
    if to_do := summary["parts_to_do"]:
        say(f"{to_do:,} parts of the manifest are not done yet and not measured")
    say(f"more in {(folder / 'evaluation' / stage.value).uri}")


def verify(
    output: Output,
    other: Annotated[
        str | None, typer.Argument(help="Another output, to be compared with the first.")
    ] = None,
    stage: Annotated[
        Stage | None, typer.Option(help="Results to check; default: all that the output has.")
    ] = None,
    images: Annotated[
        bool, typer.Option("--images", help="Read each image again and compare its SHA-256.")
    ] = False,
    network: Annotated[
        str | None,
        typer.Option(
            help="Output of the run whose network made the predictions, if it is another run."
        ),
    ] = None,
    patience: PatienceOption = MINUTES,
    private: PrivateOption = False,
) -> None:
    """Prove that an output is whole, or that two outputs hold the same.

    Every row and every map is read. The exit code is 1 if anything is wrong, differs or is not done
    yet.
    """
    named = [name for name in (output, other, network) if name]
    for name in named:
        refuse_relative(name)
    folder = Folder.at(output)
    verdict = verification.verify(
        folder,
        Folder.at(other) if other else None,
        stage=stage.value if stage else None,
        images=images,
        network=Folder.at(network) if network else None,
        access=Access(private=private),
        map_parts=_parts_mapper(folder, layout.MANIFEST, 60 * patience),
    )
    for line in verdict.lines:
        typer.echo(line)
    if not verdict.whole:
        raise typer.Exit(1)


def doctor(
    output: Annotated[
        str | None, typer.Argument(help="Folder or s3:// prefix that a run will write to.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of a cluster, HOST:PORT; default: RAY_ADDRESS, or this machine."
        ),
    ] = None,
    network: NetworkOption = None,
    config: ConfigOption = "default",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of workers that a stage will use; checks that there is room."
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of GPUs that a stage will use, one per worker; checks that there is room.",
        ),
    ] = None,
    allow_code: AllowCodeOption = None,
    start_nodes: Annotated[
        bool,
        typer.Option(
            "--start-nodes",
            help="Start a CPU node of a cluster that grows, with --gpus a GPU node, too, and check "
            "them; waits for at most 15 minutes.",
        ),
    ] = False,
) -> None:
    """Check what a run needs, on every node: versions, storage, models, threads, GPUs and more.

    Each check prints one line: ok, or what is wrong and what to do about it. The exit code is 1 if
    anything is wrong.
    """
    for name in (output, network):
        if name:
            refuse_relative(name)
    chosen = read_config(config)
    from saff.doctor import examine

    well = True
    found = examine(
        output,
        address=address,
        config=chosen,
        network=network,
        allow_code=allow_code or (),
        workers=workers,
        gpus=gpus,
        start_nodes=start_nodes,
    )
    for finding in found:
        typer.echo(str(finding))
        well = well and finding.ok
    if not well:
        raise typer.Exit(1)


def _parts_mapper(output: Folder, stage: str, patience: float) -> evaluation.Mapper:
    """On a cluster if it has many parts or this is a cluster's job: Ray takes seconds to start."""
    with with_brief_retries(output.uri):
        many = len((output / stage).names(PART_SUFFIX)) > PARTS_FOR_RAY
    if not many and not os.environ.get("RAY_ADDRESS"):
        return evaluation.one_by_one
    from saff.cluster import map_parts, start_ray

    start_ray()
    return functools.partial(map_parts, patience=patience)
