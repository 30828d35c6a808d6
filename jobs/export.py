"""Export the results of a run on Ray: one part in, its files out; resumable.

On a cluster:

    ray job submit --working-dir . -- python jobs/export.py \\
        s3://bucket/run --to s3://bucket/coco --format coco
"""

from saff.cli import run_alone
from saff.cli.exports import (
    FormatOption,
    OnlyOption,
    OverwriteOption,
    SmallestOption,
    ToOption,
    UrlPrefixOption,
    WhatOption,
    open_export,
    report_export,
)
from saff.cli.options import (
    MINUTES,
    MattingOption,
    Output,
    PartOption,
    PatienceOption,
    PrivateOption,
    StageOption,
    TakeOverOption,
    ThresholdOption,
    refuse_relative,
)
from saff.cluster.export import ExportJob
from saff.exports import FileFormat
from saff.layout import Stage
from saff.marks import Only
from saff.plan import Share


def export(
    output: Output,
    to: ToOption,
    form: FormatOption = FileFormat.png,
    what: WhatOption = None,
    stage: StageOption = Stage.PSEUDO_LABELS,
    threshold: ThresholdOption = 0.5,
    matting: MattingOption = False,
    smallest: SmallestOption = 1,
    url_prefix: UrlPrefixOption = "",
    only: OnlyOption = Only.ALL,
    overwrite: OverwriteOption = False,
    part: PartOption = "1/1",
    patience: PatienceOption = MINUTES,
    take_over: TakeOverOption = False,
    private: PrivateOption = False,
) -> None:
    """Write results as PNG files, annotations or data sets of other tools."""
    for name in (output, to):
        refuse_relative(name)
    export = open_export(
        output,
        to,
        form,
        what,
        stage=stage,
        threshold=threshold,
        matting=matting,
        smallest=smallest,
        url_prefix=url_prefix,
        only=only,
        overwrite=overwrite,
        private=private,
    )
    job = ExportJob(
        export=export, share=Share.read(part), patience=60 * patience, take_over=take_over
    )
    job.claim()  # one folder, one export: another one is refused by name
    with job.at_work():  # no other job does the same parts at the same time
        job.map(job.plan())  # Ray Data: each task writes the files of its part
    once = job.finish()  # a merged file, as soon as all parts are written
    report_export(export, export.summary(), once)


if __name__ == "__main__":
    run_alone(export)
