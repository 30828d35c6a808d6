"""Which of the large columns of its pseudo labels a run keeps: the default, or a choice.

A column of the default that is not kept is null in every row, and the embedding, which is in no
default, is no column where it is not kept.  ``run.json`` names those that are kept, where it
is another choice, so that whoever needs another one says so at once.
"""

from collections.abc import Collection, Iterable
from enum import Enum

from saff.errors import SettingsError
from saff.layout import Stage
from saff.runs import read_run
from saff.shards import Row
from saff.storage import Folder


class Large(str, Enum):
    """Columns that make up nearly all of a row, from the smallest on."""

    EMBEDDING = "embedding"
    PSEUDO_LABEL = "pseudo_label"
    FEATURES = "features"
    CONFIDENCE = "confidence"
    SUPERPIXELS = "superpixels"

    __str__ = str.__str__


BY_DEFAULT = frozenset(Large) - {Large.EMBEDDING}


def check_kept(keep: Iterable[Large]) -> frozenset[Large]:
    """Check a choice of columns; none chosen: the default.

    Raises
    ------
    SettingsError
        If no mask could be made of what is kept.
    """
    kept = frozenset(keep) or BY_DEFAULT
    if not kept & {Large.PSEUDO_LABEL, Large.CONFIDENCE}:
        raise SettingsError(
            f"--keep {' --keep '.join(sorted(kept))} keeps no mask; add pseudo_label or confidence"
        )
    return kept


def describe_kept(kept: frozenset[Large]) -> Row:
    """What run.json says of it: nothing where it is the default."""
    return {} if kept == BY_DEFAULT else {"keep": sorted(map(str, kept))}


def read_kept(output: Folder) -> frozenset[Large]:
    """Columns that a run keeps."""
    names: Collection[str] = read_run(output).get("keep", BY_DEFAULT)
    return frozenset(column for column in Large if column in names)


def require_columns(output: Folder, stage: str, columns: Iterable[str], user: str) -> None:
    """Refuse what needs a column that a run does not keep.

    Parameters
    ----------
    output : Folder
        A run.
    stage : str
        Pseudo labels are those that may lack columns.
    columns : iterable of str
        What is needed; other columns than the large ones are always there.
    user : str
        What needs them, as a sentence begins with it.

    Raises
    ------
    SettingsError
        If the run does not keep one of them.
    """
    if stage != Stage.PSEUDO_LABELS:
        return
    kept = read_kept(output)
    if missing := [column for column in Large if column in {*columns} and column not in kept]:
        raise SettingsError(
            f"{user} needs the {missing[0]} of the pseudo labels, and {output.uri} keeps only "
            f"{', '.join(sorted(kept))}; label into another output with --keep {missing[0]}, or "
            "without --keep"
        )


def without_others(row: Row, kept: frozenset[Large]) -> Row:
    """Give a row in which large columns that are not kept are null."""
    return row | dict.fromkeys(map(str, BY_DEFAULT - kept)) if kept != BY_DEFAULT else row
