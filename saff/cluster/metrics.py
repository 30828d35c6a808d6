"""What the workers have done, as metrics of Ray: its dashboard and Prometheus read them.

``saff_images``, ``saff_failed_images`` (with the kind of the error) and ``saff_part_seconds``
count, for each stage, what the workers of all jobs of a cluster have done since it was started.
"""

from collections.abc import Mapping
from functools import cache

import ray
from ray.util.metrics import Counter


@cache
def _counters() -> tuple[Counter, Counter, Counter]:
    """Counters of this process."""
    return (
        Counter("saff_images", "Images done, those that failed among them.", ("stage",)),
        Counter("saff_failed_images", "Images that failed, by kind.", ("stage", "kind")),
        Counter("saff_part_seconds", "Seconds that workers spent on parts.", ("stage",)),
    )


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
    done, failed, spent = _counters()
    if images:
        done.inc(images, {"stage": stage})
    for kind, count in failures.items():
        failed.inc(count, {"stage": stage, "kind": kind})
    spent.inc(max(seconds, 1e-6), {"stage": stage})
