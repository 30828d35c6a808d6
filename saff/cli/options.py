"""Options that several commands share, and what they mean."""

import os
from enum import Enum
from typing import Annotated

import typer

from saff.access import Access
from saff.addresses import expand_home, redact
from saff.errors import SettingsError
from saff.kept import Large
from saff.layout import Stage
from saff.lists import read_manifest
from saff.progress import PATIENCE
from saff.runs import read_run
from saff.sources import Source, describe_source, list_images
from saff.storage import Folder

MINUTES = PATIENCE / 60
LISTS = (".csv", ".tsv")
"""Ends of names that are lists of images, not images."""


class What(str, Enum):
    """Kinds of pictures that show a result."""

    mask = "mask"
    confidence = "confidence"
    overlay = "overlay"
    cutout = "cutout"


class TruthFormat(str, Enum):
    """What the values of true masks mean; saff.truth describes each."""

    binary = "binary"
    half = "half"
    voc = "voc"
    nonzero = "nonzero"
    alpha = "alpha"


class Tracking(str, Enum):
    """Where trainings are logged besides the output; see saff.tracking."""

    mlflow = "mlflow"


class MeasureSet(str, Enum):
    """Which figures an evaluation gives; saff.metrics names them."""

    all = "all"
    f = "f"


TruthFormatOption = Annotated[
    TruthFormat,
    typer.Option(
        help="Meaning of the values of the true masks. binary: black and white; half: grey, "
        "foreground from half on; voc: 0, classes 1..20, 255 ignored; nonzero: all but black is "
        "foreground; alpha: the opaque pixels are foreground."
    ),
]

Output = Annotated[str, typer.Argument(help="Output of a run: a folder or s3:// prefix.")]

StageOption = Annotated[Stage, typer.Option(help="Results to use: pseudo_labels or predictions.")]

ConfigOption = Annotated[
    str,
    typer.Option(
        "--config",
        help="Settings: default, fast, best, paper, or a JSON file of what differs from default; "
        "then, after commas, what is to differ from them: fast,superpixel_count=400.",
    ),
]

SourceArgument = Annotated[
    str | None, typer.Argument(metavar="[IMAGES]", help="Images, as for --images.")
]

ImagesOption = Annotated[
    str | None,
    typer.Option(
        help="Images: a folder, a glob, an s3:// prefix, or one file; tar files and Parquet files "
        "that hold images are read, too."
    ),
]

ManifestOption = Annotated[
    str | None,
    typer.Option(help="List of images: a Parquet or CSV file with the columns image_id and uri."),
]

NewOutputOption = Annotated[
    str,
    typer.Option(
        help="Folder or s3:// prefix to write to; running the same command again resumes."
    ),
]

RetryOption = Annotated[
    bool, typer.Option("--retry-failed", help="Try again the images that have failed.")
]

ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="NAME",
        help="Further column of the list of images to keep beside the results; repeat for more.",
    ),
]

KeepOption = Annotated[
    list[Large] | None,
    typer.Option(
        "--keep",
        help="Large column of the results to store; repeat for more; default: all but embedding. "
        "Reports need these, trainings pseudo_label and confidence; a mask is pseudo_label alone.",
    ),
]

WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Number of processes that share each batch of a training.")
]

GpusOption = Annotated[
    int | None,
    typer.Option(
        min=0, help="Number of GPUs to use, one per worker; default: all that the cluster has now."
    ),
]

PatienceOption = Annotated[
    float, typer.Option(min=0.1, help="Minutes without any progress after which the job ends.")
]

PartOption = Annotated[
    str,
    typer.Option(
        help="Share of the images that this job does: 2/4 is the second of four jobs on one "
        "output; take the images in with saff manifest first."
    ),
]

ThresholdOption = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Smallest confidence of foreground in a mask, an overlay or a matted cut-out.",
    ),
]
MattingOption = Annotated[
    bool,
    typer.Option(
        "--matting",
        help="Give a cut-out soft edges without the background's colours; needs "
        "pip install 'saff\\[matting]'.",
    ),
]
TakeOverOption = Annotated[
    bool,
    typer.Option(
        "--take-over",
        help="Continue the work of another job that you know to be dead, without waiting.",
    ),
]
TrackOption = Annotated[
    Tracking | None,
    typer.Option(
        "--track",
        help="Log trainings there as well; MLFLOW_TRACKING_URI says where MLflow is. Needs "
        "pip install 'saff\\[mlflow]'.",
    ),
]
NetworkOption = Annotated[
    str | None, typer.Option("--network", help="Output of the run whose trained network is used.")
]

AllowCodeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-code",
        metavar="MODULE",
        help="Allow a run to import this module as its network; repeat for more modules.",
    ),
]


PrivateOption = Annotated[
    bool,
    typer.Option(
        "--allow-private-addresses",
        envvar="SAFF_ALLOW_PRIVATE_ADDRESSES",
        help="Read images whose web addresses lead to this machine or a private network.",
    ),
]

SchemeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-scheme",
        help="Read addresses of this scheme, too, such as sftp, or file in a list from elsewhere.",
    ),
]


def open_source(
    *images: str | None,
    manifest: str | None,
    output: Folder | None = None,
    private: bool = False,
    schemes: list[str] | None = None,
    columns: list[str] | None = None,
) -> Source:
    """Open the one source of images that was named: a folder, prefix, glob or file, or a manifest.

    What lies in the output is no image; the last two say what the addresses of images may name.

    Raises
    ------
    SettingsError
        If none or several were named, it holds no images, or it is relative in a submitted job.
    """
    named = [name for name in (*images, manifest) if name]
    if len(named) != 1:
        raise SettingsError("name the images once: a folder, --images, or --manifest")
    (uri,) = named
    refuse_relative(uri)
    if manifest is None and uri.lower().endswith(LISTS):
        raise SettingsError(
            f"{redact(uri)} is no image but a table; if it is a list of images: --manifest {uri}"
        )
    access = Access.of_source(uri, private=private, schemes=schemes or ())
    if columns and not manifest:
        raise SettingsError("--columns are those of a list of images; name one with --manifest")
    rows = read_manifest(uri, access, columns or ()) if manifest else list_images(uri, output)
    name = describe_source(Folder.at(uri).uri, is_manifest=manifest is not None)
    return Source(name=name, rows=rows, access=access)


def refuse_relative(name: str) -> None:
    """Refuse a relative path in a submitted job: it lies in a copy that Ray deletes."""
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # Ray's own mark on a submitted driver
    if submitted and "://" not in name and not os.path.isabs(expand_home(name)):
        raise SettingsError(
            f"{name} is relative, and a submitted job runs in a copy that is deleted; give an "
            "absolute path on storage that every node shares, or a URI"
        )


def access_of_run(output: Folder, *, private: bool) -> Access:
    """What the images of a run that a job continues may name.

    Raises
    ------
    SettingsError
        If the folder is not the output of a run.
    """
    return Access.of_run(str(read_run(output).get("source", "")), private=private)
