"""What the workers have done, as metrics of Ray: its dashboard and Prometheus read them.

:data:`COUNTERS` count, for each stage, what the workers of all jobs of a cluster have done since it
was started. ``docs/grafana.json`` is a dashboard of them.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import ray
from ray.util.metrics import Counter

COUNTERS: dict[str, dict[str, Any]] = {
    "saff_images": {
        "description": "Images done, those that failed among them.",
        "tag_keys": ("stage",),
    },
    "saff_failed_images": {
        "description": "Images that failed, by the kind of the error.",
        "tag_keys": ("stage", "kind"),
    },
    "saff_part_seconds": {
        "description": "Seconds that workers spent on parts.",
        "tag_keys": ("stage",),
    },
}
"""Names, descriptions and labels; Prometheus sees ``ray_`` before and ``_total`` behind a name."""


@cache
def _counters() -> dict[str, Counter]:
    """Counters of this process."""
    return {name: Counter(name, **how) for name, how in COUNTERS.items()}


def count_part(stage: str, images: int, failures: Mapping[str, int], seconds: float) -> None:
    """Count a part that is done; nothing outside of Ray.

    Parameters
    ----------
    stage : str
        Its stage.
    images : int
        Images that were done, those that failed among them.
    failures : mapping of str to int
        How many of them failed, by kind.
    seconds : float
        How long it took.
    """
    if not ray.is_initialized():
        return
    counters = _counters()
    if images:
        counters["saff_images"].inc(images, {"stage": stage})
    for kind, count in failures.items():
        counters["saff_failed_images"].inc(count, {"stage": stage, "kind": kind})
    counters["saff_part_seconds"].inc(max(seconds, 1e-6), {"stage": stage})
