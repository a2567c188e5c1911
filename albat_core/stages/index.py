"""Nearest-neighbour index over the corpus embeddings (FAISS): flat, IVF or IVF-PQ."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from albat_core.errors import DimensionMismatchError, InputError
from albat_core.progress import track
from albat_core.records.indexes import STAGE, whole_vectors, write_index
from albat_core.records.vectors import EmbeddedPart, load_vectors
from albat_core.search import (
    EmbeddingSpace,
    ExactSearch,
    VectorIndex,
    Vectors,
    gpus,
    recall,
    without,
)
from albat_core.seeding import derive_seed, numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

STAGE_VERSION = 1
_BLOCK = 65536  # vectors handled at once
_FEWEST_FOR_CODES = 16  # centroids of a code of 4 bits
_TRAINING_ROWS_PER_CELL = 64  # FAISS wants 39 at least
_FEWEST_PROBES = 8
_MANY_CELLS = 4096  # that a graph finds faster than a comparison with each
_METHOD = 2  # of finding neighbours otherwise than exactly


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
    """Cells looked into per query; none: so many that `least_recall` is reached."""
    least_recall: float = Field(0.95, gt=0, le=1)
    """Recall@k, in (0, 1], that `probes` are chosen for."""
    code_bytes: int = Field(32, ge=1)
    """Bytes per vector of ivfpq; lowered to divide the dimension."""
    shrinkage: float = Field(0.1, gt=0, le=1)
    """Whitening: share of the mean variance added to each direction's, in (0, 1]; more trusts the
    corpus's covariance less."""
    recall_k: int = Field(10, ge=1)
    """k of the recall@k that is measured against exact search."""
    recall_sample: int = Field(256, ge=1)
    """Corpus rows used as queries to measure it; what they find of themselves does not count."""


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


def _factory(
    kind: str, rows: int, dimension: int, config: IndexConfig, *, graph: bool
) -> tuple[str, int]:
    """Return the FAISS factory string and the number of cells (0: none).

    Args:
        kind: `flat`, `ivf` or `ivfpq`.
        rows: of the corpus.
        dimension: of the vectors.
        config: the rest.
        graph: whether many cells are found by a graph.
    """
    if kind == "flat":
        return "Flat", 0
    # FAISS wants some 39 training vectors a cell
    cells = min(config.cells or min(round(4 * math.sqrt(rows)), max(rows // 39, 1)), rows)
    lists = f"IVF{cells}_HNSW32" if graph and cells >= _MANY_CELLS else f"IVF{cells}"
    if kind == "ivf":
        return f"{lists},Flat", cells
    code = max(m for m in range(1, min(config.code_bytes, dimension) + 1) if dimension % m == 0)
    bits = 8 if rows >= 256 * 39 else 4
    return f"{lists},PQ{code}x{bits}", cells


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
    dimension = int(store.manifest(parts[0].embeddings).facts["dimension"])
    kind = choose_kind(rows, dimension, config)
    graph = not gpus(runtime)  # those have none
    factory, cells = _factory(kind, rows, dimension, config, graph=graph)
    settings = config.settings(seed=seed)
    if kind != "flat":
        settings = config.settings(seed=seed, method=_METHOD)

    def blocks(purpose: str) -> Iterator[Vectors]:
        """Read all vectors once, which may take minutes."""
        with track(f"index: {purpose}", rows, "vectors") as advance:
            for part in parts:
                vectors = load_vectors(store, part.embeddings)
                _refuse_other_dimension(dimension, vectors, parts[0], part)
                for start in range(0, len(vectors), _BLOCK):
                    yield np.asarray(vectors[start : start + _BLOCK])
                    advance(min(_BLOCK, len(vectors) - start))

    def build(folder: Path) -> Built:
        k = min(config.recall_k, rows)
        space = EmbeddingSpace.fit(blocks("whiten"), config.shrinkage)
        draws = derive_seed(seed, "index", "cells") % 2**31
        index = VectorIndex.new(dimension, factory, runtime, cells=cells, seed=draws)
        if not cells:
            for block in blocks("add"):
                index.add(space.project(block))
            measured, probes = 1.0, 0
        else:
            most = int(config.memory_gb * 1e9 / (4 * dimension))
            wanted = {
                "training": min(_TRAINING_ROWS_PER_CELL * cells, most),
                "recall": config.recall_sample,
            }
            drawn = {name: _drawn(rows, count, seed, name) for name, count in wanted.items()}
            taken = _taken(blocks("draw a sample"), drawn)
            index.train(space.project(taken["training"]))
            queries = space.project(taken["recall"])
            exact = ExactSearch(queries, min(k + 1, rows), gpus(runtime))
            kept = whole_vectors(folder, rows, dimension) if kind == "ivfpq" else None
            start = 0
            for block in map(space.project, blocks("add")):
                index.add(block)
                exact.add(block)
                if kept is not None:
                    kept[start : start + len(block)] = block
                start += len(block)
            index.compare_with(kept)
            own = drawn["recall"]
            near = without(exact.positions, own, k)

            def found(probes: int) -> float:
                index.look_into(probes)
                return recall(without(index.search(queries, min(k + 1, rows))[1], own, k), near)

            probes, measured = _enough_probes(found, cells, config)
        write_index(folder, index, space, [p.part for p in parts])
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
        settings,
        {"parts": [[p.part.address, p.embeddings.key] for p in parts]},
        build,
    )


def _enough_probes(
    measure: Callable[[int], float], cells: int, config: IndexConfig
) -> tuple[int, float]:
    """Return the cells to look into, and the recall with these.

    Args:
        measure: gives the recall with so many.
        cells: that there are.
        config: names them, or the recall wanted.
    """
    probes = min(config.probes or _FEWEST_PROBES, cells)
    measured = measure(probes)
    while not config.probes and measured < config.least_recall and probes < cells:
        probes = min(2 * probes, cells)
        measured = measure(probes)
    return probes, measured


def _refuse_other_dimension(
    dimension: int, vectors: Vectors, first: EmbeddedPart, part: EmbeddedPart
) -> None:
    """Refuse a part whose embeddings do not have the dimension of the first part's."""
    if vectors.shape[1] != dimension:
        raise DimensionMismatchError(
            f"parts have different dimensions: {dimension} of {first.part.address}, "
            f"{vectors.shape[1]} of {part.part.address}",
            remedy="embed all parts with the same backbone",
        )


def _drawn(rows: int, count: int, seed: int, name: str) -> NDArray[np.int64]:
    """Return ``count`` of all rows in order, drawn without replacement (all, where fewer)."""
    generator = numpy_generator(seed, "index", name)
    return np.sort(generator.choice(rows, min(count, rows), replace=False, shuffle=False))


def _taken(
    blocks: Iterator[Vectors], wanted: Mapping[str, NDArray[np.int64]]
) -> dict[str, Vectors]:
    """Return the vectors of the rows wanted under each name, which are in order."""
    taken: dict[str, list[Vectors]] = {name: [] for name in wanted}
    start = 0
    for block in blocks:
        for name, rows in wanted.items():
            first, last = np.searchsorted(rows, (start, start + len(block)))
            taken[name].append(block[rows[first:last] - start])
        start += len(block)
    return {name: np.concatenate(some) for name, some in taken.items()}
