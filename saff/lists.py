"""Lists of images that a person or a program wrote: CSV and Parquet, read as manifest rows.

A list is read whole or refused, with the number of the line and what stands there: a quote that is
not closed would swallow the lines after it, and nobody would miss them.
"""

import csv
import io
import json
import math
import os
import re
import unicodedata
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from urllib.parse import urljoin

import pyarrow as pa
import pyarrow.parquet as pq

from saff.access import ANYTHING, Access
from saff.addresses import WEB, file_system, locate, plain_uri, redact, split_uri, uri_of
from saff.errors import SaffError, SettingsError
from saff.ids import is_safe_id
from saff.layout import PART_SUFFIX
from saff.shards import MANIFEST, Row
from saff.sources import files_below, not_empty
from saff.storage import is_folder, with_brief_retries, with_retries

DELIMITERS = (",", "\t", ";", "|")
SHOWN = 100  # characters of a line that a message quotes
LONGEST_FIELD = 16 * 2**20  # characters: lists may hold whole pictures beside their addresses
PACKED = {b"\x1f\x8b": "compressed by gzip", b"PK\3\4": "a ZIP file or a workbook of a spreadsheet"}
"""How files begin that are taken for lists, and what they are."""
ADDRESS = re.compile(r"\w+://.+|\S.*\.\w{2,5}")
ROWS_AT_ONCE = 1024
NO_DATA = (".", "_")  # begin the names of what lies among Parquet files and is none of them

Placed = tuple[str, Any, Any, Row]
"""Where a row stands in a list, its image_id, its uri, and further columns that are kept."""


def read_manifest(
    source: str, access: Access = ANYTHING, columns: Sequence[str] = ()
) -> Iterator[Row]:
    """Read manifest rows from a Parquet or CSV file, or a folder of Parquet files.

    Parameters
    ----------
    source : str
        With columns ``image_id`` and ``uri``; others are ignored but for those that are named.  A
        relative ``uri`` counts from the manifest's own folder.
    access : Access
        Which schemes the addresses may have.
    columns : sequence of str
        Further columns to keep: text, numbers or truth values.

    Returns
    -------
    rows : iterator of dict
        ``image_id`` and ``uri``, absolute; ``""`` where the list gives no address, so that the
        image becomes a row with an error; ``columns``, a JSON object, where some are kept.

    Raises
    ------
    SettingsError
        If it is missing or unreadable, lacks a column or rows, or a row of it cannot be meant; the
        message says which.
    """
    fs, path = locate(source)
    path = path.rstrip("/") or "/"
    fs.invalidate_cache()
    with with_brief_retries(source):
        if is_folder(fs, path):
            base, files = path, _tables_below(fs, path, source)
        elif with_retries(fs, fs.isfile, path):
            base, files = path.rpartition("/")[0], [path]
        else:
            raise SettingsError(f"no manifest at {source}")
    if twice := [name for name in MANIFEST.names if name in columns]:
        raise SettingsError(f"{twice[0]} of a list is always kept; name other columns")
    rows = chain.from_iterable(_rows_of(fs, file, source, path, columns) for file in files)
    check = Checker(source, access, lambda uri: _absolute(fs, base, uri))
    return not_empty(map(check, rows), f"the manifest {source} has no rows")


# Which files


def _tables_below(fs: Any, folder: str, source: str) -> list[str]:
    """Parquet files of a folder and of those in it, as partitioned data sets are written."""
    found, others = [], []
    for path in sorted(files_below(fs, folder)):
        inner = path[len(folder.rstrip("/")) + 1 :]
        steps = inner.split("/")
        if any(step.startswith(NO_DATA) for step in steps):
            continue
        if any(step.startswith(tuple(f"{name}=" for name in MANIFEST.names)) for step in steps):
            raise SettingsError(
                f"the manifest {source} is partitioned by image_id or uri ({inner!r}); expected "
                "both as columns of its files"
            )
        suffix = os.path.splitext(inner)[1].lower()
        if suffix == PART_SUFFIX:
            found.append(path)
        elif suffix in (".csv", ".tsv"):
            others.append(inner)
    if others:
        raise SettingsError(
            f"the manifest {source} is a folder that holds {len(others):,} files of text, "
            f"{others[0]!r} the first, and a folder is read for its Parquet files alone; name one "
            "file"
        )
    if not found:
        raise SettingsError(
            f"the manifest {source} is a folder without Parquet files; a folder of images is named "
            "without --manifest"
        )
    return found


