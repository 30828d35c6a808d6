"""The Grafana dashboard shows what the workers count, and nothing else."""

import json
import re
from pathlib import Path

import pytest

from saff.cluster.metrics import COUNTERS

DASHBOARD = json.loads((Path(__file__).parents[1] / "docs" / "grafana.json").read_text())
QUERIES = {p["title"]: t["expr"] for p in DASHBOARD["panels"] for t in p["targets"]}
VARIABLES = {v["name"]: v.get("definition", "") for v in DASHBOARD["templating"]["list"]}
OF_RAY = {"SessionName"}  # a label that Ray gives every metric


def used(text):
    return set(re.findall(r"\bray_(saff_\w+)_total\b", text))


def test_it_uses_every_counter_and_no_other_metric():
    everything = " ".join([*QUERIES.values(), *VARIABLES.values()])
    assert used(everything) == {*COUNTERS}
    assert {*re.findall(r"\b\w+_(?:total|bucket|count|sum)\b", everything)} == {
        f"ray_{name}_total" for name in COUNTERS
    }


@pytest.mark.parametrize("title", QUERIES)
def test_a_panel_asks_for_labels_that_its_counters_have(title):
    query = QUERIES[title]
    known = set.intersection(*({*COUNTERS[name]["tag_keys"]} for name in used(query)))
    grouped = [
        label.strip() for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(",")
    ]
    shown = re.findall(r"\{\{(\w+)\}\}", json.dumps(panel(title)["targets"]))
    assert {*grouped, *shown} <= known
    assert {*re.findall(r"(\w+)=~", query)} <= known | OF_RAY


def panel(title):
    (found,) = (p for p in DASHBOARD["panels"] if p["title"] == title)
    return found


def test_variables_are_defined_and_panels_do_not_overlap():
    asked = {*re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"]))} - {"__range"}
    assert asked == {*VARIABLES}
    cells = [
        (column, row)
        for place in (p["gridPos"] for p in DASHBOARD["panels"])
        for column in range(place["x"], place["x"] + place["w"])
        for row in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len({*cells})
    assert max(column for column, _ in cells) < 24
