"""JSON lines: an object a line."""

import json
from collections.abc import Iterable, Iterator
from typing import IO, ClassVar

from albat_core.errors import InputError
from albat_core.sources.formats.base import (
    HEAD,
    Advance,
    Columns,
    FileFormat,
    Row,
    decoded_lines,
    refuse_missing,
)
from albat_core.sources.formats.nested import is_nested, keys_of, value_at


class JsonLines(FileFormat):
    """A JSON object a line; blank lines are passed over."""

    name: ClassVar[str] = "jsonl"
    endings: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")
    packable: ClassVar[bool] = True

    def read(self, file: IO[bytes], uri: str, columns: Columns, advance: Advance) -> Iterator[Row]:
        """See ``FileFormat``."""
        lines = decoded_lines(file, uri, "JSON lines", advance)
        yield from with_columns(objects_of(lines, uri), uri, columns)


def with_columns(objects: Iterable[Row], uri: str, columns: Columns) -> Iterator[Row]:
    """Yield objects as rows with the wanted columns only, which may lie in others.

    Writers drop null fields, so a column is missing only where no row of the head has it.

    Raises:
        InputError: it is.
    """
    if columns is None:
        yield from objects
        return
    nested = is_nested(columns)
    find = value_at if nested else dict.get
    head: list[Row] = []
    keys: dict[str, None] = {}
    for row in objects:
        if head or not keys:
            keys.update(dict.fromkeys(keys_of(row) if nested else row))
            head.append(row)
            if not columns.keys() <= keys.keys():
                if len(head) >= HEAD:
                    refuse_missing(columns, keys, uri)
                continue
            yield from ({name: find(early, name) for name in columns} for early in head)
            head = []
        else:
            yield {name: find(row, name) for name in columns}
    if head:
        refuse_missing(columns, keys, uri)


def objects_of(lines: Iterable[str], uri: str) -> Iterator[Row]:
    """Yield the object of each line that is not blank.

    Raises:
        InputError: a line is something else.
    """
    for number, line in enumerate(lines, 1):
        if not line.isspace():
            yield _json_object(line, uri, number)


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
        remedy="the file is one JSON array: set format to json, or write its elements one a line"
        if array
        else "write one JSON object a line",
    )
