"""Nearest-neighbour index over the corpus embeddings (FAISS): flat, IVF or IVF-PQ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albat_core.errors import DimensionMismatchError, InputError
from albat_core.progress import track
from albat_core.records.indexes import (
    CELLS,
    CODES,
    STAGE,
    Cells,
    Coded,
    load_cells,
    load_coded,
    load_index,
    load_whole_vectors,
    whole_vectors,
    write_cells,
    write_codes,
    write_index,
)
from albat_core.records.vectors import EmbeddedPart, load_vectors
from albat_core.search.config import IndexConfig, choose_kind, factory_of
from albat_core.search.index import ExactSearch, Looking, VectorIndex, enough, recalls, without
from albat_core.search.library import gpus
from albat_core.search.space import EmbeddingSpace, Moments, Vectors, drawn, taken, unit
from albat_core.seeding import derive_seed
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built, artifact_ref
from albat_core.store.stage import Runtime, Settings

STAGE_VERSION = 1
_BLOCK = 65536  # vectors handled at once
_TRAINING_ROWS_PER_CELL = 64  # FAISS wants 39 at least
_MOST_GROWTH = 2  # times the rows that space and cells were learnt from
_DRIFT = 0.1  # share of the spread by which a corpus may move that they are kept for
_GROUP = 1_000_000  # rows of a group at least: some 15 CPU seconds of 64 dimensions
_METHOD = 3  # of finding neighbours otherwise than exactly


def build_index(
    parts: Sequence[EmbeddedPart],
    config: IndexConfig,
    seed: int,
    runtime: Runtime,
    earlier: ArtifactRef | None = None,
    coded: Coded | None = None,
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
        coded: rows that lie in cells already: all of the parts', in order. The index is the same as
            without, bit for bit.

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
    building = _Building.of(parts, config, seed, runtime)
    kind, settings = building.kind, building.settings
    growing = _growing(store, earlier, parts, settings, kind) if earlier else None
    inputs: dict[str, Any] = {}
    if growing is not None:
        if not growing.fresh:
            return growing.ref.model_copy(update={"reused": True})
        parts = [*growing.known, *growing.fresh]
        inputs["learnt"] = growing.learnt
        building = replace(building, parts=parts)
    inputs |= building.inputs

    def build(folder: Path) -> Built:
        if growing is None:
            return building.learn(folder, coded)
        grown = building.grow(folder, growing)
        if isinstance(grown, Built):
            return grown
        built = building.learn(folder)
        return built.model_copy(update={"facts": built.facts | {"learnt_anew_at": grown}})

    return store.produce(STAGE, STAGE_VERSION, settings, inputs, build)


def find_index(
    parts: Sequence[EmbeddedPart], config: IndexConfig, seed: int, runtime: Runtime
) -> ArtifactRef | None:
    """Return what ``build_index`` would find finished, where nothing grows; None: there is none."""
    building = _Building.of(parts, config, seed, runtime)
    ref = artifact_ref(STAGE, STAGE_VERSION, building.settings, building.inputs)
    return building.store.reused([ref])[0]


def groups(
    parts: Sequence[EmbeddedPart], config: IndexConfig, runtime: Runtime
) -> list[list[EmbeddedPart]]:
    """Return parts by groups that are added side by side; none where one process does.

    Args:
        parts: of the corpus, in order.
        config: of the index.
        runtime: where embeddings are.
    """
    if not parts or _Building.of(parts, config, 0, runtime).kind == "flat":
        return []
    grouped: list[list[EmbeddedPart]] = [[]]
    for part in parts:
        if sum(p.part.rows for p in grouped[-1]) >= _GROUP:
            grouped.append([])
        grouped[-1].append(part)
    return grouped if len(grouped) > 1 else []


def learn_cells(
    parts: Sequence[EmbeddedPart], config: IndexConfig, seed: int, runtime: Runtime
) -> ArtifactRef:
    """Learn space and cells of an index of all parts.

    Args:
        parts: of the corpus, in order.
        config: of the index.
        seed: of samples and cells.
        runtime: where artifacts are kept, and what computes.
    """
    building = _Building.of(parts, config, seed, runtime)

    def build(folder: Path) -> Built:
        write_cells(folder, building.learn_cells())
        return Built(rows=0)

    return building.store.produce(CELLS, STAGE_VERSION, building.settings, building.inputs, build)


def code_rows(
    cells: ArtifactRef,
    parts: Sequence[EmbeddedPart],
    config: IndexConfig,
    runtime: Runtime,
    label: str = "",
) -> ArtifactRef:
    """Add the rows of some parts to cells, which stay as they are.

    Args:
        cells: what ``learn_cells`` gave.
        parts: some of the corpus's, in order.
        config: of the index.
        runtime: where artifacts are kept, and what computes.
        label: of the call.
    """
    building = _Building.of(parts, config, 0, runtime)

    def build(folder: Path) -> Built:
        learnt = load_cells(building.store, cells, runtime)
        for white in map(learnt.space.whiten, building.blocks("add")):
            learnt.index.add(unit(white))
        write_codes(folder, learnt.index)
        return Built(rows=building.rows)

    inputs = {"cells": cells.key, **building.inputs}
    return building.store.produce(CODES, STAGE_VERSION, {}, inputs, build)


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

    @classmethod
    def of(
        cls, parts: Sequence[EmbeddedPart], config: IndexConfig, seed: int, runtime: Runtime
    ) -> "_Building":
        """Return it with dimension and kind, see ``build_index``."""
        store = ArtifactStore(runtime.root)
        dimension = int(store.manifest(parts[0].embeddings).facts["dimension"])
        kind = choose_kind(sum(p.part.rows for p in parts), dimension, config)
        return cls(store, parts, dimension, kind, config, seed, runtime)

    @property
    def rows(self) -> int:
        """Of all parts."""
        return sum(part.part.rows for part in self.parts)

    @property
    def settings(self) -> Settings:
        """That the key has."""
        method = {} if self.kind == "flat" else {"method": _METHOD}
        return self.config.settings(without={"grow"}, seed=self.seed, **method)

    @property
    def inputs(self) -> dict[str, Any]:
        """That the key has."""
        return {"parts": [[p.part.address, p.embeddings.key] for p in self.parts]}

    def learn_cells(self) -> Cells:
        """Learn space and cells, and draw the rows that recall is measured with."""
        config, rows, runtime = self.config, self.rows, self.runtime
        factory, count = self._factory()
        space = EmbeddingSpace.fit(self.blocks("whiten"), config.shrinkage)
        draws = derive_seed(self.seed, "index", "cells") % 2**31
        index = VectorIndex.new(self.dimension, factory, runtime, cells=count, seed=draws)
        if not count:
            none = np.zeros((0, self.dimension), np.float32)
            return Cells(space, index, none, np.zeros(0, np.int64))
        most = int(config.memory_gb * 1e9 / (4 * self.dimension))
        wanted = {
            "training": min(_TRAINING_ROWS_PER_CELL * count, most),
            "recall": config.recall_sample,
        }
        lots = {n: drawn(rows, some, self.seed, n) for n, some in wanted.items()}
        its = taken(self.blocks("draw a sample"), lots)
        index.train(space.project(its["training"]))
        return Cells(space, index, space.project(its["recall"]), lots["recall"])

    def learn(self, folder: Path, coded: Coded | None = None) -> Built:
        """Learn space and cells, add all rows, and measure what is found."""
        config, rows, runtime = self.config, self.rows, self.runtime
        factory, count = self._factory()
        learnt = load_coded(self.store, coded, runtime) if coded else self.learn_cells()
        space, index = learnt.space, learnt.index
        moments, start = Moments.none(self.dimension), 0
        k = min(config.recall_k, rows)
        exact = ExactSearch(learnt.queries, min(k + 1, rows), gpus(runtime))
        compressed = self.kind == "ivfpq"
        kept = whole_vectors(folder, rows, self.dimension) if compressed else None
        for white in map(space.whiten, self.blocks("add")):
            moments.add(white)
            block = unit(white)
            if not coded:
                index.add(block)
            if count:
                exact.add(block)
            if kept is not None:
                kept[start : start + len(block)] = block
            start += len(block)
        measured, looking = 1.0, Looking(0, 0)
        if count:
            index.compare_with(kept)
            near = without(exact.positions, learnt.own, k)

            def found(looking: Looking) -> NDArray[np.float64]:
                index.look_into(*looking)
                positions = index.search(learnt.queries, min(k + 1, rows))[1]
                return recalls(without(positions, learnt.own, k), near)

            asked = (config.probes, config.least_recall)
            looking, measured = enough(found, count, *asked, codes=compressed)
            index.look_into(*looking)
        write_index(folder, index, space, moments, [p.part for p in self.parts])
        return Built(
            rows=rows,
            facts={
                "kind": self.kind,
                "factory": factory,
                "dimension": self.dimension,
                "cells": count,
                "probes": looking.probes,
                "compared": looking.wider if compressed else 0,
                f"recall_at_{k}": round(measured, 4),
                "fitted_rows": rows,
                "spread": moments.spread,
            },
        )

    def _factory(self) -> tuple[str, int]:
        graph = not gpus(self.runtime)  # those have none
        return factory_of(self.kind, self.rows, self.dimension, self.config, graph=graph)

    def grow(self, folder: Path, growing: "_Growing") -> Built | float:
        """Add new rows to an index; return how far they have moved the corpus, if too far."""
        corpus = load_index(self.store, growing.ref, self.runtime, to_grow=True)
        assert corpus.moments is not None  # see what may grow
        start, rows = corpus.rows, self.rows
        old, kept = load_whole_vectors(self.store.folder(growing.ref)), None
        if old is not None:
            kept = whole_vectors(folder, rows, self.dimension)
            kept[:start] = old
        for white in map(corpus.space.whiten, self.blocks("add new rows", growing.fresh)):
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

    def blocks(
        self, purpose: str, parts: Sequence[EmbeddedPart] | None = None
    ) -> Iterator[Vectors]:
        """Read all vectors of some parts, or of all, once, which may take minutes."""
        parts = self.parts if parts is None else parts
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
