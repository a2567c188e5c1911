"""Arrow, as `datasets` saves it on disk."""

from collections.abc import Iterable, Iterator
from typing import IO, Any, ClassVar

from albat_core.errors import InputError
from albat_core.sources.formats.base import (
    Advance,
    Columns,
    FileFormat,
    Row,
    kind_of,
    not_utf8,
    refuse_missing,
)

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
            rows = batch_size(wanted.nbytes, batch.num_rows)
            for start in range(0, batch.num_rows, rows):
                yield from batch_rows(wanted.slice(start, rows), uri)
            advance(batch.nbytes)


def batch_size(size: int, rows: int) -> int:
    """Return how many rows to have as Python objects at once, of such that are ``size`` bytes."""
    return max(min(_BATCH, _BATCH_BYTES * rows // size), 1) if size else _BATCH


def batch_rows(batch: Any, uri: str) -> list[Row]:
    """Return a record batch as rows."""
    try:
        rows: list[Row] = batch.to_pylist()
    except UnicodeDecodeError as error:
        raise not_utf8(uri, f"byte {error.start} of a text in it", error) from error
    return rows
