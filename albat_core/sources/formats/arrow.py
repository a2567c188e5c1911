"""Arrow, as `datasets` saves it on disk."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, ClassVar

from albat_core.errors import InputError
from albat_core.sources.formats.base import (
    EXACT,
    Advance,
    Columns,
    FileFormat,
    Row,
    kind_of,
    not_utf8,
    refuse_missing,
)
from albat_core.sources.formats.nested import column_at, names_of, picked, type_at

_BATCH = 256  # rows turned into Python objects at once
_BATCH_BYTES = 16 << 20  # fewer, where they have pictures


class Arrow(FileFormat):
    """Arrow files and streams, of which record batches are read one at a time."""

    name: ClassVar[str] = "dataset"
    endings: ClassVar[tuple[str, ...]] = (".arrow",)
    filled: ClassVar[bool] = True

    def read(self, file: IO[bytes], uri: str, columns: Columns, advance: Advance) -> Iterator[Row]:
        """See ``FileFormat``."""
        import pyarrow as pa

        head = file.read(6)
        file.seek(0)
        if kind_of(head) != "Arrow":
            raise InputError(
                f"expected Arrow, found {kind_of(head)}",
                where=uri,
                remedy="set format to what it is",
            )

        def opened() -> tuple[Any, Iterable[Any]]:
            file.seek(0)
            if head == b"ARROW1":
                reader = pa.ipc.open_file(file)
                return reader, map(reader.get_batch, range(reader.num_record_batches))
            reader = pa.ipc.open_stream(file)
            return reader, reader

        reader, batches = opened()
        columns = columns or dict.fromkeys(reader.schema.names, "")
        refuse_missing(columns, names_of(reader.schema), uri)
        printed = printed_columns(
            reader.schema, columns, lambda name: (column_at(batch, name) for batch in opened()[1])
        )
        reader, batches = opened()
        for batch in batches:
            wanted = picked(batch, columns)
            rows = batch_size(wanted.nbytes, batch.num_rows)
            for start in range(0, batch.num_rows, rows):
                yield from batch_rows(wanted.slice(start, rows), uri, printed)
            advance(batch.nbytes)


def batch_size(size: int, rows: int) -> int:
    """Return how many rows to have as Python objects at once, of such that are ``size`` bytes."""
    return max(min(_BATCH, _BATCH_BYTES * rows // size), 1) if size else _BATCH


Printed = Mapping[str, Callable[[Any], Any]]
"""Columns whose values are others than those stored, with what makes them so."""


def printed_columns(
    schema: Any, columns: Mapping[str, str], chunks: Callable[[str], Iterable[Any]]
) -> Printed:
    """Return what templates print of columns that hold something else.

    Classes (``ClassLabel`` of `datasets`) are their names. Floats are whole numbers where all of
    the file's column are, or null: pandas makes floats of whole numbers beside which one is null.

    Args:
        schema: of the file.
        columns: that are wanted, each with the configuration's field that names it.
        chunks: gives all of a column's arrays; read to the first that is no whole number.
    """
    import pyarrow as pa

    # text that is no template's keeps its type, by which it is told as a number
    templates = [name for name, field in columns.items() if field.endswith("template")]
    classes = _classes(schema)
    printed: dict[str, Callable[[Any], Any]] = {}
    for name in templates:
        kind = type_at(schema, name)
        if name in classes and pa.types.is_integer(kind):
            printed[name] = _named(classes[name])
        elif pa.types.is_floating(kind) and all(map(_is_whole, chunks(name))):
            printed[name] = int
    return printed


def _classes(schema: Any) -> dict[str, list[str]]:
    """Return the names of each column's classes, as `datasets` keeps them in a schema."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about.get("info", {}).get("features", {})
        return dict(_classes_in(features))
    except (ValueError, AttributeError, KeyError, TypeError):
        return {}  # written by another


def _classes_in(features: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield the columns that hold classes, behind dots those that lie in others, with names."""
    for name, feature in features.items():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            yield above + name, feature["names"]
        elif isinstance(feature, dict) and "_type" not in feature:
            yield from _classes_in(feature, f"{above}{name}.")


def _named(names: list[str]) -> Callable[[int], Any]:
    """Return what names a class; -1 stands for none in `datasets`."""
    return lambda value: names[value] if 0 <= value < len(names) else None if value < 0 else value


def _is_whole(array: Any) -> bool:
    """Tell whether all numbers of an array are whole, and none stands for several."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = array.cast(pa.float64())  # halves have no floor
    missing = pc.is_null(values, nan_is_null=True)
    whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), EXACT))
    return bool(pc.all(pc.or_(missing, pc.fill_null(whole, False)), min_count=0).as_py())


def batch_rows(batch: Any, uri: str, printed: Printed) -> list[Row]:
    """Return a record batch as rows."""
    try:
        rows: list[Row] = batch.to_pylist()
    except UnicodeDecodeError as error:
        raise not_utf8(uri, f"byte {error.start} of a text in it", error) from error
    parsers = {f.name: its for f in batch.schema if (its := _parser(f.type)) is not None}
    for name, parsed in parsers.items():
        try:
            for row in rows:
                row[name] = parsed(row[name])
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"expected JSON in column {name!r}, as its type says, found other text ({error})",
                where=uri,
                remedy="write the column as text",
            ) from error
    for name, written in printed.items():
        for row in rows:
            value = row[name]
            row[name] = None if value is None or value != value else written(value)  # noqa: PLR0124 - NaN
    return rows


def _parser(kind: Any) -> Callable[[Any], Any] | None:
    """Return what makes a column's values of JSON texts in it; None where it has none.

    So `datasets` stores values of several types: numbers and texts, contents of messages as text or
    as parts.
    """
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):
        return lambda value: None if value is None else json.loads(value)
    if pa.types.is_struct(kind):
        inner = {f.name: parser for f in kind if (parser := _parser(f.type)) is not None}
        if inner:
            return lambda value: (
                value and value | {name: parse(value[name]) for name, parse in inner.items()}
            )
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        each = _parser(kind.value_type)
        if each is not None:
            return lambda value: value and [each(one) for one in value]
    return None