def _rows_of(
    fs: Any, path: str, source: str, whole: str, columns: Sequence[str] = ()
) -> Iterator[Placed]:
    """Rows of one file of a list; what is wrong with the file is a SettingsError."""
    name = "" if path == whole else f" of {path[len(whole) + 1 :]}"
    try:
        with fs.open(path, "rb") as file:
            begin = file.read(4)
            file.seek(0)
            is_table = path.lower().endswith(PART_SUFFIX) or begin == b"PAR1"
            rows = _table_rows(file, columns) if is_table else _text_rows(file, columns)
            for where, image_id, uri, further in rows:
                yield where + name, image_id, uri, further
    except ListError as error:
        raise SettingsError(f"the manifest {source}{name} {error}") from error
    except SaffError:
        raise
    except Exception as error:  # damaged files make the reader raise nearly everything
        raise SettingsError(f"the manifest {source}{name} cannot be read: {error}") from error


class ListError(Exception):
    """What is wrong in a list: the end of a sentence that begins with its name."""


def _wanted(columns: Sequence[str], further: Sequence[str] = ()) -> list[int]:
    """Places of the columns image_id and uri, and of further ones."""
    names = [name.strip() for name in columns]
    wanted = [*MANIFEST.names, *further]
    if missing := [name for name in wanted if name not in names]:
        raise ListError(
            f"has no column {' and no column '.join(missing)}; it has "
            f"{', '.join(map(repr, columns)) or 'none'}"
        )
    if twice := [name for name in wanted if names.count(name) > 1]:
        raise ListError(f"has the column {twice[0]} twice, in {', '.join(map(repr, columns))}")
    return [names.index(name) for name in wanted]


# Text


def _text_rows(file: Any, columns: Sequence[str] = ()) -> Iterator[Placed]:
    """Rows of a CSV file, and the line of each."""
    text = _decoded(file)
    try:
        yield from _lines_rows(Lines(text), columns)
    finally:
        if not text.closed:  # by whoever opened the file, where nobody reads to the end
            text.detach()


def _lines_rows(lines: "Lines", columns: Sequence[str]) -> Iterator[Placed]:
    header, delimiter = _header(lines)
    places = _wanted(header, columns)
    padded = any(name != name.strip() for name in header)  # "image_id, uri"
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=padded)
    for first, record in _records(reader, lines):
        if not any(field.strip() for field in record):
            continue
        where = f"line {first}"
        if lines.number > first:
            later = (line for value in record for line in _later_lines(value))
            if any(_is_like_row(line.split(delimiter), len(header), places[1]) for line in later):
                raise ListError(
                    f"has a quoted field from {where} to line {lines.number} with lines in it "
                    f"that look like rows of their own: {lines.shown()}; if they are meant to be "
                    "one field, write the list as Parquet"
                )
        if [name.strip("\ufeff ") for name in record] == [name.strip() for name in header]:
            raise ListError(
                f"has its column names a second time in {where}, as two lists in one file have; "
                "remove that line"
            )
        extra = [field for field in record[len(header) :] if field.strip()]
        if extra:
            raise ListError(
                f"has {len(record)} fields in {where}, expected {len(header)}; {extra[0]!r} is "
                f"one too many: {lines.shown()}"
            )
        if len(record) <= max(places):
            raise ListError(f"has too few fields in {where}: {lines.shown()}")
        image_id, uri, *values = (
            record[place].strip() if padded else record[place] for place in places
        )
        for name, value in zip(MANIFEST.names, (image_id, uri), strict=True):
            if value != _visible(value) or "\n" in value or "\r" in value:
                raise ListError(
                    f"has in {where} the {name} {value!r}, with a space, a line break or a "
                    "character without width that is hardly meant; remove it, or write the list "
                    "as Parquet"
                )
        yield where, image_id, uri, dict(zip(columns, values, strict=True))


