"""Nearest neighbours by FAISS: indexes of vectors, and exact search."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from albat_core.errors import DimensionMismatchError
from albat_core.search.library import MOST, fused_distances, gpus, load_faiss, on_gpu
from albat_core.search.space import Vectors
from albat_core.store.stage import Runtime

Positions = NDArray[np.int64]

WIDER = 4
"""Times as many neighbours by codes as are wanted are compared exactly, at first."""
_MOST_WIDER = 256
_WIDEST = 16_384
"""Neighbours by codes of a query that are compared exactly at most; of a GPU, what it finds."""
_FEWEST = 40
_FEWEST_PROBES = 8
_GATHERED = 1 << 24  # numbers of exact vectors in memory at once, 64 MB


class VectorIndex:
    """A FAISS index of projected vectors, searched by inner product.

    Args:
        index: the FAISS index, on the CPU.
        runtime: a CUDA device is used where FAISS was built for it and has what is asked of it;
            what it has not (some codes, over 2,048 neighbours or cells) the CPU does.
        exact: (n, d) float16, the vectors that the index has as codes only; may be mapped from a
            file. More neighbours are then found by codes, and the nearest of them by these.

    Attributes:
        wider: how many times more.
    """

    def __init__(
        self, index: Any, runtime: Runtime, exact: NDArray[np.float16] | None = None
    ) -> None:
        self._index = index
        self._exact = exact
        self.wider = WIDER
        self._gpu = False
        if gpus(runtime):
            self._resources = load_faiss().StandardGpuResources()
            there = on_gpu(index, self._resources)
            if there is not None:
                self._index, self._gpu = there, True

    @classmethod
    def new(
        cls, dimension: int, factory: str, runtime: Runtime, *, cells: int = 0, seed: int = 0
    ) -> "VectorIndex":
        """Return an empty index.

        Args:
            dimension: of the vectors.
            factory: what FAISS is to make, such as "Flat" or "IVF100,PQ32x8".
            runtime: where it computes.
            cells: of the kind; 0 where it has none.
            seed: of the cells' k-means, in [0, 2**31).
        """
        faiss = load_faiss()
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        if cells:
            index.cp.seed = seed
        return cls(index, runtime)

    @classmethod
    def read(
        cls,
        path: Path,
        runtime: Runtime,
        exact: NDArray[np.float16] | None = None,
        *,
        mapped: bool = False,
    ) -> "VectorIndex":
        """Return the index that ``save`` wrote.

        Args:
            path: of its file.
            runtime: where it is searched.
            exact: see ``VectorIndex``.
            mapped: whether its cells, where it has any, stay in the file on a CPU: only those that
                are looked into are read, and none can be added to.
        """
        faiss = load_faiss()
        flags = faiss.IO_FLAG_MMAP if mapped and not gpus(runtime) else 0
        return cls(faiss.read_index(str(path), flags), runtime, exact)

    @classmethod
    def joined(cls, empty: Path, filled: Iterable[Path], runtime: Runtime) -> "VectorIndex":
        """Return an index of all rows of some, in order, as if they had been added to one.

        Args:
            empty: file of the index with cells that rows were added to, without any.
            filled: files of what it became; one at a time is in memory.
            runtime: where it is searched.
        """
        faiss = load_faiss()
        index = faiss.read_index(str(empty))
        for file in filled:
            index.merge_from(faiss.read_index(str(file)), index.ntotal)
        return cls(index, runtime)

    def compare_with(self, exact: NDArray[np.float16] | None) -> None:
        """Give the vectors, (n, d), that the nearest are found by; None: those it has."""
        self._exact = exact

    def look_into(self, probes: int, wider: int = WIDER) -> None:
        """Set how many cells are looked into per query, and how many more than k are compared."""
        self.wider = wider
        self._leave_gpu_beyond(probes)
        self._index.nprobe = probes
        graph = self._graph()
        if graph is not None:
            graph.hnsw.efSearch = max(2 * probes, _FEWEST)

    def train(self, sample: Vectors) -> None:
        """Learn cells and codes from (n, d) projected vectors, where the kind has any."""
        if self._index.is_trained:
            return
        graph = self._graph()
        with fused_distances():
            if graph is not None:
                self._join(graph, sample)
            self._index.train(sample)

    def _graph(self) -> Any:
        """Return the graph by which cells are found; None where each is compared with."""
        quantizer = getattr(self._index, "quantizer", None)
        found = load_faiss().downcast_index(quantizer) if quantizer is not None else None
        return found if hasattr(found, "hnsw") else None

    def _leave_gpu_beyond(self, wanted: int) -> None:
        """Go on on the CPU where more neighbours or cells are wanted than a GPU finds."""
        if self._gpu and wanted > MOST:
            self._index, self._gpu = load_faiss().index_gpu_to_cpu(self._index), False

    def _join(self, graph: Any, sample: Vectors) -> None:
        """Learn the cells and join them to a graph, which is another one where threads race."""
        faiss = load_faiss()
        cells = faiss.extract_index_ivf(self._index)
        means = faiss.Clustering(cells.d, cells.nlist, cells.cp)
        means.train(sample, faiss.IndexFlatIP(cells.d))
        centres = faiss.vector_to_array(means.centroids).reshape(cells.nlist, cells.d)
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            graph.add(centres)
        finally:
            faiss.omp_set_num_threads(threads)

    def add(self, vectors: Vectors) -> None:
        """Add (n, d) projected vectors behind those there are."""
        self._index.add(vectors)

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Positions]:
        """Return each query's k most similar rows.

        Args:
            queries: (n, d) float32 projected vectors.
            k: neighbours wanted.

        Returns:
            similarities (n, k) float32 in [-1, 1], descending;
            positions (n, k) int64 in the order of adding, -1 where there is none.

        Raises:
            DimensionMismatchError: the queries have another dimension.
        """
        if queries.shape[1] != self._index.d:
            raise DimensionMismatchError(
                f"queries have d={queries.shape[1]} but the index has d={self._index.d}",
                remedy="embed queries and corpus with the same backbone",
            )
        queries = np.ascontiguousarray(queries)
        self._leave_gpu_beyond(k)
        if self._exact is None:
            similarities, positions = self._index.search(queries, k)
            return similarities, positions
        most = MOST if self._gpu else _WIDEST
        wide = min(max(self.wider * k, _FEWEST), max(most, k), len(self._exact))
        found = self._index.search(queries, max(wide, k))[1]
        size = max(_GATHERED // (found.shape[1] * queries.shape[1]), 1)
        parts = [
            _nearest(queries[start : start + size], found[start : start + size], self._exact, k)
            for start in range(0, len(queries), size)
        ]
        similarities, positions = (np.concatenate(its) for its in zip(*parts, strict=True))
        return similarities, positions

    def save(self, path: Path) -> None:
        """Write the index as FAISS does, from the CPU."""
        faiss = load_faiss()
        index = faiss.index_gpu_to_cpu(self._index) if self._gpu else self._index
        # through Python: FAISS itself does not notice that a file could not be closed (disk full)
        with path.open("wb") as file:
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def _nearest(
    queries: Vectors, positions: Positions, exact: NDArray[np.float16], k: int
) -> tuple[Vectors, Positions]:
    """Return the k nearest of some rows (n, m) by their exact vectors, as ``search`` does."""
    vectors = exact[np.maximum(positions, 0)].astype(np.float32)
    similarities = np.einsum("nd,nmd->nm", queries, vectors)
    similarities[positions < 0] = -np.inf
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, 1), np.take_along_axis(positions, order, 1)


class ExactSearch:
    """The rows most similar to queries, of all in blocks that are given one after the other.

    Args:
        queries: (n, d) float32 projected vectors.
        k: neighbours wanted.
        gpus: that compute; 0: the CPU.

    Attributes:
        similarities: (n, k) float32, descending, -inf where there is no row.
        positions: (n, k) int64, -1 where there is none.
    """

    def __init__(self, queries: Vectors, k: int, gpus: int = 0) -> None:
        self._queries = np.ascontiguousarray(queries)
        self._rows = 0
        self._resources = load_faiss().StandardGpuResources() if gpus else None
        self.similarities: Vectors = np.full((len(queries), k), -np.inf, np.float32)
        self.positions: Positions = np.full((len(queries), k), -1, np.int64)

    def add(self, block: Vectors) -> None:
        """Compare with (m, d) float32 projected vectors, which come behind those before."""
        faiss, k = load_faiss(), self.positions.shape[1]
        asked = (self._queries, np.ascontiguousarray(block), min(k, len(block)))
        metric = faiss.METRIC_INNER_PRODUCT
        if self._resources is None:
            similarities, positions = faiss.knn(*asked, metric=metric)
        else:
            similarities, positions = faiss.knn_gpu(self._resources, *asked, metric=metric)
        every = np.concatenate([self.similarities, similarities], axis=1)
        places = np.concatenate([self.positions, positions + self._rows], axis=1)
        order = np.argsort(-every, axis=1, kind="stable")[:, :k]
        self.similarities = np.take_along_axis(every, order, 1)
        self.positions = np.take_along_axis(places, order, 1)
        self._rows += len(block)


def without(positions: Positions, own: Positions, k: int) -> Positions:
    """Return the first k positions of each row (n, m) that are not its own, (n,)."""
    others = positions != own[:, None]
    order = np.argsort(~others, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(positions, order, 1)


def recalls(found: Positions, exact: Positions) -> NDArray[np.float64]:
    """Return each query's recall@k: the share of its exact neighbours that were found, in [0, 1].

    Args:
        found: (n, k), -1 where there is none.
        exact: likewise; a query without any counts as 0.
    """
    return np.array(
        [
            len(set(f) & set(e) - {-1}) / max(sum(n >= 0 for n in e), 1)
            for f, e in zip(found.tolist(), exact.tolist(), strict=True)
        ]
    )


def recall(found: Positions, exact: Positions) -> float:
    """Return the mean recall@k of queries, see ``recalls``."""
    return float(recalls(found, exact).mean())


class Looking(NamedTuple):
    """How far a search looks."""

    probes: int
    """Cells looked into per query."""
    wider: int = WIDER
    """Times k, neighbours by codes that are compared exactly."""


def enough(
    measure: Callable[[Looking], NDArray[np.float64]],
    cells: int,
    probes: int | None,
    least: float,
    *,
    codes: bool,
) -> tuple[Looking, float]:
    """Return how far to look, and the mean recall with that.

    Twice the cells or four times the neighbours by codes, whichever finds more, until the recall is
    reached with two standard errors of it to spare.

    Args:
        measure: gives each query's recall.
        cells: that there are.
        probes: cells to look into, and no further; None: as many as the recall asks for.
        least: recall wanted, in (0, 1].
        codes: whether there are any to compare more of.
    """
    looking = Looking(min(probes or _FEWEST_PROBES, cells))
    measured = measure(looking)
    while not probes and _surely(measured) < least:
        further = []
        if looking.probes < cells:
            further.append(Looking(min(2 * looking.probes, cells), looking.wider))
        if codes and looking.wider < _MOST_WIDER:
            further.append(Looking(looking.probes, 4 * looking.wider))
        if not further:
            break
        found = [(measure(one), one) for one in further]
        measured, looking = max(found, key=lambda one: float(one[0].mean()))
    return looking, float(measured.mean())


def _surely(recalls: NDArray[np.float64]) -> float:
    """Return what the mean of others like these is not below, but by bad luck."""
    return float(recalls.mean() - 2 * recalls.std() / math.sqrt(len(recalls)))
