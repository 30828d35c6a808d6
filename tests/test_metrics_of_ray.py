"""What the workers count is what Prometheus reads from their nodes."""

import contextlib
import json
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter

import pytest
import ray

from clusters import free_port, nodes, started, wait_for
from label_runs import ROOT, run, stored

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


@contextlib.contextmanager
def prometheus(folder, target):
    """A Prometheus that reads a node every second; gives what a query answers, by labels."""
    config = folder / "prometheus.yml"
    scrape = {"job_name": "ray", "static_configs": [{"targets": [target]}]}
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={config}", f"--web.listen-address={address}"]

    def ask(query):
        url = f"http://{address}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                found = json.load(answer)["data"]["result"]
        except ConnectionError:
            return {}
        except urllib.error.URLError as error:
            starting = getattr(error, "code", 0) == 503
            if starting or isinstance(error.reason, ConnectionError):  # it does not listen yet
                return {}
            raise
        return {tuple(sorted(r["metric"].items())): float(r["value"][1]) for r in found}

    with started([*command, f"--storage.tsdb.path={folder / 'tsdb'}"]) as process:
        yield process, ask


@pytest.fixture(scope="module")
def node_of_a_run(crops, tmp_path_factory):
    """The port of the metrics of a node that has labelled a folder, and the rows of that run."""
    output = tmp_path_factory.mktemp("metrics") / "run"
    with nodes(2):
        run(crops, output)
        (node,) = ray.nodes()
        port = node["MetricsExportPort"]
        wait_for(lambda: metrics(port)["images_total", "pseudo_labels", ""] >= 26, seconds=60)
        yield port, stored(output).values()


def test_images_failures_and_seconds_are_counted(node_of_a_run):
    port, rows = node_of_a_run
    found = metrics(port)
    kinds = Counter(row["error_kind"] for row in rows if row["error_kind"])
    assert found.pop(("images_total", "pseudo_labels", "")) == 26
    assert found.pop(("part_seconds_total", "pseudo_labels", "")) > 0
    assert found == {
        ("failed_images_total", "pseudo_labels", kind): count for kind, count in kinds.items()
    }


@pytest.mark.skipif(not shutil.which("prometheus"), reason="no prometheus here")
def test_every_panel_of_the_dashboard_shows_what_was_counted(node_of_a_run, tmp_path):
    port, rows = node_of_a_run
    kinds = Counter(row["error_kind"] for row in rows if row["error_kind"])
    seconds = metrics(port)["part_seconds_total", "pseudo_labels", ""]
    stage = ("stage", "pseudo_labels")
    expected = {
        "Images done": {(stage,): 26},
        "Images that failed": {(("kind", kind), stage): n for kind, n in kinds.items()},
        "Images per second": {(stage,): 26 / 600},
        "Share that failed": {(stage,): kinds.total() / 26},
        "Seconds of a worker for an image": {(stage,): seconds / 26},
        "Workers at work": {(stage,): seconds / 600},
    }
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    queries = {p["title"]: t["expr"] for p in dashboard["panels"] for t in p["targets"]}
    assert {*queries} == {*expected}
    with prometheus(tmp_path, f"127.0.0.1:{port}") as (process, ask):
        wait_for(lambda: ask("ray_saff_part_seconds_total"), process, seconds=60)
        for title, query in queries.items():
            for name, value in {"stage": ".*", "session": ".*", "__range": "6h"}.items():
                query = query.replace(f"${name}", value)
            assert ask(query) == pytest.approx(expected[title]), title
