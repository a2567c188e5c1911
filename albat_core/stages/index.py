"""Nearest-neighbour index over the corpus embeddings (FAISS): flat, IVF or IVF-PQ."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from albat_core.errors import DimensionMismatchError, InputError
from albat_core.progress import track
from albat_core.records.indexes import (
    STAGE,
    load_index,
    load_whole_vectors,
    whole_vectors,
    write_index,
)
from albat_core.records.vectors import EmbeddedPart, load_vectors
from albat_core.search import (
    EmbeddingSpace,
    ExactSearch,
    Moments,
    VectorIndex,
    Vectors,
    gpus,
    recall,
    unit,
    without,
)
from albat_core.seeding import derive_seed, numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, Settings, StageConfig

STAGE_VERSION = 1
_BLOCK = 65536  # vectors handled at once
_FEWEST_FOR_CODES = 16  # centroids of a code of 4 bits
_TRAINING_ROWS_PER_CELL = 64  # FAISS wants 39 at least
_FEWEST_PROBES = 8
_MANY_CELLS = 4096  # that a graph finds faster than a comparison with each
_MOST_GROWTH = 2  # times the rows that space and cells were learnt from
_DRIFT = 0.1  # share of the spread by which a corpus may move that they are kept for
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
    grow: bool = False
    """Go on from the last index of this run's name where the corpus has only grown: new rows are
    added to the space and cells there are, until there are twice as many or they differ. What is
    found then depends on what came first."""


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
    parts: Sequence[EmbeddedPart],
    config: IndexConfig,
    seed: int,
    runtime: Runtime,
    earlier: ArtifactRef | None = None,
) -> ArtifactRef:
    """Index the embeddings of all parts, and measure how well it finds neighbours.

    An earlier index grows where it is of the same settings and some of the parts. The key of what
    it becomes says whose space and cells it has, and the order of its parts; its recall is that
    which was measured when they were learnt. Where the corpus differs by now, they are learnt anew.

    Args:
        parts: of the corpus.
        config: of the index.
        seed: of samples and cells.
        runtime: where artifacts are kept, and what computes.
        earlier: an index to go on from.

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
    dimension = int(store.manifest(parts[0].embeddings).facts["dimension"])
    kind = choose_kind(sum(p.part.rows for p in parts), dimension, config)
    method = {} if kind == "flat" else {"method": _METHOD}
    settings = config.settings(without={"grow"}, seed=seed, **method)
    growing = _growing(store, earlier, parts, settings, kind) if earlier else None
    inputs: dict[str, Any] = {}
    if growing is not None:
        if not growing.fresh:
            return growing.ref.model_copy(update={"reused": True})
        parts = [*growing.known, *growing.fresh]
        inputs["learnt"] = growing.learnt
    inputs["parts"] = [[p.part.address, p.embeddings.key] for p in parts]
    building = _Building(store, parts, dimension, kind, config, seed, runtime)

    def build(folder: Path) -> Built:
        if growing is None:
            return building.learn(folder)
        grown = building.grow(folder, growing)
        if isinstance(grown, Built):
            return grown
        built = building.learn(folder)
        return built.model_copy(update={"facts": built.facts | {"learnt_anew_at": grown}})

    return store.produce(STAGE, STAGE_VERSION, settings, inputs, build)


