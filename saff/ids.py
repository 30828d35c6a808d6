"""Which images are known: as many ids as the disk holds, whatever the memory."""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter


class Ids:
    """Images of an output, and those that a source has named; in a temporary file.

    SQLite keeps a few MB of it in memory and removes the file when the object goes.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._table = sqlite3.connect("").cursor()
        self._table.execute("PRAGMA journal_mode = OFF")  # nobody will read it after a crash
        self._table.execute(
            "CREATE TABLE ids (id TEXT PRIMARY KEY, named INTEGER, part INTEGER, uri BLOB) "
            "WITHOUT ROWID"
        )
        self._table.execute("CREATE TABLE changed (part INTEGER, id TEXT, uri TEXT)")

    def know(self, part: str, images: Iterable[tuple[str, str]]) -> None:
        """Take in the ids and addresses that a part of the output's manifest has."""
        number = len(self._parts)
        self._parts.append(part)
        self._table.executemany(
            "INSERT OR IGNORE INTO ids VALUES (?, 0, ?, ?)",
            ((image_id, number, _digest(uri)) for image_id, uri in images),
        )

    def name(self, image_id: str, uri: str) -> bool:
        """Note that the source names an image; say whether the output does not know it yet.

        An address that differs from the one that the output knows is remembered.

        Raises
        ------
        KeyError
            If the source named it before.
        """
        table, digest = self._table, _digest(uri)
        fresh = table.execute(
            "INSERT OR IGNORE INTO ids VALUES (?, 1, NULL, ?)", (image_id, digest)
        )
        if fresh.rowcount:
            return True
        found = table.execute("SELECT named, part, uri FROM ids WHERE id = ?", (image_id,))
        named, part, known = found.fetchone()
        if named:
            raise KeyError(image_id)
        table.execute("UPDATE ids SET named = 1 WHERE id = ?", (image_id,))
        if known != digest and uri:
            table.execute("INSERT INTO changed VALUES (?, ?, ?)", (part, image_id, uri))
        return False

    def changed(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Parts with images whose addresses differ, and the source's address of each."""
        found = self._table.execute("SELECT part, id, uri FROM changed ORDER BY part, id")
        for part, rows in groupby(found, itemgetter(0)):
            yield self._parts[part], {image_id: uri for _, image_id, uri in rows}


def _digest(uri: str) -> bytes:
    return hashlib.blake2b(uri.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def is_safe_id(image_id: object) -> bool:
    """Whether an image id is a relative path that stays inside a folder it is joined to."""
    if not isinstance(image_id, str) or not image_id or "\0" in image_id:
        return False
    return not any(step in ("", ".", "..") for step in image_id.split("/"))
