"""Proving that an output is whole, or that two outputs hold the same, part by part.

Nothing that is stored is believed.  What is damaged is a fault, reported in a line; only a storage
that does not answer, or refuses, is an error.
"""

import json
import shlex
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, TypeAlias

from saff import layout
from saff.access import ANYTHING, Access
from saff.errors import SettingsError
from saff.evaluation import one_by_one
from saff.layout import PART_SUFFIX, ROUND_LABELS, RUN, Stage, begun_rounds, part_name
from saff.progress import Progress
from saff.shards import Row
from saff.sources import source_option
from saff.storage import Folder, with_brief_retries
from saff.verification.catalogue import Catalogue
from saff.verification.descriptions import description, description_faults
from saff.verification.differences import describe_difference, measure_differences
from saff.verification.findings import Findings, Totals, Verdict, counted, shown
from saff.verification.parts import VerifyPart

MOST_DIFFERENCES = 10  # described; the others are counted
MOST_MEASURED = 1000  # images whose maps are compared pixel by pixel

Mapper: TypeAlias = Callable[[Any, list[str]], Iterable[dict[str, Any]]]


def verify(
    output: Folder,
    other: Folder | None = None,
    *,
    stage: str | None = None,
    images: bool = False,
    network: Folder | None = None,
    map_parts: Mapper = one_by_one,
    access: Access = ANYTHING,
) -> Verdict:
    """Prove that an output is whole; with another one, also that both hold the same.

    Parameters
    ----------
    output : Folder
        A run's output.
    other : Folder, optional
        Another one, to be compared image by image, however its images are split over parts.
    stage : str, optional
        ``"pseudo_labels"`` or ``"predictions"``; default: those that are there, and those of the
        rounds before the last.
    images : bool
        Read each image again and compare its SHA-256: costs a read of the corpus.
    network : Folder, optional
        The run whose network made the predictions; default: the output, where it has one.
    map_parts : callable
        Applies a task to parts: :func:`saff.evaluation.one_by_one`, or
        :func:`saff.cluster.map_parts` over a cluster.
    access : Access
        What the addresses of the images may name.

    Returns
    -------
    verdict : Verdict
        What was found.

    Raises
    ------
    SettingsError
        If a folder is no output, ``network`` has none, or a storage refuses.
    """
    outputs = [output] if other is None else [output, other]
    runs = [_run_of(folder) for folder in outputs]
    stages = (stage,) if stage else stages_of(outputs, runs)
    if network and Stage.PREDICTIONS not in stages:
        raise SettingsError(f"--network is of predictions, and {output.uri} has none")
    with closing(sqlite3.connect("")) as database:
        catalogue = Catalogue(database)
        found = []
        for number, (folder, run) in enumerate(zip(outputs, runs, strict=True)):
            findings = Findings(folder.uri, stages={name: Totals() for name in stages})
            for fault in description_faults(folder, stages, network):
                findings.faults.add(fault)
            for result in _verify_parts(
                findings, VerifyPart(folder, stages, images, access), map_parts
            ):
                _take(findings, result, catalogue, number)
            undone = [name for name, counts in findings.stages.items() if counts.to_do]
            findings.commands = [command(folder, run, name) for name in undone]
            found.append(findings)
        if other is None:
            return Verdict(found)
        differing, first = catalogue.differing(MOST_MEASURED)
        distances = measure_differences(first, catalogue, outputs, stages)
        lines = [
            describe_difference(image_id, catalogue, outputs, stages)
            for image_id in first[:MOST_DIFFERENCES]
        ]
    return Verdict(found, differing, [shown(line) for line in lines], distances)


def _run_of(output: Folder) -> Row:
    """What run.json says, nothing if it is damaged; refuses a folder that is no output."""
    with with_brief_retries(output.uri):
        known = output.exists(RUN) or layout.manifest(output).names(PART_SUFFIX)
    if not known:
        raise SettingsError(f"{output.uri} is not the output of a run: it has no run.json")
    return description(output)[0]


def stages_of(outputs: Sequence[Folder], runs: Sequence[Row]) -> tuple[str, ...]:
    """Stages that outputs hold, in their order, and pseudo labels where a run is to have them."""
    there: set[str] = {Stage.PSEUDO_LABELS} if any("config" in run for run in runs) else set()
    rounds: list[str] = []
    for output in outputs:
        with with_brief_retries(output.uri):
            rounds = max(rounds, begun_rounds(output), key=len)
    known = [f"{home}/{name}" for home in rounds for name in (Stage.PREDICTIONS, ROUND_LABELS)]
    known = [Stage.PSEUDO_LABELS, *known, Stage.PREDICTIONS]
    for output in outputs:
        with with_brief_retries(output.uri):
            there |= {name for name in known if (output / name).names("")}
    return tuple(name for name in known if name in there) or (Stage.PSEUDO_LABELS,)


def _verify_parts(
    findings: Findings, task: VerifyPart, map_parts: Mapper
) -> Iterator[dict[str, Any]]:
    """Compare the listings, then do the parts, on a progress line."""
    output, faults = task.output, findings.faults
    with with_brief_retries(output.uri):
        parts = layout.manifest(output).names(PART_SUFFIX)
        shards = {stage: (output / stage).names(PART_SUFFIX) for stage in task.stages}
    if not parts:
        faults.add(f"{output.uri}/manifest: holds no images")
    for name in (part_name(number) for number in range(len(parts))):
        if name not in parts:
            faults.add(f"{output.uri}/manifest/{name}: is missing, parts are numbered from 0")
    for stage, names in shards.items():
        for name in sorted({*names} - {*parts}):
            faults.add(f"{output.uri}/{stage}/{name}: the manifest has no part of this name")
    if not parts:
        return
    with Progress("verify", len(parts), unit="parts") as progress:
        for number, result in enumerate(map_parts(task, parts), 1):
            yield json.loads(result["found"])
            progress.reach(number, counted(faults.count, "fault"))


def _take(findings: Findings, result: dict[str, Any], catalogue: Catalogue, output: int) -> None:
    """Add what was found in a part."""
    findings.images += result["images"]
    findings.faults.merge(*result["faults"])
    for stage, counts in result["stages"].items():
        findings.stages[stage].add(Totals(*counts))
    for image_id, digests in result["rows"]:
        if there := catalogue.add(output, result["part"], image_id, digests):
            places = " and in ".join(sorted((there, result["part"])))
            line = f"{findings.uri}/manifest: {image_id!r} is in {places}; ids must be unique"
            findings.faults.add(line, places)


def command(output: Folder, run: Row, stage: str) -> str:
    """Command that continues a stage of an output."""
    images = source_option(str(run.get("source", "IMAGES")))
    where = f"--output {shlex.quote(output.uri)}"
    if stage == Stage.PSEUDO_LABELS:
        return f"saff label {images} {where}"
    if stage != Stage.PREDICTIONS:
        return f"saff run {images} {where}"
    new = f" --network RUN {images}" if "network" in run else ""
    return f"saff reinfer {where}{new}"
