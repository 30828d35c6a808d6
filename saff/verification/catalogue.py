"""All images of one or two outputs, on disk: as many as there are, whatever the memory."""

import json
import sqlite3


class Catalogue:
    """Which images outputs hold, with digests of their results; in a temporary database.

    Parameters
    ----------
    database : sqlite3.Connection
        Empty; SQLite keeps a few MB of it in memory.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self.table = database.cursor()
        self.table.execute("PRAGMA journal_mode = OFF")  # nobody will read it after a crash
        self.table.execute(
            "CREATE TABLE images (image_id TEXT, output INTEGER, part TEXT, digests TEXT, "
            "PRIMARY KEY (image_id, output)) WITHOUT ROWID"
        )

    def add(self, output: int, part: str, image_id: str, digests: list[str | None]) -> str:
        """Take in an image; give the part that has it already, or empty text."""
        row = (image_id, output, part, json.dumps(digests))
        if self.table.execute("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?)", row).rowcount:
            return ""
        return str(self.find(image_id)[output][0])

    def find(self, image_id: str) -> dict[int, tuple[str, list[str | None]]]:
        """Part and digests of an image in each output that has it."""
        self.table.execute(
            "SELECT output, part, digests FROM images WHERE image_id = ?", (image_id,)
        )
        return {output: (part, json.loads(digests)) for output, part, digests in self.table}

    def differing(self, most: int) -> tuple[int, list[str]]:
        """Count the images that two outputs do not share, and give the first of their ids."""
        self.table.execute(
            "SELECT image_id FROM images GROUP BY image_id "
            "HAVING count(*) < 2 OR min(digests) <> max(digests) ORDER BY image_id"
        )
        first = [image_id for (image_id,) in self.table.fetchmany(most)]
        return len(first) + sum(1 for _ in self.table), first