def _decoded(file: Any) -> io.TextIOWrapper:
    """Text of a file in UTF-8, or in UTF-16 with a byte-order mark, as spreadsheets write it."""
    begin = file.read(4)
    file.seek(0)
    for mark, kind in PACKED.items():
        if begin.startswith(mark):
            raise ListError(f"is {kind}; expected CSV or Parquet, unpack it or export it")
    encoding = "utf-16" if begin[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"
    errors = "strict" if encoding == "utf-16" else "surrogateescape"
    return io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")


@dataclass(slots=True)
class Lines:
    """Lines of a list, counted; a line that is not UTF-8 is refused by its number.

    Attributes
    ----------
    text : iterable of str
        Lines with their ends.
    number : int
        Of the last line given, from 1.
    first : str
        Line in which the current record begins.
    """

    text: io.TextIOWrapper
    number: int = 0
    first: str = ""

    def __iter__(self) -> "Lines":
        """Iterate over itself."""
        return self

    def __next__(self) -> str:
        """Give the next line."""
        line = next(self.text)
        self.number += 1
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError as error:
                raise ListError(
                    f"is not UTF-8 in line {self.number}: {_quote(line)}; save it as UTF-8"
                ) from error
        if not self.first:
            self.first = line
        return line

    def shown(self) -> str:
        """Quote the line in which the current record begins."""
        return _quote(self.first)


def _quote(line: str) -> str:
    """Show a line in quotes, shortened, with what is not printable written out."""
    text = line.rstrip("\r\n")
    return ascii(text[:SHOWN] + ("..." if len(text) > SHOWN else "")).replace("\\udc", "\\x")


def _header(lines: Lines) -> tuple[list[str], str]:
    """Column names of a list and what stands between them: a comma, tab, semicolon or bar."""
    text = next((line for line in lines if line.strip()), "")
    lines.first = ""
    found = [(next(csv.reader([text], delimiter=d), []), d) for d in DELIMITERS]
    for columns, delimiter in found:
        if {*MANIFEST.names} <= {name.strip() for name in columns}:
            return columns, delimiter
    return max(found, key=lambda pair: len(pair[0]))


def _records(reader: Any, lines: Lines) -> Iterator[tuple[int, list[str]]]:
    """Records of a list, with the line in which each begins."""
    while True:
        first, lines.first = lines.number + 1, ""
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ListError(
                f"cannot be read: {error} (in line {lines.number}, of what begins in line {first}: "
                f"{lines.shown()}); a quote is closed where it was opened, and a quote within it "
                "is written twice"
            ) from error
        yield first, record


def _later_lines(value: str) -> list[str]:
    """Lines of a field but its first."""
    return io.StringIO(value, newline=None).read().split("\n")[1:]


def _is_like_row(fields: list[str], columns: int, uri: int) -> bool:
    """Whether a line in a quoted field is likely a row that a missing quote has swallowed."""
    if len(fields) >= columns:
        return True
    return len(fields) > uri and bool(ADDRESS.fullmatch(fields[uri].strip(' "')))


def _visible(value: str) -> str:
    """A value without the spaces and the characters without width around it."""
    shown = [n for n, c in enumerate(value) if not c.isspace() and unicodedata.category(c) != "Cf"]
    return value[shown[0] : shown[-1] + 1] if shown else ""


# Parquet


def _table_rows(file: Any, columns: Sequence[str] = ()) -> Iterator[Placed]:
    """Rows of a Parquet file, and the number of each."""
    table = pq.ParquetFile(file)
    found = table.schema_arrow.names
    names = [found[place] for place in _wanted(found, columns)]
    number = 0
    for batch in table.iter_batches(ROWS_AT_ONCE, columns=names):
        plain = [_plain_values(batch.schema.field(name), batch.column(name)) for name in names]
        for image_id, uri, *values in zip(*plain, strict=True):
            number += 1
            yield f"row {number}", image_id, uri, dict(zip(columns, values, strict=True))


def _plain_values(about: pa.Field, column: pa.Array) -> list[Any]:
    """Numbers and text: the types that Ray registers with Arrow would be unpickled."""
    kind = about.type.value_type if pa.types.is_dictionary(about.type) else about.type
    if isinstance(kind, pa.BaseExtensionType) or kind.num_fields:
        raise ValueError(f"column {about.name} is of type {about.type}, expected text")
    values: list[Any] = column.to_pylist()
    if about.name.strip() == "image_id" and pa.types.is_integer(kind):
        return [None if value is None else str(value) for value in values]
    return values


# Rows


@dataclass(slots=True)
class Checker:
    """Turns what stands in a list into a manifest row, or refuses it.

    Attributes
    ----------
    source : str
        The list, as it was named.
    access : Access
        Which schemes its addresses may have.
    absolute : callable
        Makes a relative path absolute.
    protocols : set of str
        Those whose packages are installed, as far as that is known.
    """

    source: str
    access: Access
    absolute: Callable[[str], str]
    protocols: set[str] = field(default_factory=set, init=False)

    def __call__(self, placed: Placed) -> Row:
        """Give the manifest row."""
        where, image_id, uri, further = placed
        if not (fault := self._fault(image_id, uri) or _further_fault(further)):
            row = {"image_id": image_id, "uri": self.absolute(uri) if uri else ""}
            return row | {"columns": json.dumps(further)} if further else row
        shown = redact(uri) if isinstance(uri, str) else uri
        raise SettingsError(
            f"the manifest {self.source} has in {where} the row image_id={image_id!r}, "
            f"uri={shown!r}: {fault}"
        )

    def _fault(self, image_id: Any, uri: Any) -> str:
        """What is wrong with a row; empty for a good one, whose protocol is then known."""
        if not isinstance(image_id, str) or not image_id:
            return "image_id must be text or a whole number, and not empty"
        if not is_safe_id(image_id):
            return "image_id must be a relative path without '..'"
        if not uri:
            return "" if uri is None or uri == "" else "uri must be a path or URI"
        if not isinstance(uri, str) or "\0" in uri:
            return "uri must be a path or URI"
        try:
            protocol, rest = split_uri(uri, signed=True)
            if protocol == "file" and not os.path.isabs(rest):
                return ""  # it counts from the list
            self.access.refuse_scheme(uri)
            if protocol not in self.protocols:
                file_system(protocol, uri)
                self.protocols.add(protocol)
        except SettingsError as error:
            return str(error)
        return ""


def _further_fault(further: Row) -> str:
    """What is wrong with the columns that are kept; empty for good ones."""
    for name, value in further.items():
        if not isinstance(value, str | int | float | None):
            return f"{name} must be text, a number or a truth value, got {type(value).__name__}"
        if isinstance(value, float) and not math.isfinite(value):
            further[name] = None  # JSON has no other word
    return ""


def _absolute(fs: Any, base: str, uri: str) -> str:
    """Address as the manifest keeps it; a relative path counts from the list's own folder."""
    protocol, path = split_uri(uri, signed=True)
    if protocol != "file":
        return plain_uri(uri)
    if os.path.isabs(path):
        return path
    if base.startswith(tuple(f"{scheme}://" for scheme in WEB)):
        return urljoin(f"{base}/", path)
    return uri_of(fs, os.path.normpath(f"{base}/{path}"))
