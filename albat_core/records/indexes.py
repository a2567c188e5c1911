"""Indexes: of the corpus's embeddings, with the space they live in and where each row lies."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from albat_core.records.shards import Part, locate
from albat_core.search.index import WIDER, Positions, VectorIndex
from albat_core.search.space import EmbeddingSpace, Moments, Vectors
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.stage import Runtime

STAGE, CELLS, CODES = "index", "cells", "codes"
_FAISS_FILE, _SPACE_FILE, _PARTS_FILE = "index.faiss", "space.npz", "parts.json"
_QUERIES_FILE = "queries.npz"  # of cells, whose index is empty
_VECTORS_FILE = "vectors.npy"  # of an index that has codes only


@dataclass(frozen=True)
class Cells:
    """What an index learns before its rows are added, and the rows its recall is measured with.

    Args:
        space: that vectors are brought to.
        index: with cells, and of rows none, or those of some groups.
        queries: (q, d) float32, projected rows of the corpus.
        own: (q,) int64, where they lie in it.
    """

    space: EmbeddingSpace
    index: VectorIndex
    queries: Vectors
    own: Positions


class Coded(BaseModel):
    """Cells, and rows that were added to them group by group, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cells: ArtifactRef
    groups: tuple[ArtifactRef, ...] = ()


def write_cells(folder: Path, cells: Cells) -> None:
    """Write cells that were learnt."""
    cells.index.save(folder / _FAISS_FILE)
    np.savez(folder / _SPACE_FILE, mean=cells.space.mean, whitening=cells.space.whitening)
    np.savez(folder / _QUERIES_FILE, queries=cells.queries, own=cells.own)


def load_cells(store: ArtifactStore, ref: ArtifactRef, runtime: Runtime) -> Cells:
    """Load cells that were learnt."""
    return load_coded(store, Coded(cells=ref), runtime)


def load_coded(store: ArtifactStore, coded: Coded, runtime: Runtime) -> Cells:
    """Load cells with the rows of some groups, in order."""
    folder = store.folder(coded.cells)
    groups = (store.folder(ref) / _FAISS_FILE for ref in coded.groups)
    asked = np.load(folder / _QUERIES_FILE, allow_pickle=False)
    return Cells(
        space=_load_space(folder),
        index=VectorIndex.joined(folder / _FAISS_FILE, groups, runtime),
        queries=asked["queries"],
        own=asked["own"],
    )


def write_codes(folder: Path, index: VectorIndex) -> None:
    """Write the rows of a group that were added to cells."""
    index.save(folder / _FAISS_FILE)


def _load_space(folder: Path) -> EmbeddingSpace:
    arrays = np.load(folder / _SPACE_FILE, allow_pickle=False)
    return EmbeddingSpace(arrays["mean"], arrays["whitening"])


@dataclass(frozen=True)
class CorpusIndex:
    """An index that was loaded, with the space it lives in and the parts its rows come from.

    Args:
        index: the vectors.
        space: how queries are brought to it.
        addresses: part addresses, in order.
        ends: (n_parts,) int64, running total of the parts' rows.
        moments: of all rows in the space; None where they were not kept, as they once were not.
    """

    index: VectorIndex
    space: EmbeddingSpace
    addresses: list[str]
    ends: NDArray[np.int64]
    moments: Moments | None = None

    @property
    def rows(self) -> int:
        """Rows of the corpus."""
        return int(self.ends[-1])

    def locate(self, positions: Sequence[int]) -> tuple[list[str], list[int]]:
        """Return part address and row in that part of rows of the index."""
        return locate(self.addresses, self.ends, positions)


def growth_notes(facts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return what became of indexes that were to grow, from their facts."""
    said = []
    for each in facts:
        if added := each.get("added_rows"):
            said.append(f"{added:,} rows added; learnt from {each['fitted_rows']:,} rows")
        if drift := each.get("learnt_anew_at"):
            said.append(f"learnt anew: with rows that came, the corpus had moved by {drift:.0%}")
    return tuple(said)


def whole_vectors(folder: Path, rows: int, dimension: int) -> NDArray[np.float16]:
    """Return what an index's projected vectors (n, d) are kept in, on disk rather than in memory.

    Half precision changes a similarity by some 1e-4.
    """
    kept: NDArray[np.float16] = np.lib.format.open_memmap(
        folder / _VECTORS_FILE, "w+", np.float16, (rows, dimension)
    )
    return kept


def load_whole_vectors(folder: Path) -> NDArray[np.float16] | None:
    """Return what an index's projected vectors (n, d) are kept in, mapped; None: it has them."""
    file = folder / _VECTORS_FILE
    return np.load(file, mmap_mode="r", allow_pickle=False) if file.exists() else None


def write_index(
    folder: Path,
    index: VectorIndex,
    space: EmbeddingSpace,
    moments: Moments,
    parts: Sequence[Part],
) -> None:
    """Write an index, its space, moments of its rows in that, and their parts, in order."""
    index.save(folder / _FAISS_FILE)
    arrays: dict[str, Any] = {
        "mean": space.mean,
        "whitening": space.whitening,
        "rows": moments.rows,
        "total": moments.total,
        "squares": moments.squares,
    }
    if index.wider != WIDER:
        arrays["wider"] = index.wider
    np.savez(folder / _SPACE_FILE, **arrays)
    addresses = [[part.address, part.rows] for part in parts]
    (folder / _PARTS_FILE).write_text(json.dumps(addresses), encoding="utf-8")


def load_index(
    store: ArtifactStore, ref: ArtifactRef, runtime: Runtime, *, to_grow: bool = False
) -> CorpusIndex:
    """Load an index artifact to search it, where it lies on disk; ``to_grow``: to add to it."""
    folder = store.folder(ref)
    arrays = np.load(folder / _SPACE_FILE, allow_pickle=False)
    parts = json.loads((folder / _PARTS_FILE).read_text(encoding="utf-8"))
    moments = None
    if "rows" in arrays:
        rows, total, squares = (arrays[name] for name in ("rows", "total", "squares"))
        moments = Moments(int(rows), total, float(squares))
    exact = load_whole_vectors(folder)
    index = VectorIndex.read(folder / _FAISS_FILE, runtime, exact, mapped=not to_grow)
    index.wider = int(arrays["wider"]) if "wider" in arrays else WIDER
    return CorpusIndex(
        index=index,
        space=_load_space(folder),
        addresses=[address for address, _ in parts],
        ends=np.cumsum([rows for _, rows in parts], dtype=np.int64),
        moments=moments,
    )
