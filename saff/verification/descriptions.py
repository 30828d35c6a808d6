"""The run.json of an output, its networks and its stages: what is wrong, and what does not fit."""

import hashlib
import json
from collections.abc import Iterator, Sequence

from saff import layout
from saff.errors import SettingsError
from saff.layout import LEARNABLE, ROUND_LABELS, Stage, run_file
from saff.runs import with_digest
from saff.shards import Row
from saff.storage import Folder, with_brief_retries
from saff.verification.files import on_disk

WEIGHTS = "weights.pt"  # of a trained network, as saff.trained writes it; that module needs torch


def description(folder: Folder) -> tuple[Row, str]:
    """Read the run.json of an output, or of a stage in it.

    Returns
    -------
    run : dict
        Its content; empty if it is damaged.
    fault : str
        What is wrong with it; empty if nothing is.
    """
    name = run_file(folder)
    with with_brief_retries(folder.uri):
        text = folder.read(name) if folder.exists(name) else None
    if text is None:
        return {}, "is missing"
    try:
        run = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {}, f"is damaged: {error}"
    if not isinstance(run, dict):
        return {}, "is damaged: expected a JSON object"
    content = {name: value for name, value in run.items() if name not in ("digest", "source")}
    if run.get("digest") != with_digest(content)["digest"]:
        return run, "has a digest that is not that of its content: one of them was changed"
    return run, ""


def description_faults(
    output: Folder, stages: Sequence[str], network: Folder | None = None
) -> Iterator[str]:
    """What is wrong with the run.json of an output, and with those of its stages."""
    if fault := description(output)[1]:
        yield f"{output.uri}/run.json: {fault}"
    for stage in stages:
        home, _, name = stage.rpartition("/")
        if name == Stage.PREDICTIONS:
            round_of = output / home if home else output
            yield from _round_faults(output, round_of, None if home else network)
        elif name == ROUND_LABELS:
            yield from _label_faults(output / home)


def _round_faults(output: Folder, home: Folder, network: Folder | None) -> Iterator[str]:
    """What is wrong with the run.json of a round's network, and of its predictions."""
    trained, predictions = layout.network(home), home / Stage.PREDICTIONS
    for folder in (trained, predictions):
        with with_brief_retries(folder.uri):
            if not folder.names(""):  # whatever is in it
                continue
        run, fault = description(folder)
        if fault:
            yield f"{folder.uri}/{run_file(folder)}: {fault}"
        if folder == predictions:
            yield from _network_faults(run, predictions, trained, network)
        elif not fault:
            yield from _learning_faults(run, trained, output)


def _learning_faults(run: Row, trained: Folder, output: Folder) -> Iterator[str]:
    """Whether a network has learnt from the labels of the output."""
    labels = run.get("labels")
    stage = labels.get("stage") if isinstance(labels, dict) else None
    if not (isinstance(stage, str) and LEARNABLE.fullmatch(stage)):
        yield f"{trained.uri}/run.json: does not say which labels the network has learnt from"
        return
    there, fault = description(output if stage == Stage.PSEUDO_LABELS else output / stage)
    if not fault and run["labels"].get("digest") != there["digest"]:
        yield f"{trained.uri}/run.json: the network has not learnt from the {stage} of this output"


def _label_faults(home: Folder) -> Iterator[str]:
    """What is wrong with the run.json of labels that were made from predictions."""
    labels, predictions = home / ROUND_LABELS, home / Stage.PREDICTIONS
    run, fault = description(labels)
    there, other = description(predictions)
    if fault:
        yield f"{labels.uri}/{run_file(labels)}: {fault}"
    elif not other and run.get("predictions") != there["digest"]:
        name = f"{labels.uri}/{run_file(labels)}"
        yield f"{name}: the labels are not of the predictions {predictions.uri}"


def _network_faults(
    run: Row, predictions: Folder, trained: Folder, network: Folder | None
) -> Iterator[str]:
    """Whether predictions come from the network of the output."""
    folder = layout.network(network) if network else trained
    with with_brief_retries(folder.uri):
        if not folder.exists(WEIGHTS):
            if network:
                raise SettingsError(f"there is no trained network at {folder.uri}")
            return
    with on_disk(folder, WEIGHTS) as path, open(path, "rb") as file:
        whole = hashlib.sha256()
        while chunk := file.read(2**20):
            whole.update(chunk)
    if run.get("network") != whole.hexdigest():
        yield (
            f"{predictions.uri}/{run_file(predictions)}: the predictions are not of the network "
            f"{folder.uri}/{WEIGHTS}"
        )
