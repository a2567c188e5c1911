"""Nearest-neighbour index over the corpus embeddings (FAISS): flat, IVF or IVF-PQ."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from albat_core.errors import DimensionMismatchError, InputError
from albat_core.progress import track
from albat_core.records.indexes import STAGE, write_index
from albat_core.records.vectors import EmbeddedPart, load_vectors
from albat_core.search import EmbeddingSpace, VectorIndex, Vectors, exact_search, gpus, recall
from albat_core.seeding import derive_seed, numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

STAGE_VERSION = 1
_BLOCK = 65536  # vectors handled at once
_FEWEST_FOR_CODES = 16  # centroids of a code of 4 bits
_TRAINING_ROWS_PER_CELL = 64  # FAISS wants 39 at least


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
        probes = min(config.probes or max(cells // 16, 8), cells)  # none without cells
        draws = derive_seed(seed, "index", "cells") % 2**31
        index = VectorIndex.new(dimension, factory, runtime, probes=probes, seed=draws)
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
        exact = exact_search(
            sample, map(space.project, blocks("measure recall")), k, gpus(runtime)
        )[1]
        measured = recall(index.search(sample, k)[1], exact)
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
        config.settings(seed=seed),
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
