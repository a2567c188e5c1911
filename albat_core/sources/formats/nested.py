"""Columns that lie in others, named by dots: `metadata.url`, as datatrove writes them."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from albat_core.sources.formats.base import Row


def is_nested(columns: Collection[str]) -> bool:
    """Tell whether a column may lie in another."""
    return any("." in name for name in columns)


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """Return a row's column, or behind a dot what lies in it; None where there is none.

    A column that is called so as a whole, dots and all, comes first.
    """
    if name in row:
        return row[name]
    above, dot, below = name.partition(".")
    inner = row.get(above)
    return value_at(inner, below) if dot and isinstance(inner, dict) else None


def keys_of(row: Row) -> Iterator[str]:
    """Yield the names of a row's columns, and behind dots of those that lie in them."""
    for name, value in row.items():
        yield name
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in keys_of(value))


def names_of(schema: Any) -> list[str]:
    """Return the names of Arrow's columns, and behind dots of those that lie in them."""
    whole = schema.names
    return [*whole, *(name for name in _inner_names(schema) if name not in whole)]


def _inner_names(fields: Iterable[Any]) -> Iterator[str]:
    import pyarrow as pa

    for field in fields:
        if pa.types.is_struct(field.type):
            yield from (f"{field.name}.{inner.name}" for inner in field.type)
            yield from (f"{field.name}.{inner}" for inner in _inner_names(field.type))


def picked(batch: Any, columns: Collection[str]) -> Any:
    """Return a record batch of some columns, each by the name that is asked for.

    Args:
        batch: Arrow's, with those columns or what they lie in.
        columns: names, all of which are there.
    """
    import pyarrow as pa

    if batch.schema.names == [*columns]:
        return batch
    return pa.RecordBatch.from_arrays([column_at(batch, n) for n in columns], names=[*columns])


def column_at(batch: Any, name: str) -> Any:
    """Return an array of a record batch, or of what lies in one: null where that is."""
    import pyarrow.compute as pc

    if name in batch.schema.names:
        return batch.column(name)
    above, inner = _parts(batch.schema, name)
    return pc.struct_field(batch.column(above), inner)


def type_at(schema: Any, name: str) -> Any:
    """Return the type of a column, or of one that lies in it."""
    if name in schema.names:
        return schema.field(name).type
    above, inner = _parts(schema, name)
    kind = schema.field(above).type
    for each in inner:
        kind = kind.field(each).type
    return kind


def _parts(schema: Any, name: str) -> tuple[str, list[str]]:
    """Return the column that another lies in, and the names on the way to it."""
    above, _, below = name.partition(".")
    kind, inner = schema.field(above).type, []
    while below not in [field.name for field in kind]:
        each, _, below = below.partition(".")
        inner.append(each)
        kind = kind.field(each).type
    return above, [*inner, below]
