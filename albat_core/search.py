"""Nearest neighbours by FAISS: the space vectors live in, indexes of them, exact search."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albat_core.devices import resolve_device
from albat_core.errors import DimensionMismatchError, MissingDependencyError
from albat_core.store.stage import Runtime

Vectors = NDArray[np.float32]


def check_faiss() -> None:
    """Look whether FAISS is there.

    Raises:
        MissingDependencyError: it is not.
    """
    _faiss()


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            "FAISS is needed and not installed",
            remedy="install albat[cpu], or albat[gpu] where there is a CUDA device",
        ) from error
    return faiss


@dataclass(frozen=True)
class EmbeddingSpace:
    """Centring, whitening and normalising, as learnt from the corpus.

    Args:
        mean: (d,) float32.
        whitening: (d, d) float32, symmetric.
    """

    mean: Vectors
    whitening: Vectors

    @classmethod
    def fit(cls, blocks: Iterator[Vectors], shrinkage: float) -> "EmbeddingSpace":
        """Learn from blocks of (n, d) embeddings: W = V (L + s mean(L))^-1/2 V^T, cov = V L V^T."""
        count, total, second = 0, np.zeros(0), np.zeros((0, 0))
        for block in blocks:
            wide = block.astype(np.float64)
            if count == 0:
                total, second = np.zeros(wide.shape[1]), np.zeros((wide.shape[1],) * 2)
            count += len(wide)
            total += wide.sum(axis=0)
            second += wide.T @ wide
        mean = total / count
        values, directions = np.linalg.eigh(second / count - np.outer(mean, mean))
        values = np.clip(values, 0, None)
        scale = 1 / np.sqrt(values + max(shrinkage * values.mean(), 1e-12))
        whitening = (directions * scale) @ directions.T
        return cls(mean.astype(np.float32), whitening.astype(np.float32))

    def project(self, vectors: Vectors) -> Vectors:
        """Return (n, d) float32 vectors of unit length, on which a dot product is a similarity.

        Raises:
            DimensionMismatchError: the vectors have another dimension.
        """
        if vectors.shape[1] != len(self.mean):
            raise DimensionMismatchError(
                f"queries have d={vectors.shape[1]} but the index has d={len(self.mean)}",
                remedy="embed queries and corpus with the same backbone",
            )
        white = (vectors - self.mean) @ self.whitening
        norms = np.linalg.norm(white, axis=1, keepdims=True)
        return np.ascontiguousarray(white / np.maximum(norms, 1e-12), dtype=np.float32)


class VectorIndex:
    """A FAISS index of projected vectors, searched by inner product.

    Args:
        index: the FAISS index, on the CPU.
        runtime: a CUDA device is used where FAISS was built for it.
    """

    def __init__(self, index: Any, runtime: Runtime) -> None:
        self._index = index
        self._gpu = gpus(runtime) > 0
        if self._gpu:
            faiss = _faiss()
            self._resources = faiss.StandardGpuResources()
            self._index = faiss.index_cpu_to_gpu(self._resources, 0, index)

    @classmethod
    def new(
        cls, dimension: int, factory: str, runtime: Runtime, *, probes: int = 0, seed: int = 0
    ) -> "VectorIndex":
        """Return an empty index.

        Args:
            dimension: of the vectors.
            factory: what FAISS is to make, such as "Flat" or "IVF100,PQ32x8".
            runtime: where it computes.
            probes: cells looked into per query; 0 where the kind has no cells.
            seed: of the cells' k-means, in [0, 2**31).
        """
        faiss = _faiss()
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        if probes:
            index.nprobe, index.cp.seed = probes, seed
        return cls(index, runtime)

    @classmethod
    def read(cls, path: Path, runtime: Runtime) -> "VectorIndex":
        """Return the index that ``save`` wrote."""
        return cls(_faiss().read_index(str(path)), runtime)

    def train(self, sample: Vectors) -> None:
        """Learn cells and codes from (n, d) projected vectors, where the kind has any."""
        if not self._index.is_trained:
            self._index.train(sample)

    def add(self, vectors: Vectors) -> None:
        """Add (n, d) projected vectors behind those there are."""
        self._index.add(vectors)

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
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
        D, I = self._index.search(np.ascontiguousarray(queries), k)  # noqa: N806, E741
        return D, I

    def save(self, path: Path) -> None:
        """Write the index as FAISS does, from the CPU."""
        faiss = _faiss()
        index = faiss.index_gpu_to_cpu(self._index) if self._gpu else self._index
        # through Python: FAISS itself does not notice that a file could not be closed (disk full)
        with path.open("wb") as file:
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def gpus(runtime: Runtime) -> int:
    """Return how many GPUs FAISS computes on: 0 where it is built without, or none is wanted."""
    wanted = resolve_device(runtime).type == "cuda"
    return int(_faiss().get_num_gpus()) if wanted else 0


def exact_search(
    queries: Vectors, blocks: Iterator[Vectors], k: int, gpus: int = 0
) -> tuple[Vectors, NDArray[np.int64]]:
    """Return the k most similar rows of all blocks by comparing with every one.

    Args:
        queries: (n, d) float32 projected vectors.
        blocks: (m, d) float32 projected vectors, in order.
        k: neighbours wanted.
        gpus: that compute; 0: the CPU.

    Returns:
        similarities (n, k) float32, descending, -inf where there is no row;
        positions (n, k) int64, -1 where there is none.
    """
    faiss = _faiss()
    from faiss.contrib.exhaustive_search import knn_ground_truth

    similarities, positions = knn_ground_truth(
        queries, blocks, k, faiss.METRIC_INNER_PRODUCT, ngpu=gpus
    )
    # FAISS counts the rows of a block on from those before it, also the -1 of rows that are missing
    missing = similarities < -2.0
    return np.where(missing, -np.inf, similarities), np.where(missing, -1, positions)


def recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    """Return recall@k: the share of the k exact neighbours (n, k) that were found, in [0, 1]."""
    hits = [
        len(set(f) & set(e) - {-1}) for f, e in zip(found.tolist(), exact.tolist(), strict=True)
    ]
    return sum(hits) / max(int((exact >= 0).sum()), 1)
