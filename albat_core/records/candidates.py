"""Candidates: corpus examples worth a look, with the adaptation example each was found for."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from albat_core.records.examples import Example
from albat_core.records.shards import read_examples, read_texts, row_bytes
from albat_core.records.tables import read_table, write_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "candidates"
CANDIDATES, NEIGHBOURS = "candidates.parquet", "neighbours.parquet"
_BLOCK = 4096  # candidates at once; parts of scores are counted by it
_BLOCK_BYTES = 256 << 20  # of their files that are in memory at once, unless one has more

T = TypeVar("T")

CANDIDATE_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # "<shards artifact key>/<part file>"
        pa.field("row", pa.int64(), nullable=False),  # position in that part
        pa.field("turn", pa.int32(), nullable=False),  # round in which its query took it, from 0
        pa.field("nearest_example_id", pa.string()),
        pa.field("similarity", pa.float32()),  # cosine, whitened, in [-1, 1]
    ]
)
"""Corpus examples worth a look, with the adaptation example each was found for."""

NEIGHBOUR_SCHEMA = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("candidate", pa.int64(), nullable=False),  # row of the candidates
        pa.field("similarity", pa.float32(), nullable=False),
    ]
)
"""Which adaptation example has which candidate among its neighbours."""


def write_candidates(folder: Path, candidates: pa.Table, neighbours: pa.Table) -> None:
    """Write tables of ``CANDIDATE_SCHEMA`` and of ``NEIGHBOUR_SCHEMA`` as an artifact's files."""
    write_table(candidates, folder / CANDIDATES)
    write_table(neighbours, folder / NEIGHBOURS)


def read_candidates(store: ArtifactStore, ref: ArtifactRef) -> pa.Table:
    """Return candidates as a table of ``CANDIDATE_SCHEMA``."""
    return read_table(store.folder(ref) / CANDIDATES)


def read_neighbours(store: ArtifactStore, ref: ArtifactRef) -> pa.Table:
    """Return the pairs of adaptation examples and candidates, of ``NEIGHBOUR_SCHEMA``."""
    return read_table(store.folder(ref) / NEIGHBOURS)


def copy_notes(facts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return which candidates were left out as copies, from the facts of those that stay."""
    said = {
        ("excluded_ngram", "excluded_similar"): "that repeat held-out rows",
        ("excluded_trained",): "that repeat rows which are trained on",
        ("excluded_repeated",): "that repeat another candidate",
    }
    counts = {
        text: sum(max(f.get(n, 0) for n in names) for f in facts) for names, text in said.items()
    }
    return tuple(f"{n:,} left out {text}" for text, n in counts.items() if n)


def candidate_table(columns: Sequence[Sequence[Any]]) -> pa.Table:
    """Return columns of ``CANDIDATE_SCHEMA``, in its order, as a table."""
    arrays = [pa.array(c, f.type) for c, f in zip(columns, CANDIDATE_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=CANDIDATE_SCHEMA)


def block_count(rows: int) -> int:
    """Return how many blocks so many candidates are read in."""
    return -(-rows // _BLOCK)


class Candidates:
    """Candidates as scorers read them: rows a block at a time.

    Args:
        store: where the shards are.
        table: of ``CANDIDATE_SCHEMA``.
    """

    def __init__(self, store: ArtifactStore, table: pa.Table) -> None:
        self._store = store
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def similarity(self) -> NDArray[np.float64]:
        """Cosine with the nearest adaptation example, (n,) float64 in [-1, 1]."""
        return np.asarray(self._table["similarity"].to_numpy(), dtype=np.float64)

    @property
    def places(self) -> list[tuple[str, int]]:
        """Where each is in the corpus: part and row; what is there never changes."""
        shards, rows = self._table["shard"].to_pylist(), self._table["row"].to_pylist()
        return [*zip(shards, rows, strict=True)]

    def take(self, positions: NDArray[np.intp]) -> "Candidates":
        """Return some of them, by position."""
        return Candidates(self._store, self._table.take(pa.array(positions)))

    def block(self, number: int) -> "Candidates":
        """Return one of the blocks, counted from 0."""
        return Candidates(self._store, self._table.slice(number * _BLOCK, _BLOCK))

    def blocks(self) -> Iterator[list[Example]]:
        """Yield all candidates in order, some thousands at a time; of large pictures fewer."""
        for shard, row in self._block_places():
            yield from self._few(shard, row)

    def encoded(self, encode: Callable[[list[Example]], Iterable[T]]) -> Iterator[list[T]]:
        """Yield what ``encode`` makes of all candidates in order, always some thousands at a time.

        It is given as many as ``blocks`` yields, which are let go before the next are read.
        """
        for shard, row in self._block_places():
            yield [*chain.from_iterable(map(encode, self._few(shard, row)))]

    def text_blocks(self) -> Iterator[list[str]]:
        """Yield what is written in all candidates, in the same blocks; nothing else is read."""
        for shard, row in self._block_places():
            yield read_texts(self._store, shard, row)

    def _few(self, shard: Sequence[str], row: Sequence[int]) -> Iterator[list[Example]]:
        """Yield a block's rows, no more at a time than fit ``_BLOCK_BYTES``."""
        sizes = row_bytes(self._store, shard)
        full = np.cumsum([sizes[address] for address in shard]) // _BLOCK_BYTES
        cuts = [0, *(np.flatnonzero(np.diff(full)) + 1).tolist(), len(shard)]
        for start, end in pairwise(cuts):
            yield read_examples(self._store, shard[start:end], row[start:end])

    def _block_places(self) -> Iterator[tuple[list[str], list[int]]]:
        for start in range(0, len(self), _BLOCK):
            block = self._table.slice(start, _BLOCK)
            yield block["shard"].to_pylist(), block["row"].to_pylist()
