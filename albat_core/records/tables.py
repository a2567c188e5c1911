"""Parquet in row groups small enough to read single rows from."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_GROUP_ROWS = 1024
_GROUP_BYTES = 2 << 20  # of pictures: some are read to get one


def write_table(table: pa.Table, path: Path) -> None:
    """Write Parquet whose row groups are small enough to read single rows from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", row_group_size=row_group_rows(table))


def row_group_rows(table: pa.Table) -> int:
    """Return how many rows a row group gets: 1024, or fewer where they hold pictures."""
    if "image" not in table.column_names or table["image"].null_count == table.num_rows:
        return _GROUP_ROWS
    mean = table.nbytes / table.num_rows
    return max(min(_GROUP_ROWS, int(_GROUP_BYTES / mean)), 1)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read Parquet written by ``write_table``."""
    return pq.read_table(path, columns=list(columns) if columns else None, partitioning=None)
