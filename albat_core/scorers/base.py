"""What a scorer is given and what it gives."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from albat_core.records import Example
from albat_core.shards import read_rows
from albat_core.store.artifacts import ArtifactStore

Scores = NDArray[np.float64]
_BLOCK = 4096  # candidates that are in memory at once


LABEL = "score candidates"
"""Names the progress line of work on all candidates."""


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
    def similarity(self) -> Scores:
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

    def blocks(self) -> Iterator[list[Example]]:
        """Yield all candidates in order, some thousands at a time."""
        for start in range(0, len(self), _BLOCK):
            block = self._table.slice(start, _BLOCK)
            yield read_rows(self._store, block["shard"].to_pylist(), block["row"].to_pylist())


class Scorer(Protocol):
    """Gives candidates their scores: higher is better."""

    @property
    def passes(self) -> int:
        """Units that went through the model so far; a backward pass counts for two."""

    def score(self, candidates: Candidates) -> dict[str, Scores]:
        """Return columns (n,) by name: ``score``, and the losses behind it where there are any."""


def rank_correlation(first: Scores, second: Scores) -> float:
    """Return Spearman's correlation of two scores (n,), in [-1, 1]; 1 where neither varies."""
    if len(first) < 2:
        return 1.0
    ranks = [np.argsort(np.argsort(v, kind="stable")).astype(np.float64) for v in (first, second)]
    first, second = (r - r.mean() for r in ranks)
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))
