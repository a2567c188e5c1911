"""JSON: an array of objects, or an object a line."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import IO, Any, ClassVar

from albat_core.errors import InputError
from albat_core.sources.formats.base import (
    LONGEST_FILE,
    Advance,
    Columns,
    FileFormat,
    Row,
    decoded_lines,
    too_long,
)
from albat_core.sources.formats.json_lines import objects_of, with_columns


class JsonFile(FileFormat):
    """A JSON array whose elements are the rows, or JSON lines, which many call `.json` too.

    Elements are objects, or texts, which stand in a column ``text``. An array is read whole: the
    file's text and all of its rows are in memory at once. Lines are streamed.
    """

    name: ClassVar[str] = "json"
    endings: ClassVar[tuple[str, ...]] = (".json",)
    packable: ClassVar[bool] = True

    def read(self, file: IO[bytes], uri: str, columns: Columns, advance: Advance) -> Iterator[Row]:
        """See ``FileFormat``."""
        objects = _objects(decoded_lines(file, uri, "JSON", advance, LONGEST_FILE), uri)
        top = [*islice(objects, 2)]
        if len(top) == 1:
            _refuse_wrapped(top[0], columns, uri)
        yield from with_columns(chain(top, objects), uri, columns)


def _objects(lines: Iterator[str], uri: str) -> Iterator[Row]:
    """Yield a file's objects, by lines where the first holds a whole one."""
    top: list[str] = []
    for line in lines:
        top.append(line)
        if not line.isspace():
            break
    if not top or top[-1].isspace():
        return
    if _parsed(top[-1]) is not None:
        yield from objects_of(chain(top, lines), uri)
        return
    letters = len(top[-1])
    for line in lines:
        letters += len(line)
        if letters > LONGEST_FILE:
            raise too_long(uri, LONGEST_FILE)
        top.append(line)
    text = "".join(top)
    top.clear()
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"expected a JSON array of objects, or an object a line, found no JSON ({error})",
            where=uri,
            remedy="mend the place named; files that were joined are not one array",
        ) from error
    yield from _elements(whole, uri) if isinstance(whole, list) else _elements([whole], uri)


def _parsed(line: str) -> Row | None:
    """Return the object that a line holds; None where it is something else."""
    if line.lstrip().startswith("["):
        return None  # maybe all of a large file
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _elements(values: Iterable[Any], uri: str) -> Iterator[Row]:
    for number, value in enumerate(values):
        if isinstance(value, str):
            yield {"text": value}
        elif isinstance(value, dict):
            yield value
        else:
            raise InputError(
                f"expected objects in the JSON array, element {number} is a JSON "
                f"{type(value).__name__}",
                where=uri,
                remedy="write each row as an object: names of columns with their values",
            )


def _refuse_wrapped(row: Row, columns: Columns, uri: str) -> None:
    """Raise where a file's one object holds the rows rather than being one."""
    if columns is None or not all(isinstance(row.get(name, {}), dict) for name in columns):
        return
    for key, value in row.items():
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            raise InputError(
                f"expected an array of objects, got one object whose {key!r} is such an array",
                where=uri,
                remedy=f"write what stands below {key!r} as the file",
            )
    if len(row) > 1 and all(isinstance(value, dict) for value in row.values()):
        raise InputError(
            f"expected an array of objects, got one object of {len(row)} objects by name "
            f"({next(iter(row))!r}, ...)",
            where=uri,
            remedy="write the objects as an array, the name in each; pandas: "
            'to_json(..., orient="records")',
        )
