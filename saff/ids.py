"""Which images are known: as many ids as the disk holds, whatever the memory."""

import sqlite3
from collections.abc import Iterable


class Ids:
    """Image ids of an output, and those that a source has named; in a temporary file.

    SQLite keeps a few MB of it in memory and removes the file when the object goes.
    """

    def __init__(self) -> None:
        self._table = sqlite3.connect("").cursor()
        self._table.execute("PRAGMA journal_mode = OFF")  # nobody will read it after a crash
        self._table.execute(
            "CREATE TABLE ids (id TEXT PRIMARY KEY, named INTEGER NOT NULL) WITHOUT ROWID"
        )

    def know(self, ids: Iterable[str]) -> None:
        """Take in ids that the output has."""
        self._table.executemany("INSERT OR IGNORE INTO ids VALUES (?, 0)", ((i,) for i in ids))

    def name(self, image_id: str) -> bool:
        """Note that the source names an image; say whether the output does not know it yet.

        Raises
        ------
        KeyError
            If the source named it before.
        """
        if self._table.execute("INSERT OR IGNORE INTO ids VALUES (?, 1)", (image_id,)).rowcount:
            return True
        first = self._table.execute(
            "UPDATE ids SET named = 1 WHERE id = ? AND named = 0", (image_id,)
        )
        if not first.rowcount:
            raise KeyError(image_id)
        return False


def is_safe_id(image_id: object) -> bool:
    """Whether an image id is a relative path that stays inside a folder it is joined to."""
    if not isinstance(image_id, str) or not image_id or "\0" in image_id:
        return False
    return not any(step in ("", ".", "..") for step in image_id.split("/"))
