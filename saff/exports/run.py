"""An export of a run: one part of results in, one file or some files out; resumable.

A folder of an export belongs to one export.  ``_export/run.json`` in it says what decides its
content; ``_export/part-0000007.json`` that the files of a part are whole, from which version of the
part they were made, and how many images they hold.  So the same command again does what is left,
and a part whose results have changed since is done again.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import saff
from saff.access import ANYTHING, Access
from saff.errors import SettingsError, StorageError
from saff.exports import load_format
from saff.exports.results import Result, Settings
from saff.exports.sink import Sink
from saff.ids import is_safe_id
from saff.layout import PART_SUFFIX, Stage
from saff.lease import leased
from saff.manifests import listed_columns
from saff.marks import Mark, Only, digest, read_marks
from saff.overwriting import refuse_inputs
from saff.photographs import Photographs
from saff.picture_export import ExportSummary, PictureNames, columns_of_mask, without_extension
from saff.plan import WHOLE, Plan, Share
from saff.progress import Progress
from saff.rows import parts_of, with_answer
from saff.runs import claim, is_claimed, read_run, stage_digest
from saff.shards import Row, count_rows, read_all_rows
from saff.sources import files_below
from saff.storage import Folder, is_folder, read_each, with_brief_retries

RECORDS = "_export"  # in the folder of an export: what is done
RECORDED = {"version", "complete", "left_out", "files", *ExportSummary().counts()}
FINISHED = "_finished.json"  # in it: files that the export has once
LEASE = "export"  # name of the lease on such a folder
COLUMNS = ["image_id", "uri", "sha256", "height", "width", "quality", "error_kind"]
OTHER_FOLDER = "name another folder, or replace that export with --overwrite"
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """An export of a stage into a folder of its own.

    Attributes
    ----------
    output : Folder
        A run.
    to : Folder
        Where to; made if it does not exist.
    format : str
        One of :data:`saff.exports.FORMATS`.
    stage : str
        ``"pseudo_labels"`` or ``"predictions"``.
    settings : Settings
        Threshold and the like.
    matting : bool
        Give cut-outs soft edges.
    only : Only
        Images to export, by the marks of :mod:`saff.marks`.
    overwrite : bool
        Replace what another export has left in the folder.
    access : Access
        What the addresses of the images may name.
    """

    output: Folder
    to: Folder
    format: str
    stage: str = Stage.PSEUDO_LABELS
    settings: Settings = field(default_factory=Settings)
    matting: bool = False
    only: Only = Only.ALL
    overwrite: bool = False
    access: Access = ANYTHING

    @property
    def records(self) -> Folder:
        """Folder that says what is done."""
        return self.to / RECORDS

    def claim(self) -> None:
        """Bind the folder to this export, or check that it is bound to it.

        Raises
        ------
        SettingsError
            If it holds other files, belongs to another export, or a file of it would be written
            over an input of the run.
        """
        load_format(self.format, matting=self.matting)
        run = self._description()
        parts_of(self.output, self.stage)
        self._columns_of_mask()
        if self.overwrite and not self._is_same(run):
            self._forget()
        elif not is_claimed(self.records, run, OTHER_FOLDER):
            self._refuse_files()
        refuse_inputs(self.output, self.stage, self._targets)
        claim(self.records, run, OTHER_FOLDER)

    def _columns_of_mask(self) -> list[str]:
        return columns_of_mask(self.output, self.stage, self.settings.threshold, self.format)

    def _description(self) -> Row:
        """What decides the content of the files, beside the results."""
        return {
            "saff": saff.__version__,
            "format": self.format,
            "matting": self.matting,
            "only": str(self.only),
            "stage": str(self.stage),
            "images": str(read_run(self.output).get("source", "")),
            "results": stage_digest(self.output, self.stage),
            **asdict(self.settings),
        }

    def _forget(self) -> None:
        """Remove the files of the export that was here, then what says that they are done."""
        for name in self.records.names(".json"):
            for file in _parsed(self.records.read(name)).get("files", ()):
                self.to.remove(file)
            self.records.remove(name)

    def _is_same(self, run: Row) -> bool:
        try:
            return is_claimed(self.records, run)
        except (SettingsError, StorageError):  # of another export, of another version, damaged
            return False

    def _refuse_files(self) -> None:
        """Refuse a folder that holds files of somebody else's."""
        with with_brief_retries(self.to.uri):
            if not is_folder(self.to.fs, self.to.path):
                return
            found = next(files_below(self.to.fs, self.to.path), None)
        if found is not None and not self.overwrite:
            raise SettingsError(
                f"{self.to.uri} holds files that are not of this export, {found} among them; name "
                "a new folder, or replace files of the same names with --overwrite"
            )

    def _targets(self) -> Iterator[str]:
        form, ids = load_format(self.format, matting=self.matting), self._ids()
        names = PictureNames(chain.from_iterable(ids.values()))
        for part, found in ids.items():
            for name in form.targets(_stem(part), map(names.stem, found)):
                yield f"{self.to.uri}/{name}"

    # What is left to do

    def plan(self, share: Share = WHOLE) -> Plan:
        """Find the parts of results whose files are missing, incomplete or of an older version."""
        parts = [name for name in parts_of(self.output, self.stage) if share.holds(name)]
        counts = read_each(count_rows, self.output / self.stage, parts)
        rows = {part: count for part, (count, _) in zip(parts, counts, strict=True)}
        written = self._written(parts)
        left = [part for part in parts if not written.get(part, {}).get("complete")]
        done = set(parts).difference(left)
        return Plan(
            images=sum(rows.values()),
            done=sum(rows[part] for part in done),
            failed=sum(written[part]["left_out"] for part in done),
            parts=left,
            left=sum(rows[part] for part in left),
            verb="exported",
        )

    def _written(self, parts: list[str]) -> dict[str, Record]:
        """Records of the parts whose files are there and were made from the results of today."""
        found = self._recorded(parts)
        versions = read_each(Folder.version, self.output / self.stage, found)
        marked = self._marked()
        return {
            part: record
            for (part, record), version in zip(found.items(), versions, strict=True)
            if record["version"] == [*version, marked]
        }

    def _marked(self) -> str:
        """Digest of the marks that decide which images are exported; empty if none does."""
        if self.only is Only.ALL:
            return ""
        wanted = Mark.ACCEPTED if self.only is Only.ACCEPTED else Mark.REJECTED
        return digest(i for i, mark in read_marks(self.output).items() if mark is wanted)

    def tasks(self, parts: Iterable[str]) -> list[Row]:
        """Describe the work on some parts, as :meth:`do_part` takes it."""
        ids = self._ids()
        names = PictureNames(chain.from_iterable(ids.values()))
        return [
            {"part": part, "keep_extension": json.dumps(_kept(names, ids[part]))} for part in parts
        ]

    def _ids(self) -> dict[str, list[str]]:
        """Ids of the images that may get a file, by part."""
        folder, columns = self.output / self.stage, ["image_id", "error_kind"]
        parts = parts_of(self.output, self.stage)
        read = read_each(lambda where, name: read_all_rows(where, name, columns), folder, parts)
        return {
            part: [
                row["image_id"]
                for row in rows
                if row["error_kind"] is None and is_safe_id(row["image_id"])
            ]
            for part, rows in zip(parts, read, strict=True)
        }

    def _recorded(self, parts: Iterable[str]) -> dict[str, Record]:
        """Records of those parts that have one."""
        parts = list(parts)
        if len(parts) == 1:  # a task: it need not list those of all others
            there = {name for name in map(_record_name, parts) if self.records.exists(name)}
        else:
            there = set(self.records.names(".json"))
        found = [part for part in parts if _record_name(part) in there]
        read = read_each(lambda where, name: where.read(_record_name(name)), self.records, found)
        records = zip(found, map(_parsed, read), strict=True)
        return {part: record for part, record in records if record.keys() >= RECORDED}

    # A part

    def do_part(self, task: Row) -> Row:
        """Write the files of a part, whole or not at all, and then the record of it."""
        part = task["part"]
        stage, known = self.output / self.stage, self._recorded([part])
        version = [*stage.version(part), self._marked()]
        columns = with_answer([*COLUMNS, *self._columns_of_mask()], self.stage)
        rows = [{"confidence": None} | row for row in read_all_rows(stage, part, columns)]
        summary = ExportSummary(photographs=Photographs(self.access))
        sink = Sink(self.to, summary, replace=self.overwrite or bool(known))
        form = load_format(self.format, matting=self.matting)
        kept = set(json.loads(task["keep_extension"]))
        form.write_part(
            self._results(part, rows, kept, form.needs_photograph, summary), _stem(part), sink
        )
        sink.close()
        for name in {*known.get(part, {}).get("files", ())}.difference(sink.names):
            self.to.remove(name)  # of an image that is left out now
        record = {"version": version, "complete": summary.complete, "left_out": summary.left_out}
        record["files"] = sink.names
        self.records.write(_record_name(part), _json_bytes(record | summary.counts()))
        failed = summary.left_out - summary.not_chosen
        return {"part": part, "images": len(rows), "failed": failed, "kept": 0}

    def _results(
        self,
        part: str,
        rows: Iterable[Row],
        kept: set[str],
        with_photograph: bool,
        summary: ExportSummary,
    ) -> Iterator[Result]:
        """Results of the rows that have one; the others are counted."""
        further = listed_columns(self.output, part)
        marks = {} if self.only is Only.ALL else read_marks(self.output)
        for row in rows:
            if summary.leaves_out(row, marks, self.only):
                continue
            photograph = summary.photographs.read_file(row) if with_photograph else b""
            if photograph is not None:
                image_id = row["image_id"]
                stem = image_id if image_id in kept else without_extension(image_id)
                columns = further.get(image_id, {})
                yield Result(row, stem, self.settings, photograph, columns)

    # The end

    def finish(self) -> list[str]:
        """Write the files that the export has once, if all of its parts are written."""
        parts = parts_of(self.output, self.stage)
        written = self._written(parts)
        if written.keys() != set(parts):
            return []
        made_from = digest(f"{part} {record['version']}" for part, record in written.items())
        if self.records.exists(FINISHED):
            finished = _parsed(self.records.read(FINISHED))
            if finished.get("made_from") == made_from:
                return list(finished["files"])
        sink = Sink(self.to, ExportSummary(), replace=True)
        form = load_format(self.format, matting=self.matting)
        names = form.finish([_stem(part) for part in parts], sink)
        self.records.write(FINISHED, _json_bytes({"files": names, "made_from": made_from}))
        return names

    def summary(self) -> ExportSummary:
        """Count what the parts that were written hold, and what they leave out."""
        total = ExportSummary()
        for record in self._recorded(parts_of(self.output, self.stage)).values():
            total.add(record)
        return total


def _stem(part: str) -> str:
    return part.removesuffix(PART_SUFFIX)


def _record_name(part: str) -> str:
    return f"{_stem(part)}.json"


def _parsed(data: bytes) -> Record:
    """What a record says; nothing where it is damaged, so that its part is done again."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _json_bytes(content: Any) -> bytes:
    return (json.dumps(content) + "\n").encode()


def _kept(names: PictureNames, ids: Iterable[str]) -> list[str]:
    """Ids whose files keep the extension, because others would have the same name."""
    return [i for i in ids if names.stem(i) != without_extension(i)]


def export_here(export: Export) -> list[str]:
    """Do a whole export in this process, part after part.

    Returns
    -------
    names : list of str
        Files that the export has once, such as a merged one.
    """
    export.claim()
    todo = export.plan()
    if todo.parts:
        with leased(export.records, LEASE) as lease, Progress("export", todo.left) as progress:
            for task in export.tasks(todo.parts):
                done = export.do_part(task)
                progress.advance(done["images"], done["failed"])
                lease.check()
    return export.finish()
