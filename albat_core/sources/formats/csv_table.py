"""CSV: a header, and a row a record."""

import csv
from collections.abc import Iterator
from typing import IO, ClassVar

from albat_core.errors import InputError
from albat_core.sources.formats.base import (
    Advance,
    Columns,
    FileFormat,
    Row,
    decoded_lines,
    refuse_missing,
)

csv.field_size_limit(1 << 27)  # a field may be a book; the default refuses 128 KiB


class CsvTable(FileFormat):
    """Fields set apart by commas, below a header that names them."""

    name: ClassVar[str] = "csv"
    endings: ClassVar[tuple[str, ...]] = (".csv",)
    packable: ClassVar[bool] = True

    def read(self, file: IO[bytes], uri: str, columns: Columns, advance: Advance) -> Iterator[Row]:
        """See ``FileFormat``."""
        reader = csv.reader(decoded_lines(file, uri, "CSV", advance), strict=True)
        try:
            header = next(reader, [])
            if columns is None:
                columns = dict.fromkeys(header, "")
            if header:
                refuse_missing(columns, header, uri)
            for name in columns:
                if header.count(name) > 1:
                    raise InputError(
                        f"expected one column {name!r}, the header has {header.count(name)}",
                        where=uri,
                        remedy="rename one of them",
                    )
            positions = [(name, header.index(name)) for name in columns if header]
            for fields in reader:
                if len(fields) > len(header):
                    raise InputError(
                        f"expected the header's {len(header)} fields, the row that ends in line "
                        f"{reader.line_num} has {len(fields)}",
                        where=uri,
                        remedy="quote fields that hold commas, and double the quotes in them",
                    )
                if fields:  # else an empty line
                    yield {n: fields[i] if i < len(fields) else None for n, i in positions}
        except csv.Error as error:
            raise InputError(
                f"line {reader.line_num} is not CSV ({error})",
                where=uri,
                remedy="quote fields that hold commas or line ends, and double the quotes in them",
            ) from error
