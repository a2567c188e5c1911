"""CSV: a header, and a row a record."""

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import IO, ClassVar

from albat_core.errors import InputError
from albat_core.sources.formats.base import (
    BUFFER,
    Advance,
    Columns,
    FileFormat,
    Row,
    decoded_lines,
    refuse_missing,
)

_DELIMITERS = (",", ";", "\t", "|")
"""What spreadsheets set fields apart with, the usual first."""

csv.field_size_limit(1 << 27)  # a field may be a book; the default refuses 128 KiB


class CsvTable(FileFormat):
    """Fields set apart by commas, below a header that names them.

    Where the header shows it, fields are set apart by semicolons, tabs or bars, as spreadsheets of
    some countries write them. A field that is `nan` is null.
    """

    name: ClassVar[str] = "csv"
    endings: ClassVar[tuple[str, ...]] = (".csv",)
    packable: ClassVar[bool] = True

    def read(self, file: IO[bytes], uri: str, columns: Columns, advance: Advance) -> Iterator[Row]:
        """See ``FileFormat``."""
        lines = decoded_lines(file, uri, "CSV", advance)
        top = _top(lines)
        if top and "\r" in top[0] and "\n" not in top[0]:
            raise InputError(
                "expected lines that end in a line feed, found only carriage returns",
                where=uri,
                remedy='save it as "CSV UTF-8": "CSV (Macintosh)" ends lines as nothing else does',
            )
        if top and (said := re.fullmatch(r"sep=(.)\s*", top[0], re.IGNORECASE)):  # Excel's
            delimiter, top = said[1], top[1:]
        else:
            delimiter = _delimiter(top)
        reader = csv.reader(itertools.chain(top, lines), delimiter=delimiter, strict=True)
        try:
            header = next(filter(None, reader), [])  # empty lines before it are none
            if columns is None:
                columns = dict.fromkeys(header, "")
            if header:
                refuse_missing(columns, header, uri)
            positions = [(name, header.index(name)) for name in columns if header]
            for fields in reader:
                if len(fields) > len(header):
                    raise InputError(
                        f"expected the header's {len(header)} fields, the row that ends in line "
                        f"{reader.line_num} has {len(fields)}",
                        where=uri,
                        remedy=f"quote fields that hold {delimiter!r}, and double the quotes in "
                        "them",
                    )
                if fields:  # else an empty line
                    yield {n: _value(fields, i) for n, i in positions}
        except csv.Error as error:
            raise InputError(
                f"line {reader.line_num} is not CSV ({error})",
                where=uri,
                remedy=f"quote fields that hold {delimiter!r} or line ends; double quotes in them",
            ) from error


def _top(lines: Iterator[str]) -> list[str]:
    """Return the lines of the header and of the row below, whose fields may hold line ends."""
    top: list[str] = []
    quotes = letters = whole = 0
    for line in lines:
        top.append(line)
        quotes, letters = quotes + line.count('"'), letters + len(line)
        whole += quotes % 2 == 0
        if whole == 2 or letters > BUFFER:
            break
    return top


def _delimiter(top: Sequence[str]) -> str:
    """Return what sets the fields apart: the comma, unless only another cuts the first rows."""

    def fields(delimiter: str) -> int:
        """Return how many fields the header has; 1 where the row below is not cut too."""
        rows = filter(None, csv.reader(top, delimiter=delimiter))
        counts = [len(row) for row in itertools.islice(rows, 2)]
        return counts[0] if min(counts, default=1) > 1 else 1

    try:
        if not top or len(next(csv.reader(top))) > 1:
            return ","
        return max(_DELIMITERS, key=fields)
    except csv.Error:
        return ","  # told by what reads on, with its place


def _value(fields: Sequence[str], place: int) -> str | None:
    """Return a field, None where the row is too short or a number was missing when written."""
    value = fields[place] if place < len(fields) else None
    return None if value is not None and value.strip().lower() == "nan" else value
