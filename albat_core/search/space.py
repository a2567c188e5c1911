"""The space that vectors live in: how it is learnt, how far rows drift from it, draws of rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from albat_core.errors import DimensionMismatchError
from albat_core.seeding import numpy_generator

Vectors = NDArray[np.float32]


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
        return unit(self.whiten(vectors))

    def whiten(self, vectors: Vectors) -> Vectors:
        """Return (n, d) float32 vectors as ``project`` does, before they have unit length."""
        return np.asarray((vectors - self.mean) @ self.whitening, dtype=np.float32)


def unit(vectors: Vectors) -> Vectors:
    """Return (n, d) float32 vectors at unit length."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


class Moments:
    """Sums over whitened rows, which tell how far they are from those a space was learnt from.

    Args:
        rows: counted.
        total: (d,) float64, their sum.
        squares: sum of their squared lengths.
    """

    def __init__(self, rows: int, total: NDArray[np.float64], squares: float) -> None:
        self.rows, self.total, self.squares = rows, total, squares

    @classmethod
    def none(cls, dimension: int) -> "Moments":
        """Return those of no rows."""
        return cls(0, np.zeros(dimension), 0.0)

    def add(self, white: Vectors) -> None:
        """Count (n, d) whitened rows."""
        self.rows += len(white)
        self.total = self.total + white.sum(axis=0, dtype=np.float64)
        self.squares += float(np.einsum("nd,nd->", white, white, dtype=np.float64))

    @property
    def spread(self) -> float:
        """Mean squared length of a row, at least 0."""
        return self.squares / max(self.rows, 1)

    def drift(self, spread: float) -> float:
        """Return how far mean or spread have moved, as a share of the spread once, at least 0.

        Args:
            spread: of the rows that the space was learnt from, whose mean is 0.
        """
        mean = self.total / max(self.rows, 1)
        moved = max(abs(self.spread - spread), float(mean @ mean))
        return moved / max(spread, 1e-12)


def drawn(rows: int, count: int, seed: int, name: str) -> NDArray[np.int64]:
    """Return ``count`` of all rows in order, drawn without replacement (all, where fewer)."""
    generator = numpy_generator(seed, "index", name)
    return np.sort(generator.choice(rows, min(count, rows), replace=False, shuffle=False))


def taken(blocks: Iterator[Vectors], wanted: Mapping[str, NDArray[np.int64]]) -> dict[str, Vectors]:
    """Return the vectors of the rows wanted under each name, which are in order."""
    found: dict[str, list[Vectors]] = {name: [] for name in wanted}
    start = 0
    for block in blocks:
        for name, rows in wanted.items():
            first, last = np.searchsorted(rows, (start, start + len(block)))
            found[name].append(block[rows[first:last] - start])
        start += len(block)
    return {name: np.concatenate(some) for name, some in found.items()}
