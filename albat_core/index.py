"""Nearest-neighbour index over the corpus embeddings (FAISS): flat, IVF or IVF-PQ."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from albat_core.backbones import resolve_device
from albat_core.embedding import EmbeddedPart, load_vectors
from albat_core.errors import DimensionMismatchError, InputError, MissingDependencyError
from albat_core.progress import track
from albat_core.seeding import derive_seed, numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

STAGE = "index"
STAGE_VERSION = 1
_FAISS_FILE, _SPACE_FILE, _PARTS_FILE = "index.faiss", "space.npz", "parts.json"
_BLOCK = 65536  # vectors handled at once
_FEWEST_FOR_CODES = 16  # centroids of a code of 4 bits
_TRAINING_ROWS_PER_CELL = 64  # FAISS wants 39 at least

Vectors = NDArray[np.float32]


class IndexConfig(StageConfig):
    """How the corpus is searched."""

    kind: Literal["auto", "flat", "ivf", "ivfpq"] = "auto"
    """`flat` is exact; `ivf` looks into some cells; `ivfpq` compresses too; `auto` chooses by rows
    and memory."""
    memory_gb: float = Field(4.0, gt=0)
    """Memory the index may take, in GB; `auto` compresses what would not fit."""
    exact_rows: int = Field(200_000, ge=1)
    """Up to so many rows `auto` searches exactly."""
    cells: int | None = Field(None, ge=1)
    """Cells of ivf and ivfpq; none: 4 sqrt(rows)."""
    probes: int | None = Field(None, ge=1)
    """Cells looked into per query; none: one in sixteen, at least 8."""
    code_bytes: int = Field(32, ge=1)
    """Bytes per vector of ivfpq; lowered to divide the dimension."""
    shrinkage: float = Field(0.1, gt=0, le=1)
    """Whitening: share of the mean variance added to each direction's, in (0, 1]; more trusts the
    corpus's covariance less."""
    recall_k: int = Field(10, ge=1)
    """k of the recall@k that is measured against exact search."""
    recall_sample: int = Field(256, ge=1)
    """Corpus rows used as queries to measure it."""


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


def choose_kind(rows: int, dimension: int, config: IndexConfig) -> str:
    """Return `flat`, `ivf` or `ivfpq`: as configured, or by rows and memory.

    Too few rows to learn codes from are always searched exactly.
    """
    if rows < _FEWEST_FOR_CODES:
        return "flat"
    if config.kind != "auto":
        return config.kind
    fits = rows * dimension * 4 <= config.memory_gb * 1e9
    if rows <= config.exact_rows and fits:
        return "flat"
    return "ivf" if fits else "ivfpq"


def _factory(kind: str, rows: int, dimension: int, config: IndexConfig) -> tuple[str, int]:
    """Return the FAISS factory string and the number of cells (0: none)."""
    if kind == "flat":
        return "Flat", 0
    # FAISS wants some 39 training vectors a cell
    cells = min(config.cells or min(round(4 * math.sqrt(rows)), max(rows // 39, 1)), rows)
    if kind == "ivf":
        return f"IVF{cells},Flat", cells
    code = max(m for m in range(1, min(config.code_bytes, dimension) + 1) if dimension % m == 0)
    bits = 8 if rows >= 256 * 39 else 4
    return f"IVF{cells},PQ{code}x{bits}", cells


class VectorIndex:
    """A FAISS index of projected vectors, searched by inner product.

    Args:
        index: the FAISS index, on the CPU.
        runtime: a CUDA device is used where FAISS was built for it.
    """

    def __init__(self, index: Any, runtime: Runtime) -> None:
        self._index = index
        self._gpu = self._on_gpu(runtime)

    def _on_gpu(self, runtime: Runtime) -> bool:
        faiss = _faiss()
        there = resolve_device(runtime).type == "cuda" and hasattr(faiss, "StandardGpuResources")
        if there and faiss.get_num_gpus() > 0:
            self._resources = faiss.StandardGpuResources()
            self._index = faiss.index_cpu_to_gpu(self._resources, 0, self._index)
            return True
        return False

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


def exact_search(
    queries: Vectors, blocks: Iterator[Vectors], k: int
) -> tuple[Vectors, NDArray[np.int64]]:
    """Return the k most similar rows of all blocks by comparing with every one.

    Args:
        queries: (n, d) float32 projected vectors.
        blocks: (m, d) float32 projected vectors, in order.
        k: neighbours wanted.

    Returns:
        similarities (n, k) float32, descending; positions (n, k) int64; -1 where there is none.
    """
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    where = np.full((len(queries), k), -1, dtype=np.int64)
    start = 0
    for block in blocks:
        similarities = np.concatenate([best, queries @ block.T], axis=1)
        positions = np.concatenate(
            [
                where,
                np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block))),
            ],
            axis=1,
        )
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(similarities, order, axis=1)
        where = np.take_along_axis(positions, order, axis=1)
        start += len(block)
    return best, where


def recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    """Return recall@k: the share of the k exact neighbours (n, k) that were found, in [0, 1]."""
    hits = [
        len(set(f) & set(e) - {-1}) for f, e in zip(found.tolist(), exact.tolist(), strict=True)
    ]
    return sum(hits) / max(int((exact >= 0).sum()), 1)


def build_index(
    parts: Sequence[EmbeddedPart], config: IndexConfig, seed: int, runtime: Runtime
) -> ArtifactRef:
    """Index the embeddings of all parts, and measure how well it finds neighbours.

    Raises:
        InputError: the corpus is empty.
        DimensionMismatchError: parts were embedded by different backbones.
    """
    store = ArtifactStore(runtime.root)
    if not parts:
        raise InputError(
            "expected a corpus with rows, got none",
            where="corpus",
            remedy="check corpus.path and corpus.share",
        )

    rows = sum(p.part.rows for p in parts)

    def blocks(purpose: str) -> Iterator[Vectors]:
        """Read all vectors once, which may take minutes."""
        with track(f"index: {purpose}", rows, "vectors") as advance:
            for part in parts:
                vectors = load_vectors(store, part.embeddings)
                for start in range(0, len(vectors), _BLOCK):
                    yield np.asarray(vectors[start : start + _BLOCK])
                    advance(min(_BLOCK, len(vectors) - start))

    def build(folder: Path) -> Built:
        dimensions = {
            int(store.manifest(p.embeddings).facts["dimension"]): p.part.address for p in parts
        }
        if len(dimensions) > 1:
            raise DimensionMismatchError(
                f"parts have different dimensions: {dimensions}",
                remedy="embed all parts with the same backbone",
            )
        dimension = next(iter(dimensions))
        space = EmbeddingSpace.fit(blocks("whiten"), config.shrinkage)
        kind = choose_kind(rows, dimension, config)
        factory, cells = _factory(kind, rows, dimension, config)
        faiss = _faiss()
        raw = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        probes = 0
        if cells:
            probes = min(config.probes or max(cells // 16, 8), cells)
            raw.nprobe = probes
            raw.cp.seed = derive_seed(seed, "index", "cells") % 2**31
        index = VectorIndex(raw, runtime)
        if cells:
            count = min(
                _TRAINING_ROWS_PER_CELL * cells, int(config.memory_gb * 1e9 / (4 * dimension))
            )
            sample = _sample(blocks("draw a sample"), rows, count, seed, "training")
            index.train(space.project(sample))
        for block in blocks("add"):
            index.add(space.project(block))
        queries = _sample(blocks("draw queries"), rows, config.recall_sample, seed, "recall")
        sample, k = space.project(queries), min(config.recall_k, rows)
        exact = exact_search(sample, map(space.project, blocks("measure recall")), k)[1]
        measured = recall(index.search(sample, k)[1], exact)
        index.save(folder / _FAISS_FILE)
        np.savez(folder / _SPACE_FILE, mean=space.mean, whitening=space.whitening)
        addresses = [[p.part.address, p.part.rows] for p in parts]
        (folder / _PARTS_FILE).write_text(json.dumps(addresses))
        return Built(
            rows=rows,
            facts={
                "kind": kind,
                "factory": factory,
                "dimension": dimension,
                "cells": cells,
                "probes": probes,
                f"recall_at_{k}": round(measured, 4),
            },
        )

    return store.produce(
        STAGE,
        STAGE_VERSION,
        config.model_dump(mode="json") | {"seed": seed},
        {"parts": [[p.part.address, p.embeddings.key] for p in parts]},
        build,
    )


def _sample(blocks: Iterator[Vectors], rows: int, count: int, seed: int, name: str) -> Vectors:
    """Return ``count`` vectors drawn without replacement from all blocks (all, where fewer)."""
    drawn = numpy_generator(seed, "index", name).permutation(rows)[:count]
    drawn.sort()
    taken, start = [], 0
    for block in blocks:
        inside = drawn[(drawn >= start) & (drawn < start + len(block))] - start
        taken.append(block[inside])
        start += len(block)
    return np.concatenate(taken)


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
        where = np.asarray(positions, dtype=np.int64)
        parts = np.searchsorted(self.ends, where, side="right")
        starts = np.concatenate([[0], self.ends])[parts]
        return [self.addresses[p] for p in parts], (where - starts).tolist()


def load_index(store: ArtifactStore, ref: ArtifactRef, runtime: Runtime) -> CorpusIndex:
    """Load an index artifact."""
    folder = store.folder(ref)
    arrays = np.load(folder / _SPACE_FILE, allow_pickle=False)
    parts = json.loads((folder / _PARTS_FILE).read_text())
    return CorpusIndex(
        index=VectorIndex(_faiss().read_index(str(folder / _FAISS_FILE)), runtime),
        space=EmbeddingSpace(arrays["mean"], arrays["whitening"]),
        addresses=[address for address, _ in parts],
        ends=np.cumsum([rows for _, rows in parts], dtype=np.int64),
    )
