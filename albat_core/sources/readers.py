"""Readers of the formats that rows come in; each streams and holds a few hundred rows at most."""

import csv
import gzip
import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from albat_core.errors import InputError
from albat_core.sources.formats import HEAD, KINDS, Advance, Format, Row, kind_of, refuse_missing
from albat_core.sources.webdataset import read_webdataset
from albat_core.store import storage

Columns = Mapping[str, str] | None

_NAMES = {"parquet": "Parquet", "jsonl": "JSON lines", "csv": "CSV", "text": "text"}
_BATCH = 256  # rows turned into Python objects at once
_BATCH_BYTES = 16 << 20  # fewer, where they have pictures
_BUFFER = 1 << 20  # bytes read at once
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, pa.ArrowException)

csv.field_size_limit(1 << 27)  # a field may be a book; the default refuses 128 KiB


def stream_rows(uri: str, form: Format, columns: Columns, advance: Advance) -> Iterator[Row]:
    """Yield a file's rows in order, each with the wanted columns only.

    Args:
        uri: the file, compressed where its name says so.
        form: its format. A text file is one row with the column ``text``; pictures in folders are
            not read here.
        columns: wanted columns, each with the configuration's field that names it; None: all that
            JSON lines or CSV have.
        advance: told the bytes read since it was last called (before compression).

    Raises:
        InputError: the file is missing, damaged or not of its format, or lacks a column.
    """
    reader = _READERS[form]
    with readable(uri), storage.open_binary(uri, decompress=form in _PACKABLE) as file:
        try:
            yield from reader(file, uri, columns, advance)
        except _DAMAGE as error:
            if _of_storage(error, uri):
                raise
            raise InputError(
                f"the file is damaged or truncated ({type(error).__name__}: {error})",
                where=uri,
                remedy="write or copy it again",
            ) from error


def _of_storage(error: Exception, uri: str) -> bool:
    """Tell whether reading failed rather than what was read: decoders set no error number."""
    if not isinstance(error, OSError) or isinstance(error, gzip.BadGzipFile):
        return False
    return error.errno is not None or storage.is_remote(uri)


@contextmanager
def readable(uri: str) -> Iterator[None]:
    """Say what to do where a file is gone or may not be read."""
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(
            f"expected a file that can be read ({error.strerror or type(error).__name__})",
            where=uri,
            remedy="check that it is there and that you may read it",
        ) from error


def _lines(file: IO[bytes], uri: str, form: Format, advance: Advance) -> Iterator[str]:
    """Yield decoded lines with their ends, a byte order mark taken off."""
    buffered = io.BufferedReader(file, _BUFFER)  # type: ignore[type-var] # any IO[bytes] will do
    # a binary file may have no line end for gigabytes, so the first block is looked at as such
    _refuse_binary(buffered.peek(), uri, form)
    for number, line in enumerate(buffered, 1):
        advance(len(line))
        if b"\0" in line:
            raise _binary(uri, form, f"a NUL byte in line {number}")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(uri, f"line {number}, byte {error.start} of it", error) from error
        yield text.removeprefix("\ufeff") if number == 1 else text


def _read_jsonl(file: IO[bytes], uri: str, columns: Columns, advance: Advance) -> Iterator[Row]:
    # Writers drop null fields, so a column is missing only where no row of the head has it.
    head: list[Row] = []
    keys: dict[str, None] = {}
    every = columns is None
    columns = columns or {}
    for number, line in enumerate(_lines(file, uri, "jsonl", advance), 1):
        if line.isspace():
            continue
        row = _json_object(line, uri, number)
        if every:
            yield row
        elif head or not keys:
            keys.update(dict.fromkeys(row))
            head.append(row)
            if not columns.keys() <= keys.keys():
                if len(head) >= HEAD:
                    refuse_missing(columns, keys, uri)
                continue
            yield from ({name: early.get(name) for name in columns} for early in head)
            head = []
        else:
            yield {name: row.get(name) for name in columns}
    if head:
        refuse_missing(columns, keys, uri)


def _json_object(line: str, uri: str, number: int) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        row, found = None, f"not JSON ({error})"
    else:
        found = f"a JSON {type(row).__name__}"
    if isinstance(row, dict):
        return row
    array = number == 1 and line.lstrip().startswith("[")
    raise InputError(
        f"expected a JSON object in each line, line {number} is {found}",
        where=uri,
        remedy="the file is one JSON array: write its elements one a line"
        if array
        else "write one JSON object a line",
    )


def _read_csv(file: IO[bytes], uri: str, columns: Columns, advance: Advance) -> Iterator[Row]:
    reader = csv.reader(_lines(file, uri, "csv", advance), strict=True)
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


