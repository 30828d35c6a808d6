"""What runs on Ray: the stages of a run, mapped over the parts of its manifest."""

from saff.cluster.estimate import preview
from saff.cluster.labels import (
    LabelPart,
    describe_run,
    encode_label,
    label_corpus,
    label_row,
)
from saff.cluster.parts import Plan, Share, map_parts, plan, start_ray

__all__ = [
    "LabelPart",
    "Plan",
    "Share",
    "describe_run",
    "encode_label",
    "label_corpus",
    "label_row",
    "map_parts",
    "plan",
    "preview",
    "start_ray",
]
