"""The command line: thin over the functions that the jobs call."""

import logging
import os
import sys
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from saff import __version__, config as settings, evaluation, results, verification
from saff.addresses import locate
from saff.config import Config
from saff.errors import SaffError, SettingsError, printable
from saff.lists import read_manifest
from saff.manifests import extend_manifest
from saff.progress import PATIENCE
from saff.runs import claim_source, read_run
from saff.sources import describe_source, list_images
from saff.storage import NO_FILE, Folder, with_brief_retries, with_retries

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Foreground masks from unlabelled images, without any annotation.

    A first run:

    [bold]saff segment photo.jpg -o mask.png[/]      one picture

    [bold]saff label photos/ --output out/[/]        a folder, resumable

    [bold]saff report out/[/]                        look at it: out/report/index.html

    [bold]saff export out/ --to masks/[/]            PNG files
    """,
)


MINUTES = PATIENCE / 60
PARTS_FOR_RAY = 512  # beyond, even small parts take longer than Ray's start


class Stage(str, Enum):
    """Results of a run."""

    pseudo_labels = "pseudo_labels"
    predictions = "predictions"


class What(str, Enum):
    """Pictures of a result."""

    mask = "mask"
    confidence = "confidence"
    overlay = "overlay"
    cutout = "cutout"


class TruthFormat(str, Enum):
    """How masks are written."""

    voc = "voc"
    binary = "binary"


Output = Annotated[str, typer.Argument(help="Output of a run, a folder or s3:// prefix.")]
StageOption = Annotated[Stage, typer.Option(help="Which results.")]
ConfigOption = Annotated[
    str,
    typer.Option(
        "--config", help="'default', 'fast', 'best', 'paper', or a JSON file of settings."
    ),
]


SourceArgument = Annotated[str | None, typer.Argument(metavar="[IMAGES]", help="Same as --images.")]
ImagesOption = Annotated[
    str | None, typer.Option(help="Folder, glob, s3:// prefix or file of images.")
]
ManifestOption = Annotated[
    str | None, typer.Option(help="Parquet or CSV with columns image_id and uri.")
]
NewOutputOption = Annotated[
    str, typer.Option(help="Folder or s3:// prefix; the same again resumes.")
]
RetryOption = Annotated[
    bool, typer.Option("--retry-failed", help="Try images again that failed before.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Processes that share each batch of a training.")
]
GpusOption = Annotated[
    int | None, typer.Option(min=0, help="GPUs to use, one a worker; default: all there are now.")
]
PatienceOption = Annotated[
    float, typer.Option(min=0.1, help="Minutes without progress after which the job ends.")
]
PartOption = Annotated[
    str,
    typer.Option(help="Of several jobs on one run, this one: 2/4. The images: saff manifest."),
]
NetworkOption = Annotated[
    str | None, typer.Option("--network", help="Run whose trained network to ask.")
]


def read_config(name: str) -> Config:
    """Settings by name or from a JSON file."""
    if name in settings.NAMED:
        return settings.NAMED[name]()
    fs, path = locate(name)
    with with_brief_retries(name):
        try:
            text: bytes = with_retries(fs, fs.cat_file, path)
        except NO_FILE:
            raise SettingsError(
                f"no configuration {name!r}; known: {', '.join(settings.NAMED)}, or a JSON file"
            ) from None
        return settings.from_json(text.decode("utf-8", "replace"))


def only_source(*given: str | None) -> str:
    """Give the one source of images that was named."""
    named = [name for name in given if name]
    if len(named) != 1:
        raise SettingsError("name the images once: a folder, --images, or --manifest")
    return named[0]


def source_of(given: str, manifest: str | None) -> str:
    """Source of images as run.json is to say it."""
    return describe_source(Folder.at(given).uri, is_manifest=manifest is not None)


def refuse_relative(name: str) -> None:
    """Refuse a relative path in a submitted job: it lies in a copy that Ray deletes."""
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # Ray's own mark on a submitted driver
    if submitted and "://" not in name and not os.path.isabs(name):
        raise SettingsError(
            f"{name} is relative, and a submitted job runs in a copy that is deleted; give an "
            "absolute path on storage that every node shares, or a URI"
        )


@app.command()
def label(
    source: SourceArgument = None,
    images: ImagesOption = None,
    manifest: ManifestOption = None,
    output: NewOutputOption = ...,  # type: ignore[assignment]
    config: ConfigOption = "default",
    retry_failed: RetryOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    sample: Annotated[
        int, typer.Option(min=0, help="Images that a dry run labels, to tell time and size.")
    ] = 8,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="Of the cluster, for a dry run; default: those here.")
    ] = None,
    cpu_price: Annotated[
        float | None, typer.Option(min=0, help="Dollars of a CPU for an hour, for a dry run.")
    ] = None,
    part: PartOption = "1/1",
    patience: PatienceOption = MINUTES,
) -> None:
    """Label images: pseudo labels as Parquet shards.

    Runs on the Ray cluster it is started on ([bold]ray job submit[/]), or starts one on this
    machine. A bad image becomes a row with an error; run the same command again to resume.
    """
    given = only_source(source, images, manifest)
    for name in (given, output):
        refuse_relative(name)
    chosen = read_config(config)
    rows = read_manifest(manifest) if manifest else list_images(given)
    folder, origin = Folder.at(output), source_of(given, manifest)
    from saff import cluster  # Ray takes seconds to import; a mistake above is told at once

    share, job = cluster.Share.read(part), (origin, rows, folder, chosen)
    if dry_run:
        said = cluster.preview(
            *job,
            retry_failed=retry_failed,
            share=share,
            sample=sample,
            cpus=cpus or os.cpu_count() or 1,
            price=cpu_price,
        )
        typer.echo(said)
        return
    typer.echo(f"settings: {config} {chosen.digest()[:12]}, output: {folder.uri}", err=True)
    done = cluster.label_corpus(
        *job, retry_failed=retry_failed, share=share, patience=60 * patience
    )
    typer.echo(f"done: {done}", err=True)
    if done.failed:
        typer.echo(f"why images failed: saff report {output}", err=True)


@app.command()
def manifest(
    source: SourceArgument = None,
    images: ImagesOption = None,
    manifest: ManifestOption = None,
    output: NewOutputOption = ...,  # type: ignore[assignment]
) -> None:
    """Take images into an output and do nothing with them: what several jobs then share.

    [bold]saff label ... --part 1/4[/] to [bold]--part 4/4[/] do a quarter each, at the same time;
    what they write lies side by side in one output. Run it again to take in new images.
    """
    given = only_source(source, images, manifest)
    for name in (given, output):
        refuse_relative(name)
    rows = read_manifest(manifest) if manifest else list_images(given)
    folder = Folder.at(output)
    claim_source(folder, source_of(given, manifest))
    with with_brief_retries(folder.uri):
        parts = folder / "manifest"
        added = extend_manifest(folder, rows)
    typer.echo(f"{added:,} new images; {len(parts.names('.parquet')):,} parts", err=True)


@app.command()
def run(
    source: SourceArgument = None,
    images: ImagesOption = None,
    manifest: ManifestOption = None,
    output: NewOutputOption = ...,  # type: ignore[assignment]
    config: ConfigOption = "default",
    rounds: Annotated[
        int, typer.Option(min=1, help="Trainings; each learns from the masks of the one before.")
    ] = 2,
    workers: WorkersOption = None,
    gpus: GpusOption = None,
    truth: Annotated[str | None, typer.Option(help="Folder of PNG masks to measure with.")] = None,
    truth_format: Annotated[
        TruthFormat, typer.Option(help="voc: 0, 1..20, 255 void; binary: above 127.")
    ] = TruthFormat.binary,
    retry_failed: RetryOption = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Once labelled, forget earlier networks and predictions."),
    ] = False,
    patience: PatienceOption = MINUTES,
) -> None:
    """Do everything: label, train a network on the labels, infer with it, measure, report.

    Killed at any point, the same command continues. Run it again for new images: they are labelled
    and inferred, the networks stay as they are; [bold]--restart[/] trains them anew, on all.
    """
    given = only_source(source, images, manifest)
    for name in (given, output, *([truth] if truth else [])):
        refuse_relative(name)
    chosen = read_config(config)
    rows = read_manifest(manifest) if manifest else list_images(given)
    from saff.cluster.pipeline import Scale, run_pipeline

    page = run_pipeline(
        source_of(given, manifest),
        rows,
        Folder.at(output),
        chosen,
        rounds=rounds,
        scale=Scale(workers=workers, gpus=gpus, patience=60 * patience),
        truth=truth,
        truth_format=truth_format.value,
        retry_failed=retry_failed,
        restart=restart,
        say=lambda line: typer.echo(line, err=True),
    )
    typer.echo(f"open {page}")


@app.command()
def train(
    output: Annotated[str, typer.Option(help="Output of a run whose images are labelled.")],
    config: ConfigOption = "default",
    workers: WorkersOption = None,
    gpus: GpusOption = None,
    restart: Annotated[
        bool,
        typer.Option("--restart/--resume", help="Forget an earlier training, or continue it."),
    ] = False,
    patience: PatienceOption = MINUTES,
) -> None:
    """Train a segmentation network on the pseudo labels of a run.

    Continues from the last checkpoint when it is run again. Only the section
    [bold]training[/] of the configuration counts.
    """
    refuse_relative(output)
    chosen = read_config(config).training
    folder = Folder.at(output)
    read_run(folder)
    from saff.cluster import plan
    from saff.cluster.training import train_network

    if left := plan(folder).left:
        typer.echo(f"{left:,} images are not labelled yet and not learnt from", err=True)
    results = train_network(
        folder, chosen, workers=workers, gpus=gpus, restart=restart, patience=60 * patience
    )
    typer.echo(f"done: {chosen.steps:,} steps, weights in {results.folder.uri}", err=True)


@app.command()
def reinfer(
    output: Annotated[str, typer.Option(help="Output of a run; of new images, a new folder.")],
    network: NetworkOption = None,
    images: Annotated[
        str | None, typer.Option(help="New images: folder, glob, s3:// prefix or file.")
    ] = None,
    manifest: Annotated[
        str | None, typer.Option(help="New images: Parquet or CSV with image_id and uri.")
    ] = None,
    config: ConfigOption = "default",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: one a GPU, or one a CPU.")
    ] = None,
    gpus: GpusOption = None,
    retry_failed: RetryOption = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget earlier predictions.")] = False,
    part: PartOption = "1/1",
    patience: PatienceOption = MINUTES,
) -> None:
    """Infer masks with a trained network: for the images of a run, or for new ones.

    [bold]saff reinfer --output RUN[/] infers the images that the network of RUN has learnt from;
    with [bold]--network RUN --images IMAGES[/], new images, for which only the network runs.
    Run the same command again to resume.
    """
    given = [s for s in (images, manifest) if s]
    if len(given) > 1:
        raise SettingsError("name new images once: --images or --manifest")
    if bool(given) != bool(network):
        raise SettingsError("new images need both --network RUN and --images or --manifest")
    for name in (output, *given, *([network] if network else [])):
        refuse_relative(name)
    chosen = read_config(config).inference
    folder = Folder.at(output)
    source = None
    if given:
        rows = read_manifest(given[0]) if manifest else list_images(given[0])
        source = (source_of(given[0], manifest), rows)
    else:
        read_run(folder)
    from saff.cluster import Share
    from saff.cluster.predictions import predict_corpus

    done = predict_corpus(
        folder,
        Folder.at(network) if network else folder,
        chosen,
        source=source,
        workers=workers,
        gpus=gpus,
        retry_failed=retry_failed,
        restart=restart,
        share=Share.read(part),
        patience=60 * patience,
    )
    typer.echo(f"done: {done}", err=True)


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="A picture.")],
    to: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")],
    what: Annotated[What, typer.Option(help="What to draw.")] = What.mask,
    network: NetworkOption = None,
    config: ConfigOption = "default",
) -> None:
    """Segment one picture: its mask, confidence, overlay or cut-out.

    With [bold]--network RUN[/] by the network that was trained there, otherwise by itself.
    """
    import numpy as np

    from saff import images, label_image

    chosen = read_config(config)
    try:
        pixels = images.read(image, max_pixels=chosen.max_pixels)
    except (OSError, images.ImageError) as error:
        raise SettingsError(f"{image}: {error}") from error
    if network:
        from saff.inference import predict
        from saff.trained import load_trained

        trained = load_trained(Folder.at(network))
        found = predict(trained.network, pixels, chosen.inference)
    else:
        found = label_image(pixels, chosen).confidence
    confidence = np.rint(found * 255).astype(np.uint8)
    drawn = results.picture(what.value, confidence, pixels)
    save(to, results.to_png(drawn))


@app.command()
def export(
    output: Output,
    to: Annotated[Path, typer.Option(help="Folder for the PNG files.")],
    what: Annotated[What, typer.Option(help="What to draw.")] = What.mask,
    stage: StageOption = Stage.pseudo_labels,
) -> None:
    """Write results as PNG files named like the images, in their size; masks are 0 and 255."""
    written, left_out = results.export(Folder.at(output), to, what.value, stage.value)
    typer.echo(f"{written:,} files in {to}; {left_out:,} images left out", err=True)


@app.command()
def export_network(
    output: Annotated[str, typer.Argument(help="Output of a run whose network is trained.")],
    to: Annotated[Path, typer.Option(help="File to write: model.onnx, or model.pt2 for torch.")],
) -> None:
    """Convert a trained network to one file that runs without saff: ONNX, or torch's format.

    A JSON file beside it says how to prepare images. The file is run once and its answers are
    compared with the network's. ONNX needs the packages of the extra [bold]export[/].
    """
    from saff import network_export

    done = network_export.export_network(Folder.at(output), to)
    checked = (
        "checked by ONNX alone; pip install onnxruntime to have it run, too"
        if done.difference is None
        else f"differs from the network by at most {done.difference:.0e}"
    )
    typer.echo(f"{done.model} and {done.description}; {checked}", err=True)


@app.command()
def evaluate(
    source: Annotated[
        str | None, typer.Argument(metavar="[OUTPUT]", help="Same as --output.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Output of a run.")] = None,
    truth: Annotated[str, typer.Option(help="Folder of PNG masks named like the images.")] = ...,  # type: ignore[assignment]
    truth_format: Annotated[
        TruthFormat, typer.Option(help="voc: 0, 1..20, 255 void; binary: above 127.")
    ] = TruthFormat.binary,
    stage: StageOption = Stage.pseudo_labels,
    normalise: Annotated[bool, typer.Option(help="Stretch each map to 0..255 first.")] = True,
    patience: PatienceOption = MINUTES,
) -> None:
    """Measure results against masks: max F in its three conventions, MAE, IoU, P-R curve."""
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
        map_parts=_parts_mapper(folder, stage.value, 60 * patience),
    )
    for name in ("mean_pr", "mean_f", "max_f"):
        typer.echo(f"max F {name:8} {summary[name]['max_f']:.4f}")
    typer.echo(f"IoU {summary['iou']:.4f}, MAE {summary['mae']:.4f}, {summary['images']:,} images")
    if to_do := summary["parts_to_do"]:
        typer.echo(f"{to_do:,} parts of the manifest are not done yet and not measured", err=True)
    typer.echo(f"more in {(folder / 'evaluation' / stage.value).uri}", err=True)


@app.command()
def verify(
    output: Output,
    other: Annotated[
        str | None, typer.Argument(help="Another output that is to hold the same.")
    ] = None,
    stage: Annotated[
        Stage | None, typer.Option(help="Which results; default: all there are.")
    ] = None,
    images: Annotated[
        bool, typer.Option("--images", help="Read each image again and compare its SHA-256.")
    ] = False,
    network: Annotated[
        str | None,
        typer.Option(help="Run whose network made the predictions, where it is another one."),
    ] = None,
    patience: PatienceOption = MINUTES,
) -> None:
    """Prove that an output is whole, or that two outputs hold the same.

    Every row and map is read. Exit code 1 when anything is wrong, differs or is not done yet.
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
        map_parts=_parts_mapper(folder, "manifest", 60 * patience),
    )
    for line in verdict.lines:
        typer.echo(line)
    if not verdict.whole:
        raise typer.Exit(1)


