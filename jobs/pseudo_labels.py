"""Label every image of a corpus: read images, write parts of pseudo labels; resumable.

On a cluster:

    ray job submit --working-dir . -- python jobs/pseudo_labels.py \\
        --images s3://bucket/photos --output s3://bucket/run
"""

import os
from typing import Annotated

import typer

from saff.cli import run_alone
from saff.cli.options import (
    MINUTES,
    ColumnsOption,
    ConfigOption,
    ImagesOption,
    KeepOption,
    ManifestOption,
    NewOutputOption,
    PartOption,
    PatienceOption,
    PrivateOption,
    RetryOption,
    SchemeOption,
    SourceArgument,
    TakeOverOption,
    open_source,
    refuse_relative,
)
from saff.cluster import labelling_job, preview
from saff.config_files import read_config
from saff.kept import check_kept
from saff.log import say
from saff.plan import Share
from saff.storage import Folder


def pseudo_labels(
    source: SourceArgument = None,
    images: ImagesOption = None,
    manifest: ManifestOption = None,
    output: NewOutputOption = ...,  # type: ignore[assignment]
    config: ConfigOption = "default",
    keep: KeepOption = None,
    retry_failed: RetryOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what would be done, and do nothing.")
    ] = False,
    part: PartOption = "1/1",
    patience: PatienceOption = MINUTES,
    take_over: TakeOverOption = False,
    private: PrivateOption = False,
    schemes: SchemeOption = None,
    columns: ColumnsOption = None,
) -> None:
    """Label images: write a pseudo label for each to Parquet files."""
    refuse_relative(output)
    folder, settings, share = Folder.at(output), read_config(config), Share.read(part)
    kept = check_kept(keep or ())
    corpus = open_source(  # lists the images, reads the manifest
        source,
        images,
        manifest=manifest,
        output=folder,
        private=private,
        schemes=schemes,
        columns=columns,
    )

    if dry_run:
        lines = preview(
            corpus.name,
            corpus.rows,
            folder,
            settings,
            retry_failed=retry_failed,
            share=share,
            sample=8,
            cpus=os.cpu_count() or 1,
            access=corpus.access,
            kept=kept,
        )
        typer.echo(lines)
        return
    job = labelling_job(
        corpus,
        folder,
        settings,
        share=share,
        patience=60 * patience,
        take_over=take_over,
        kept=kept,
    )
    job.claim()  # one output, one configuration: another one is refused by name
    job.extend_manifest()  # images that the output does not know yet, in new parts
    todo = job.plan(retry_failed=retry_failed)  # parts of the manifest without a part of labels
    with job.at_work():  # no other job does the same parts at the same time
        job.map(todo)  # Ray Data: read, decode, label, encode; each task writes its part
        job.tidy()  # what processes that died have left
    done = job.plan()
    say(f"done: {done}", "done", **done.counts)


if __name__ == "__main__":
    run_alone(pseudo_labels)