def _read_text(file: IO[bytes], uri: str, columns: Columns, advance: Advance) -> Iterator[Row]:
    content = file.read()
    advance(len(content))
    _refuse_binary(content, uri, "text")
    try:
        text = content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _not_utf8(uri, f"byte {error.start}", error) from error
    yield dict.fromkeys(columns or ("text",), text)


def _read_parquet(file: IO[bytes], uri: str, columns: Columns, advance: Advance) -> Iterator[Row]:
    head, size = file.read(4), file.seek(0, io.SEEK_END)
    file.seek(max(size - 4, 0))
    tail = file.read(4)
    if head != b"PAR1" or tail != b"PAR1" or size < 12:
        whole = head != b"PAR1"
        raise InputError(
            f"expected Parquet, found {kind_of(head)}"
            if whole
            else "expected Parquet, its end is missing: the file is truncated",
            where=uri,
            remedy="set format to what the file is" if whole else "write or copy it again",
        )
    file.seek(0)
    # buffered: column chunks are streamed, a row group is never in memory whole
    parquet = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
    columns = columns or dict.fromkeys(parquet.schema_arrow.names, "")
    refuse_missing(columns, parquet.schema_arrow.names, uri)
    rows = _batch_size(*_column_bytes(parquet.metadata, columns))
    for batch in parquet.iter_batches(batch_size=rows, columns=list(columns)):
        yield from _batch_rows(batch, uri)
        advance(size * batch.num_rows // parquet.metadata.num_rows)


def _column_bytes(metadata: Any, columns: Iterable[str]) -> tuple[int, int]:
    """Return bytes and rows of the wanted columns in the first row group."""
    if not metadata.num_row_groups:
        return 0, 0
    group = metadata.row_group(0)
    chunks = (group.column(i) for i in range(group.num_columns))
    wanted = (c for c in chunks if c.path_in_schema.split(".")[0] in columns)
    return sum(c.total_uncompressed_size for c in wanted), group.num_rows


def _batch_size(size: int, rows: int) -> int:
    """Return how many rows to have as Python objects at once, of such that are ``size`` bytes."""
    return max(min(_BATCH, _BATCH_BYTES * rows // size), 1) if size else _BATCH


def _read_arrow(file: IO[bytes], uri: str, columns: Columns, advance: Advance) -> Iterator[Row]:
    head = file.read(6)
    file.seek(0)
    if kind_of(head) != "Arrow":
        raise InputError(
            f"expected Arrow, found {kind_of(head)}", where=uri, remedy="set format to what it is"
        )
    batches: Iterable[Any]
    if head == b"ARROW1":
        reader = pa.ipc.open_file(file)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        batches = reader = pa.ipc.open_stream(file)
    columns = columns or dict.fromkeys(reader.schema.names, "")
    refuse_missing(columns, reader.schema.names, uri)
    for batch in batches:
        wanted = batch.select(list(columns))
        rows = _batch_size(wanted.nbytes, batch.num_rows)
        for start in range(0, batch.num_rows, rows):
            yield from _batch_rows(wanted.slice(start, rows), uri)
        advance(batch.nbytes)


def _batch_rows(batch: Any, uri: str) -> list[Row]:
    try:
        rows: list[Row] = batch.to_pylist()
    except UnicodeDecodeError as error:
        raise _not_utf8(uri, f"byte {error.start} of a text in it", error) from error
    return rows


_READERS: dict[Format, Callable[[IO[bytes], str, Columns, Advance], Iterator[Row]]] = {
    "parquet": _read_parquet,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "text": _read_text,
    "dataset": _read_arrow,
    "webdataset": read_webdataset,
}
_PACKABLE = ("jsonl", "csv", "text", "webdataset")  # formats that may be compressed as a whole


def _refuse_binary(head: bytes, uri: str, form: Format) -> None:
    kind = kind_of(head)
    known = kind in KINDS.values()
    # a text may begin with the letters PAR1, but not go on with NUL bytes
    if known and (b"\0" in head or not head[:6].isascii()):
        raise _binary(uri, form, kind)
    if b"\0" in head:
        raise _binary(uri, form, f"a NUL byte at byte {head.index(0)}")


def _binary(uri: str, form: Format, found: str) -> InputError:
    return InputError(
        f"expected {_NAMES[form]} in UTF-8, found {found}",
        where=uri,
        remedy="save it as UTF-8"
        if found == "UTF-16"
        else "set format to what the file is; compressed files need an ending that says so",
    )


def _not_utf8(uri: str, place: str, error: UnicodeDecodeError) -> InputError:
    return InputError(
        f"expected UTF-8, got 0x{error.object[error.start]:02x} at {place}",
        where=uri,
        remedy="save it as UTF-8",
    )