def _parts_mapper(output: Folder, stage: str, patience: float) -> evaluation.Mapper:
    """On a cluster if it has many parts or this is a cluster's job: Ray takes seconds to start."""
    with with_brief_retries(output.uri):
        many = len((output / stage).names(".parquet")) > PARTS_FOR_RAY
    if not many and not os.environ.get("RAY_ADDRESS"):
        return evaluation.one_by_one
    from saff.cluster import map_parts, start_ray

    start_ray()
    return partial(map_parts, patience=patience)


def tables(
    voc: Annotated[Path, typer.Option(help="A VOCdevkit/VOC2012 folder.")],
    output: Annotated[str, typer.Option(help="Folder or prefix for runs, tables and figures.")],
    config: ConfigOption = "paper",
    workers: WorkersOption = None,
    gpus: GpusOption = None,
) -> None:
    """Run every row of the paper's tables; write tables.md, figure2.svg and figure3.png.

    The configuration says which network is trained and how; the same command resumes.
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
        say=lambda line: typer.echo(line, err=True),
    )
    typer.echo(f"open {page}")


def fit_saliency(
    images: Annotated[str, typer.Option(help="Folder, glob or s3:// prefix of images.")],
    truth: Annotated[str, typer.Option(help="Folder of PNG masks named like the images.")],
    output: Annotated[Path, typer.Option(help="Model file to write: saliency.safetensors.")],
    truth_format: Annotated[
        TruthFormat, typer.Option(help="voc: 0, 1..20, 255 void; binary: above 127.")
    ] = TruthFormat.binary,
    folds: Annotated[int, typer.Option(min=2, help="Of the cross-validation.")] = 5,
    trees: Annotated[int, typer.Option(min=1, help="Boosted trees.")] = 250,
) -> None:
    """Fit the regressor of saliency "drfi" to images with masks; use it as drfi:FILE."""
    check_writable(output)
    from saff.cluster.fitting import fit_saliency as fit
    from saff.saliency.fitting import Boosting

    fitted = fit(
        list(list_images(images)), truth, truth_format.value, Boosting(trees=trees), folds=folds
    )
    save(output, fitted.data)
    for reason in fitted.left_out:
        typer.echo(f"left out: {reason}", err=True)
    summary = fitted.summary
    typer.echo(f"max F mean_pr {summary['mean_pr']['max_f']:.4f}, {folds}-fold cross-validated")
    typer.echo(f"IoU {summary['iou']:.4f}, MAE {summary['mae']:.4f}, {summary['images']:,} images")


def fit_edges(
    images: Annotated[str, typer.Option(help="Folder, glob or s3:// prefix of images.")],
    boundaries: Annotated[
        str, typer.Option(help="Folder of .mat (BSDS500) or .png files named like the images.")
    ],
    output: Annotated[Path, typer.Option(help="Model file to write: edges.safetensors.")],
    validation_images: Annotated[str | None, typer.Option(help="Images to measure on.")] = None,
    validation_boundaries: Annotated[str | None, typer.Option(help="And their boundaries.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 900,
) -> None:
    """Fit the network of edges "learned" to boundaries people drew; use it as learned:FILE."""
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


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written, before the work that it is for."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise SettingsError(f"cannot write {path}: name a file in a folder that is there")


def save(path: Path, data: bytes) -> None:
    """Write a file that a person named."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error}") from error


