"""Where an export writes to, and what it counts while it does."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar

from saff.errors import StorageError
from saff.exports.results import Result
from saff.picture_export import ExportSummary
from saff.rows import has_foreground
from saff.storage import Folder
from saff.targets import TargetFolder

Described = TypeVar("Described")


class Sink:
    """Files of one part of an export.

    Parameters
    ----------
    to : Folder
        Of the whole export.
    summary : ExportSummary
        Counts what is written and what is left out.
    replace : bool
        Replace files that exist; otherwise only a file with the same content is no hindrance.

    Attributes
    ----------
    names : list of str
        Files that were written.
    """

    def __init__(self, to: Folder, summary: ExportSummary, *, replace: bool = False) -> None:
        self.to, self.summary = to, summary
        self.names: list[str] = []
        self._folder = TargetFolder(to, overwrite=replace)

    def described(
        self, results: Iterable[Result], describe: Callable[[Result], Described]
    ) -> Iterator[tuple[Result, Described]]:
        """Describe each result; one that cannot be described is counted with the reason."""
        for result in results:
            try:
                description = describe(result)
            except (StorageError, ValueError) as error:  # a damaged map, an id that does not fit
                self.summary.refuse(result.image_id, str(error))
            else:
                yield result, description

    def count(self, result: Result) -> None:
        """Count a result as written."""
        self.summary.written += 1
        self.summary.nothing_found += not has_foreground(result.row)

    def write_files(self, result: Result, files: Mapping[str, bytes]) -> None:
        """Write the files of one result, and count it, or the reason why one was not written."""
        for name, data in files.items():
            if reason := self._folder.write(name, data):
                self.summary.refuse(result.image_id, reason)
                return
            self.names.append(name)
        self.count(result)

    @contextmanager
    def whole(self, name: str) -> Iterator[str]:
        """Give a local path to write to; what it holds at the end becomes the file ``name``."""
        self.names.append(name)
        below, _, last = name.rpartition("/")
        with (self.to / below if below else self.to).replacing(last) as path:
            yield path

    def close(self) -> None:
        """Raise what a store has refused if it has taken nothing at all."""
        self._folder.close()


class Format(Protocol):
    """A format of an export: one part of results in, one or several files out.

    Attributes
    ----------
    needs_photograph : bool
        Whether the files hold the photographs as well.
    """

    needs_photograph: bool

    def write_part(self, results: Iterable[Result], part: str, sink: Sink) -> None:
        """Write the files of a part; equal results give equal bytes.

        Parameters
        ----------
        results : iterable of Result
            Those of the part, in its order.
        part : str
            Name of the part without its extension: ``"part-0000007"``.
        sink : Sink
            Takes the files, and counts.
        """
        ...

    def targets(self, part: str, stems: Iterable[str]) -> Iterator[str]:
        """Names of the files that a part may become, to see that none is an input of the run."""
        ...

    def finish(self, parts: list[str], sink: Sink) -> list[str]:
        """Write the files that the whole export has once, and return their names.

        Parameters
        ----------
        parts : list of str
            All parts, written.
        sink : Sink
            Takes the files.
        """
        ...
