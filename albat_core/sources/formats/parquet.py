"""Parquet."""

import io
from collections.abc import Iterable, Iterator
from typing import IO, Any, ClassVar

from albat_core.errors import InputError
from albat_core.sources.formats.arrow import batch_rows, batch_size, printed_columns
from albat_core.sources.formats.base import (
    BUFFER,
    Advance,
    Columns,
    FileFormat,
    Row,
    kind_of,
    refuse_missing,
)
from albat_core.sources.formats.nested import column_at, names_of, picked


class Parquet(FileFormat):
    """Parquet, of which column chunks are streamed."""

    name: ClassVar[str] = "parquet"
    endings: ClassVar[tuple[str, ...]] = (".parquet",)
    filled: ClassVar[bool] = True

    def read(self, file: IO[bytes], uri: str, columns: Columns, advance: Advance) -> Iterator[Row]:
        """See ``FileFormat``."""
        import pyarrow.parquet as pq

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
        parquet = pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
        columns = columns or dict.fromkeys(parquet.schema_arrow.names, "")
        refuse_missing(columns, names_of(parquet.schema_arrow), uri)

        def chunks(name: str) -> Iterator[Any]:
            return (column_at(batch, name) for batch in parquet.iter_batches(columns=[name]))

        printed = printed_columns(parquet.schema_arrow, columns, chunks)
        rows = batch_size(*_column_bytes(parquet.metadata, columns))
        for batch in parquet.iter_batches(batch_size=rows, columns=list(columns)):
            yield from batch_rows(picked(batch, columns), uri, printed)
            advance(size * batch.num_rows // parquet.metadata.num_rows)


def _column_bytes(metadata: Any, columns: Iterable[str]) -> tuple[int, int]:
    """Return bytes and rows of the wanted columns in the first row group."""
    if not metadata.num_row_groups:
        return 0, 0
    group = metadata.row_group(0)
    chunks = (group.column(i) for i in range(group.num_columns))
    names = tuple(f"{name}." for name in columns)  # of a list, what its elements are is behind it
    wanted = (c for c in chunks if f"{c.path_in_schema}.".startswith(names))
    return sum(c.total_uncompressed_size for c in wanted), group.num_rows
