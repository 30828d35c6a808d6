"""What the workers count is what Prometheus reads from their nodes."""

import re
import urllib.request
from collections import Counter

import pytest
import ray

from clusters import nodes, wait_for
from label_runs import run, stored

pytestmark = pytest.mark.ray


def metrics(port):
    """Metrics of saff on a node: summed over its processes, by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = Counter()
    for name, labels, value in re.findall(r"^ray_saff_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found[name, pairs["stage"], pairs.get("kind", "")] += float(value)
    return found


def test_images_failures_and_seconds_are_counted(crops, tmp_path):
    with nodes(2):
        run(crops, tmp_path)
        (node,) = ray.nodes()
        port = node["MetricsExportPort"]
        wait_for(lambda: metrics(port)["images_total", "pseudo_labels", ""] >= 26, seconds=60)
        found = metrics(port)
    kinds = Counter(row["error_kind"] for row in stored(tmp_path).values() if row["error_kind"])
    assert found.pop(("images_total", "pseudo_labels", "")) == 26
    assert found.pop(("part_seconds_total", "pseudo_labels", "")) > 0
    assert found == {
        ("failed_images_total", "pseudo_labels", kind): count for kind, count in kinds.items()
    }
