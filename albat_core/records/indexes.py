"""Indexes: of the corpus's embeddings, with the space they live in and where each row lies."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from albat_core.records.shards import Part, locate
from albat_core.search import EmbeddingSpace, VectorIndex
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.stage import Runtime

STAGE = "index"
_FAISS_FILE, _SPACE_FILE, _PARTS_FILE = "index.faiss", "space.npz", "parts.json"
_VECTORS_FILE = "vectors.npy"  # of an index that has codes only


@dataclass(frozen=True)
class CorpusIndex:
    """An index that was loaded, with the space it lives in and the parts its rows come from.

    Args:
        index: the vectors.
        space: how queries are brought to it.
        addresses: part addresses, in order.
        ends: (n_parts,) int64, running total of the parts' rows.
    """

    index: VectorIndex
    space: EmbeddingSpace
    addresses: list[str]
    ends: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Rows of the corpus."""
        return int(self.ends[-1])

    def locate(self, positions: Sequence[int]) -> tuple[list[str], list[int]]:
        """Return part address and row in that part of rows of the index."""
        return locate(self.addresses, self.ends, positions)


def whole_vectors(folder: Path, rows: int, dimension: int) -> NDArray[np.float16]:
    """Return what an index's projected vectors (n, d) are kept in, on disk rather than in memory.

    Half precision changes a similarity by some 1e-4.
    """
    kept: NDArray[np.float16] = np.lib.format.open_memmap(
        folder / _VECTORS_FILE, "w+", np.float16, (rows, dimension)
    )
    return kept


def write_index(
    folder: Path, index: VectorIndex, space: EmbeddingSpace, parts: Sequence[Part]
) -> None:
    """Write an index, the space it lives in and the parts whose rows it has, in order."""
    index.save(folder / _FAISS_FILE)
    np.savez(folder / _SPACE_FILE, mean=space.mean, whitening=space.whitening)
    addresses = [[part.address, part.rows] for part in parts]
    (folder / _PARTS_FILE).write_text(json.dumps(addresses))


def load_index(store: ArtifactStore, ref: ArtifactRef, runtime: Runtime) -> CorpusIndex:
    """Load an index artifact."""
    folder = store.folder(ref)
    arrays = np.load(folder / _SPACE_FILE, allow_pickle=False)
    parts = json.loads((folder / _PARTS_FILE).read_text())
    vectors = folder / _VECTORS_FILE
    exact = np.load(vectors, mmap_mode="r", allow_pickle=False) if vectors.exists() else None
    return CorpusIndex(
        index=VectorIndex.read(folder / _FAISS_FILE, runtime, exact),
        space=EmbeddingSpace(arrays["mean"], arrays["whitening"]),
        addresses=[address for address, _ in parts],
        ends=np.cumsum([rows for _, rows in parts], dtype=np.int64),
    )
