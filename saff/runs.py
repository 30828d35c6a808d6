"""run.json: what decides the content of an output, which belongs to one run alone."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import saff
from saff import layout
from saff.errors import SettingsError, StorageError
from saff.layout import PART_SUFFIX, SOURCE, Stage, run_file
from saff.shards import Row
from saff.storage import Folder, with_brief_retries

OTHER_OUTPUT = "choose another output, or the settings it has"
RESTART = "choose the settings it has, another output, or start again with --restart"


def with_digest(content: Row) -> Row:
    """Add ``digest``, the SHA-256 that sums up what decides a result, in hexadecimal."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return content | {"digest": digest}


def claim(output: Folder, run: dict[str, Any], remedy: str = OTHER_OUTPUT) -> None:
    """Bind an output to a run, or check that it is bound to the same one.

    Parameters
    ----------
    output : Folder
        The run's output.
    run : dict
        What decides the content; ``digest`` sums it up, ``source`` says which images.
    remedy : str
        What a person can do if it belongs to another run.

    Raises
    ------
    SettingsError
        If the output belongs to another run, naming the difference, or cannot be written.
    """
    if is_claimed(output, run, remedy):
        return
    with with_brief_retries(output.uri):
        try:
            output.create(run_file(output), (json.dumps(run, indent=2) + "\n").encode())
        except FileExistsError:  # another job was faster
            if not is_claimed(output, run, remedy):
                raise


def is_claimed(output: Folder, run: dict[str, Any], remedy: str = OTHER_OUTPUT) -> bool:
    """Whether an output is bound to a run; False for a new one.

    Raises
    ------
    SettingsError
        If it is bound to another run.
    """
    other = _load_run(output)
    if other is None and "source" in run:
        is_source_claimed(output, run["source"])
    if other is not None and (differences := sorted(_differences(other, run))):
        raise SettingsError(
            f"{output.uri} belongs to another run: {'; '.join(differences)}; {remedy}"
        )
    return other is not None


def read_run(output: Folder) -> dict[str, Any]:
    """Read an output's run.json.

    Raises
    ------
    SettingsError
        If there is none, so that the folder is no run, or it is damaged.
    """
    run = _load_run(output)
    if run is None:
        raise SettingsError(
            f"{output.uri} is not the output of a run: it has no {run_file(output)}"
        )
    return run


def forget(stage: Folder) -> None:
    """Remove the results of a stage, and then what bound it to a run."""
    for name in (*stage.names(PART_SUFFIX), run_file(stage)):
        stage.remove(name)


def stage_digest(output: Folder, stage: str) -> str:
    """Digest of the results of a stage: pseudo labels have that of the run, others their own."""
    run = _load_run(output if stage == Stage.PSEUDO_LABELS else output / stage) or {}
    return str(run.get("digest", ""))


def claim_source(output: Folder, source: str) -> None:
    """Bind an output's images to their source before there is a run, or check that they are.

    Raises
    ------
    SettingsError
        If they are bound to another source.
    """
    if not is_source_claimed(output, source):
        with with_brief_retries(output.uri):
            layout.manifest(output).create(SOURCE, (json.dumps({"source": source}) + "\n").encode())


def is_source_claimed(output: Folder, source: str) -> bool:
    """Whether an output's images are bound to a source; False for a new output.

    Raises
    ------
    SettingsError
        If they are bound to another source.
    """
    there = (_load_run(output) or {}).get("source") or _source_of(output)
    if there is not None and there != source:
        raise SettingsError(
            f"the images of {output.uri} come from {there}, and these from {source}; name "
            "another output"
        )
    return there is not None


def _source_of(output: Folder) -> str | None:
    """Source of the images that were taken in before there was a run."""
    folder = layout.manifest(output)
    with with_brief_retries(folder.uri):
        text = folder.read(SOURCE) if folder.exists(SOURCE) else None
    try:
        return None if text is None else str(json.loads(text)["source"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise StorageError(f"{folder.uri}/{SOURCE} is damaged: {error}") from error


def _load_run(output: Folder) -> dict[str, Any] | None:
    name = run_file(output)
    with with_brief_retries(output.uri):
        text = output.read(name) if output.exists(name) else None
    if text is None:
        return None
    try:
        run = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{output.uri}/{name} is damaged: {error}") from error
    if not isinstance(run, dict):
        raise StorageError(f"{output.uri}/{name} is damaged: expected a JSON object")
    _refuse_other_version(run.get("saff", saff.__version__), f"{output.uri}/{name}")
    return run


def _refuse_other_version(written_by: Any, name: str) -> None:
    """Refuse a run of another minor version, whose settings may have other names or meanings."""
    series, own = (str(v).split(".")[:2] for v in (written_by, saff.__version__))
    if series != own:
        raise SettingsError(
            f"{name} was written by saff {written_by}, and this is saff {saff.__version__}, whose "
            "settings differ; name another output, or continue this one with "
            f"pip install 'saff=={'.'.join(series)}.*'"
        )


def _differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {*there, *here} - {"digest"}:
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
    elif there != here:
        before, now = ("not set" if value is None else repr(value) for value in (there, here))
        yield f"{name} is {before} in that run and {now} in this one"
