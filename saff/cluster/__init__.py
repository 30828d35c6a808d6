"""What runs on Ray: the stages of a run, mapped over the parts of its manifest."""

from saff.cluster.estimate import preview
from saff.cluster.labels import (
    LabelPart,
    describe_run,
    encode_label,
    label_corpus,
    label_row,
    labelling_job,
)
from saff.cluster.mapping import map_parts
from saff.cluster.resources import start_ray
from saff.cluster.stage_job import StageJob
from saff.plan import Plan, Share, plan_stage
from saff.sources import Source

__all__ = [
    "LabelPart",
    "Plan",
    "Share",
    "Source",
    "StageJob",
    "describe_run",
    "encode_label",
    "label_corpus",
    "label_row",
    "labelling_job",
    "map_parts",
    "plan_stage",
    "preview",
    "start_ray",
]
