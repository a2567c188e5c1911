"""Rows of the sharded corpus, read where they lie."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from albat_core.records.examples import (
    EXAMPLE_SCHEMA,
    TEXT_COLUMNS,
    Example,
    table_to_examples,
    table_to_texts,
)
from albat_core.records.filtered import by_reason
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "shards"

T = TypeVar("T")

_NOTES = {
    "null_rows": "without text, skipped",
    "uncaptioned_rows": "with a picture but no caption, skipped",
    "damaged_rows": "whose picture cannot be read, skipped",
    "split_rows": "longer than the backbone takes, cut",
    "truncated_rows": "longer than the backbone takes, of which the beginning is kept",
    "printed_rows": "with a number as text, taken as it is printed",
    "unfit_rows": "with no answer to learn or no room for one, skipped",
    "prefiltered_rows": "whose words are less like the adaptation data's, passed over",
}


def row_notes(facts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return what became of rows that were not taken as they are, from shards' facts."""
    counts = {name: sum(f.get(name, 0) for f in facts) for name in _NOTES}
    blank: Counter[str] = Counter()
    filtered: Counter[str] = Counter()
    for each in facts:
        blank.update(each.get("blank_columns", {}))
        filtered.update(each.get("filtered_reasons", {}))
    left_out = filtered.total()
    columns = ", ".join(f"{name!r} in {n:,}" for name, n in blank.items())
    return (
        *(f"{n:,} row{'s' if n > 1 else ''} {_NOTES[name]}" for name, n in counts.items() if n),
        *(
            [f"{left_out:,} row{'s' if left_out > 1 else ''} left out: {by_reason(filtered)}"]
            if left_out
            else []
        ),
        *([f"columns that were null or blank in rows skipped: {columns}"] if columns else []),
    )


class Part(BaseModel):
    """One part file of a shards artifact: the unit of work on the corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: ArtifactRef
    name: str
    rows: int
    sha256: str

    @property
    def address(self) -> str:
        """What names the part in a column: ``<shards key>/<part name>``."""
        return f"{self.shards.key}/{self.name}"


def parts_of(store: ArtifactStore, shards: Sequence[ArtifactRef]) -> list[Part]:
    """Return the part files of shards artifacts, in order."""
    parts = []
    for ref, manifest in zip(shards, store.manifests(shards), strict=True):
        digests = {file.path: file.sha256 for file in manifest.files}
        parts += [
            Part(shards=ref, name=p["name"], rows=p["rows"], sha256=digests[p["name"]])
            for p in manifest.facts["parts"]
        ]
    return parts


def locate(
    addresses: Sequence[str], ends: NDArray[np.int64], positions: Sequence[int]
) -> tuple[list[str], list[int]]:
    """Return part address and row in that part of rows of a corpus, by their positions in it.

    Args:
        addresses: of its parts, in order.
        ends: (n_parts,) int64, running total of the parts' rows.
        positions: in [0, rows).
    """
    where = np.asarray(positions, dtype=np.int64)
    parts = np.searchsorted(ends, where, side="right")
    starts = np.concatenate([[0], ends])[parts]
    return [addresses[p] for p in parts], (where - starts).tolist()


def row_bytes(store: ArtifactStore, addresses: Iterable[str]) -> dict[str, float]:
    """Return, by part address, what a row takes of the part's file in the mean; nothing is read."""
    keys = dict.fromkeys(address.partition("/")[0] for address in addresses)
    refs = [ArtifactRef(stage=STAGE, key=key) for key in keys]
    sizes = {}
    for ref, manifest in zip(refs, store.manifests(refs), strict=True):
        written = {file.path: file.bytes for file in manifest.files}
        for part in manifest.facts["parts"]:
            sizes[f"{ref.key}/{part['name']}"] = written[part["name"]] / max(part["rows"], 1)
    return sizes


def part_path(store: ArtifactStore, address: str) -> Path:
    """Return the local path of the part at ``<shards key>/<part name>``."""
    key, _, name = address.partition("/")
    return store.file(ArtifactRef(stage=STAGE, key=key), name)


def read_examples(store: ArtifactStore, shard: Sequence[str], row: Sequence[int]) -> list[Example]:
    """Return the examples at the given positions, in the order asked for.

    Args:
        store: where the shards are.
        shard: part addresses.
        row: row numbers in those parts.
    """
    return _read(store, shard, row, EXAMPLE_SCHEMA.names, table_to_examples)


def read_texts(store: ArtifactStore, shard: Sequence[str], row: Sequence[int]) -> list[str]:
    """Return what is written in the examples at the given positions, see ``example_text``.

    No other column is read.
    """
    return _read(store, shard, row, TEXT_COLUMNS, table_to_texts)


def _read(
    store: ArtifactStore,
    shard: Sequence[str],
    row: Sequence[int],
    columns: Sequence[str],
    made: Callable[[pa.Table], list[T]],
) -> list[T]:
    """Return what is made of the rows at the given positions, in the order asked for."""
    wanted: dict[str, list[int]] = defaultdict(list)
    for place, address in enumerate(shard):
        wanted[address].append(place)
    found: dict[int, T] = {}
    for address, places in wanted.items():
        rows = np.array([row[place] for place in places])
        for some, table in _take(part_path(store, address), rows, columns):
            found |= zip((places[n] for n in some), made(table), strict=True)
    return [found[place] for place in range(len(shard))]


def _take(
    path: Path, rows: NDArray[np.int64], columns: Sequence[str]
) -> Iterator[tuple[NDArray[np.intp], pa.Table]]:
    """Yield rows (n,) of one part by row group, of which only those that hold some are read.

    With each table come the positions of its rows in ``rows``.
    """
    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        starts = np.cumsum([0, *sizes])
        groups = np.searchsorted(starts, rows, side="right") - 1
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            table = file.read_row_group(int(group), columns=list(columns))
            yield places, table.take(pa.array(rows[places] - starts[group]))


def iterate_part(store: ArtifactStore, part: Part, size: int = 1024) -> Iterator[list[Example]]:
    """Yield a part's examples, ``size`` at a time, in order."""
    with pq.ParquetFile(store.file(part.shards, part.name)) as file:
        for batch in file.iter_batches(batch_size=size, columns=EXAMPLE_SCHEMA.names):
            yield table_to_examples(pa.Table.from_batches([batch]))