@app.command()
def report(
    output: Output,
    cards: Annotated[int, typer.Option(min=1, help="Images to draw at most.")] = 200,
) -> None:
    """Write OUTPUT/report/index.html: a page that opens from disk."""
    typer.echo(f"open {results.write_report(Folder.at(output), max_cards=cards)}")


@app.command()
def doctor(
    output: Annotated[
        str | None, typer.Argument(help="Folder or s3:// prefix that runs are to write to.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT of a cluster; default: RAY_ADDRESS, or this one.")
    ] = None,
    network: NetworkOption = None,
    config: ConfigOption = "default",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers that a stage is to have: enough room?")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=0, help="GPUs that a stage is to have, one a worker.")
    ] = None,
    start_nodes: Annotated[
        bool,
        typer.Option(
            "--start-nodes",
            help="On a cluster that grows, start a CPU node, and a GPU node if --gpus, and check "
            "them too; waits 15 minutes at most.",
        ),
    ] = False,
) -> None:
    """Check what a run needs, on every node: versions, storage, models, threads, GPUs and more.

    One line each: ok, or what is wrong and what to do about it. Exit code 1 if anything is wrong.
    """
    for name in (output, network):
        if name:
            refuse_relative(name)
    chosen = read_config(config)
    from saff.cluster.doctor import examine

    well = True
    found = examine(
        output,
        address=address,
        config=chosen,
        network=network,
        workers=workers,
        gpus=gpus,
        start_nodes=start_nodes,
    )
    for finding in found:
        typer.echo(str(finding))
        well = well and finding.ok
    if not well:
        raise typer.Exit(1)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("demo"),
) -> None:
    """Label photographs that scikit-image carries; write masks, overlays and the report."""
    from saff.demo import run

    run(output)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; what the user can mend is one line and exit code 2."""
    explain(app)


def run_alone(command: Callable[..., None]) -> None:
    """Run one command as a program of its own: a job."""
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command()(command)
    explain(alone)


def explain(program: Callable[[], None]) -> None:
    """Call a program and turn what the user can mend into one line and exit code 2.

    That is a :class:`SaffError`, and an OSError: a storage or a disk that failed later on.
    """
    try:
        program()
    except SaffError as error:
        line = str(error)
    except OSError as error:
        line = f"{type(error).__name__}: {error}; what is done stays, the same command continues"
    else:
        return
    print(f"saff: {printable(' '.join(line.split()))}", file=sys.stderr)
    logging.disable()  # threads of Ray that still wait for tasks complain of its end
    sys.exit(2)