@dataclass(frozen=True)
class _Building:
    """What an index is built of.

    Args:
        store: where embeddings are.
        parts: of the corpus, in order.
        dimension: of the first part's embeddings.
        kind: `flat`, `ivf` or `ivfpq`.
        config: of the index.
        seed: of samples and cells.
        runtime: what computes.
    """

    store: ArtifactStore
    parts: Sequence[EmbeddedPart]
    dimension: int
    kind: str
    config: IndexConfig
    seed: int
    runtime: Runtime

    @property
    def rows(self) -> int:
        """Of all parts."""
        return sum(part.part.rows for part in self.parts)

    def learn(self, folder: Path) -> Built:
        """Learn space and cells, add all rows, and measure what is found."""
        config, rows, runtime = self.config, self.rows, self.runtime
        k = min(config.recall_k, rows)
        graph = not gpus(runtime)  # those have none
        factory, cells = _factory(self.kind, rows, self.dimension, config, graph=graph)
        space = EmbeddingSpace.fit(self._blocks("whiten", self.parts), config.shrinkage)
        moments = Moments.none(self.dimension)
        draws = derive_seed(self.seed, "index", "cells") % 2**31
        index = VectorIndex.new(self.dimension, factory, runtime, cells=cells, seed=draws)
        if not cells:
            for white in map(space.whiten, self._blocks("add", self.parts)):
                moments.add(white)
                index.add(unit(white))
            measured, probes = 1.0, 0
        else:
            most = int(config.memory_gb * 1e9 / (4 * self.dimension))
            wanted = {
                "training": min(_TRAINING_ROWS_PER_CELL * cells, most),
                "recall": config.recall_sample,
            }
            drawn = {n: _drawn(rows, count, self.seed, n) for n, count in wanted.items()}
            taken = _taken(self._blocks("draw a sample", self.parts), drawn)
            index.train(space.project(taken["training"]))
            queries = space.project(taken["recall"])
            exact = ExactSearch(queries, min(k + 1, rows), gpus(runtime))
            compressed = self.kind == "ivfpq"
            kept = whole_vectors(folder, rows, self.dimension) if compressed else None
            start = 0
            for white in map(space.whiten, self._blocks("add", self.parts)):
                moments.add(white)
                block = unit(white)
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
        write_index(folder, index, space, moments, [p.part for p in self.parts])
        return Built(
            rows=rows,
            facts={
                "kind": self.kind,
                "factory": factory,
                "dimension": self.dimension,
                "cells": cells,
                "probes": probes,
                f"recall_at_{k}": round(measured, 4),
                "fitted_rows": rows,
                "spread": moments.spread,
            },
        )

    def grow(self, folder: Path, growing: "_Growing") -> Built | float:
        """Add new rows to an index; return how far they have moved the corpus, if too far."""
        corpus = load_index(self.store, growing.ref, self.runtime, to_grow=True)
        assert corpus.moments is not None  # see what may grow
        start, rows = corpus.rows, self.rows
        old, kept = load_whole_vectors(self.store.folder(growing.ref)), None
        if old is not None:
            kept = whole_vectors(folder, rows, self.dimension)
            kept[:start] = old
        for white in map(corpus.space.whiten, self._blocks("add new rows", growing.fresh)):
            corpus.moments.add(white)
            block = unit(white)
            corpus.index.add(block)
            if kept is not None:
                kept[start : start + len(block)] = block
            start += len(block)
        drift = round(corpus.moments.drift(growing.facts["spread"]), 4)
        if drift > _DRIFT:
            return drift
        places = [part.part for part in self.parts]
        write_index(folder, corpus.index, corpus.space, corpus.moments, places)
        facts = {name: its for name, its in growing.facts.items() if name != "learnt_anew_at"}
        added = {"added_rows": rows - facts["fitted_rows"], "drift": drift}
        return Built(rows=rows, facts={**facts, **added, "learnt": growing.learnt})

    def _blocks(self, purpose: str, parts: Sequence[EmbeddedPart]) -> Iterator[Vectors]:
        """Read all vectors of some parts once, which may take minutes."""
        rows = sum(part.part.rows for part in parts)
        with track(f"index: {purpose}", rows, "vectors") as advance:
            for part in parts:
                vectors = load_vectors(self.store, part.embeddings)
                self._refuse_other_dimension(vectors.shape[1], part)
                for start in range(0, len(vectors), _BLOCK):
                    yield np.asarray(vectors[start : start + _BLOCK])
                    advance(min(_BLOCK, len(vectors) - start))

    def _refuse_other_dimension(self, got: int, part: EmbeddedPart) -> None:
        if got != self.dimension:
            raise DimensionMismatchError(
                f"parts have different dimensions: {self.dimension} of "
                f"{self.parts[0].part.address}, {got} of {part.part.address}",
                remedy="embed all parts with the same backbone",
            )


@dataclass(frozen=True)
class _Growing:
    """An index that new rows are added to.

    Args:
        ref: of the index.
        facts: of it.
        learnt: key of the index with which its space and cells were learnt.
        known: parts that it has, in its order.
        fresh: those that are new.
    """

    ref: ArtifactRef
    facts: Mapping[str, Any]
    learnt: str
    known: Sequence[EmbeddedPart]
    fresh: Sequence[EmbeddedPart]


def _growing(
    store: ArtifactStore,
    earlier: ArtifactRef,
    parts: Sequence[EmbeddedPart],
    settings: Settings,
    kind: str,
) -> _Growing | None:
    """Return an earlier index as one to add to, None where it cannot grow to these parts."""
    manifest = store.find(earlier)
    if manifest is None:  # found damaged by now
        return None
    facts = manifest.facts
    by_name = {(p.part.address, p.embeddings.key): p for p in parts}
    known = [by_name.pop((address, key), None) for address, key in manifest.inputs["parts"]]
    rows = sum(part.part.rows for part in parts)
    if (
        None in known
        or manifest.stage_version != STAGE_VERSION
        or manifest.config != settings.shown
        or facts["kind"] != kind
        or rows >= _MOST_GROWTH * facts.get("fitted_rows", 0)  # older ones do not say
    ):
        return None
    learnt = facts.get("learnt", earlier.key)
    return _Growing(earlier, facts, learnt, [p for p in known if p], list(by_name.values()))


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
