"""One part: its manifest and the shard of each stage."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from saff import layout
from saff.access import ANYTHING, Access
from saff.errors import SaffError, StorageError
from saff.kept import BY_DEFAULT, Large, read_kept
from saff.layout import Stage
from saff.manifests import later_addresses
from saff.shards import LISTED, MANIFEST, Row
from saff.storage import Folder, as_storage_error
from saff.verification.files import DamagedError, schema_of, stored_rows
from saff.verification.findings import Faults, Totals
from saff.verification.rows import SHA256, digest, examine, image_fault


@dataclass(frozen=True, slots=True)
class VerifyPart:
    """Verify one part; a callable from ``{"part": name}`` to ``{"found": JSON}``.

    Attributes
    ----------
    output : Folder
        A run's output.
    stages : tuple of str
        Stages to verify.
    images : bool
        Read each image again and compare its SHA-256.
    access : Access
        What the addresses of the images may name.
    """

    output: Folder
    stages: tuple[str, ...]
    images: bool = False
    access: Access = ANYTHING

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Give counts, faults and, for each image of the manifest, a digest of each stage."""
        part, faults = row["part"], Faults()
        counts: dict[str, Totals] = {}
        digests: dict[str, dict[str, str]] = {}
        try:
            manifest = list(stored_rows(layout.manifest(self.output), part, MANIFEST, LISTED))
        except DamagedError as error:  # which images its shards are to hold is not known
            manifest = []
            faults.add(f"{self.output.uri}/manifest/{part}: {error}", part)
        else:
            for stage in self.stages:
                counts[stage], digests[stage] = self._shard(stage, part, manifest, faults)
        rows = []
        for number, image in enumerate(manifest):
            rows.append(
                (image["image_id"], [digests[s].get(image["image_id"]) for s in self.stages])
            )
            if not image["image_id"] or image["uri"] is None:
                line = f"row {number} has no image_id or no uri"
                faults.add(f"{self.output.uri}/manifest/{part}: {line}", part)
        found = {
            "part": part,
            "images": len(manifest),
            "stages": {stage: [c.done, c.failed, c.to_do] for stage, c in counts.items()},
            "faults": [faults.count, faults.first],
            "rows": [row for row in rows if row[0]],
        }
        return {"found": json.dumps(found)}  # text: Ray keeps it as it is

    def _shard(
        self, stage: str, part: str, manifest: list[Row], faults: Faults
    ) -> tuple[Totals, dict[str, str]]:
        """Verify a shard: its counts, and the digest of each image that it is to hold."""
        folder, uris = self.output / stage, self._addresses(part, manifest, faults)
        with as_storage_error(folder.uri):
            if not folder.exists(part):
                return Totals(to_do=len(manifest)), {}
        where, ids, failed = f"{folder.uri}/{part}", [], set()
        kept = self._kept(stage)
        digests: dict[str, str] = {}
        try:
            for number, row in enumerate(stored_rows(folder, part, schema_of(stage))):
                image_id = row["image_id"]
                ids.append(image_id)
                content, wrong = examine(row, kept)
                if image_id in uris:  # others are reported below
                    digests[image_id] = digest(content)
                    wrong += self._source_faults(row, uris[image_id])
                    if row["error_kind"] is not None:
                        failed.add(image_id)
                for fault in wrong:
                    faults.add(f"{where}: row {number} {image_id!r}: {fault}", part)
            for fault in order_faults(ids, [row["image_id"] for row in manifest]):
                faults.add(f"{where}: {fault}", part)
        except DamagedError as error:
            faults.add(f"{where}: {error}", part)
        return Totals(done=len(digests) - len(failed), failed=len(failed)), digests

    def _kept(self, stage: str) -> frozenset[Large]:
        """Large columns in the rows of a stage; the default where run.json cannot say."""
        try:
            return read_kept(self.output) if stage == Stage.PSEUDO_LABELS else BY_DEFAULT
        except SaffError:
            return BY_DEFAULT

    def _addresses(self, part: str, manifest: list[Row], faults: Faults) -> dict[str, list[str]]:
        """Addresses that each image has had: the manifest's, and those it was given later."""
        try:
            later = later_addresses(layout.addresses(self.output), part)
        except StorageError as error:
            faults.add(f"{layout.addresses(self.output).uri}/{part}: {error}", part)
            later = {}
        return {i: [row["uri"], *later.get(i, ())] for row in manifest for i in [row["image_id"]]}

    def _source_faults(self, row: Row, uris: list[str]) -> list[str]:
        if row["uri"] not in uris:
            return ["uri is not that of the manifest"]
        if not (self.images and row["uri"] and SHA256.fullmatch(row["sha256"] or "")):
            return []
        return [fault] if (fault := image_fault(row, self.access)) else []


def order_faults(found: list[str], wanted: list[str]) -> Iterator[str]:
    """How the ids of a shard differ from those of its part of the manifest."""
    have, want = Counter(found), Counter(wanted)
    for image_id in want - have:
        yield f"{image_id!r} is missing"
    for image_id in have - want:
        fault = "occurs twice" if image_id in want else "is not in its part of the manifest"
        yield f"{image_id!r} {fault}"
    if have == want and found != wanted:
        number = next(
            n for n, pair in enumerate(zip(found, wanted, strict=True)) if len({*pair}) > 1
        )
        yield (
            f"row {number} is {found[number]!r}, expected {wanted[number]!r}: "
            "the rows are not in the order of the manifest"
        )
