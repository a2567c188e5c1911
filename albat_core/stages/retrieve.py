"""Candidates: corpus examples near the adaptation examples, taken in turns, or drawn at random."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from albat_core.errors import DimensionMismatchError, InputError
from albat_core.records.candidates import (
    NEIGHBOUR_SCHEMA,
    STAGE,
    candidate_table,
    write_candidates,
)
from albat_core.records.indexes import load_index
from albat_core.records.shards import locate, part_path, parts_of
from albat_core.records.tables import read_table
from albat_core.records.vectors import load_queries
from albat_core.search.index import VectorIndex
from albat_core.seeding import numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

STAGE_VERSION = 2
_MOST_COPIES = 16  # rows looked at for one that is kept
_MOST_NEIGHBOURS = 2048  # of a search on a GPU, for FAISS
_SAME = 1e-6  # difference of similarities below which two rows are the same


class RetrievalConfig(StageConfig):
    """How many corpus examples are looked at."""

    pool: Literal["neighbours", "corpus"] = "neighbours"
    """`neighbours`: what is near the adaptation examples; `corpus`: every row, which costs more to
    score and has no turns (`selection.select: top`, `sources` or `gumbel`), but texts are then not
    embedded: by words alone it is told what copies held-out rows."""
    neighbours: int = Field(64, ge=1, le=2048)
    """Neighbours retrieved per adaptation example."""
    candidates: int = Field(20_000, ge=1)
    """Most candidates kept over all adaptation examples."""


def take_turns(
    positions: NDArray[np.int64], similarities: NDArray[np.float32], limit: int
) -> tuple[list[int], list[int]]:
    """Let each query in turn take its nearest row that none has taken.

    Args:
        positions: (n_queries, k) int64 rows, nearest first, -1 where there is none.
        similarities: (n_queries, k) float32; the more similar query goes first in a round.
        limit: rows to take at most.

    Returns:
        the rows taken and the round (from 0) in which each was, in order.
    """
    taken: dict[int, int] = {}
    following = np.zeros(len(positions), dtype=np.int64)
    order = np.argsort(-similarities[:, 0], kind="stable")
    turn, progress = 0, True
    while progress and len(taken) < limit:
        progress = False
        for query in order:
            row = positions[query]
            while following[query] < len(row) and (
                row[following[query]] < 0 or int(row[following[query]]) in taken
            ):
                following[query] += 1
            if following[query] < len(row) and len(taken) < limit:
                taken[int(row[following[query]])] = turn
                progress = True
        turn += 1
    return list(taken), list(taken.values())


def distinct_neighbours(
    index: VectorIndex, queries: NDArray[np.float32], k: int, rows: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return each query's k most similar rows that differ from each other.

    Rows that are as similar to the query as the one before them, to the last digits of a float32,
    are its copies: a line that stands in the corpus a hundred times would fill the k places. So
    long as places are missing, more neighbours are searched, sixteen times k at most.

    Args:
        index: of the corpus.
        queries: (n, d) float32 projected vectors.
        k: neighbours wanted.
        rows: of the index.

    Returns:
        similarities (n, k) float32, descending; positions (n, k) int64, -1 where there is none.
    """
    asked, most = k, min(_MOST_COPIES * k, _MOST_NEIGHBOURS, rows)
    while True:
        similarities, positions = index.search(queries, asked)
        new = positions >= 0
        new[:, 1:] &= -np.diff(similarities, axis=1) > _SAME
        if asked >= most or (new.sum(axis=1) >= k).all():
            break
        asked = min(4 * asked, most)
    first = np.argsort(~new, axis=1, kind="stable")[:, :k]
    kept = np.take_along_axis(new, first, axis=1)
    return (
        np.where(kept, np.take_along_axis(similarities, first, axis=1), -np.inf),
        np.where(kept, np.take_along_axis(positions, first, axis=1), -1),
    )


def retrieve_candidates(
    index_ref: ArtifactRef,
    queries_ref: ArtifactRef,
    config: RetrievalConfig,
    runtime: Runtime,
) -> ArtifactRef:
    """Find the corpus examples nearest to each adaptation example."""
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        corpus = load_index(store, index_ref, runtime)
        _refuse_mismatch(store, index_ref, queries_ref)
        ids, vectors = load_queries(store, queries_ref)
        k = min(config.neighbours, corpus.rows)
        similarities, positions = distinct_neighbours(
            corpus.index, corpus.space.project(vectors), k, corpus.rows
        )
        taken, turns = take_turns(positions, similarities, config.candidates)
        if not taken:
            raise InputError(
                "expected neighbours in the corpus, found none",
                where=str(index_ref),
                remedy="raise index.probes, or set index.kind to flat",
            )
        place = {row: number for number, row in enumerate(taken)}
        pairs = [
            (query, place[int(row)], float(similarity))
            for query in range(len(ids))
            for row, similarity in zip(positions[query], similarities[query], strict=True)
            if int(row) in place
        ]
        nearest: dict[int, tuple[float, int]] = {}
        for query, candidate, similarity in pairs:
            if similarity > nearest.get(candidate, (-np.inf, 0))[0]:
                nearest[candidate] = (similarity, query)
        best = [nearest[number] for number in range(len(taken))]
        table = _candidates(
            store, corpus.locate(taken), turns, [ids[q] for _, q in best], [s for s, _ in best]
        )
        columns = zip(*((ids[q], c, s) for q, c, s in pairs), strict=True)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, NEIGHBOUR_SCHEMA, strict=True)]
        write_candidates(folder, table, pa.Table.from_arrays(arrays, schema=NEIGHBOUR_SCHEMA))
        return Built(
            rows=len(taken), facts={"queries": len(ids), "neighbours": k, "turns": max(turns) + 1}
        )

    return store.produce(
        STAGE,
        STAGE_VERSION,
        config.settings(without={"pool"}),
        {"index": index_ref.key, "queries": queries_ref.key},
        build,
    )


def _refuse_mismatch(store: ArtifactStore, index: ArtifactRef, queries: ArtifactRef) -> None:
    ours, theirs = (store.manifest(ref).facts["dimension"] for ref in (queries, index))
    if ours != theirs:
        raise DimensionMismatchError(
            f"queries have d={ours} but the index has d={theirs}",
            where=f"{queries} and {index}",
            remedy="embed queries and corpus with the same backbone",
        )


def draw_candidates(
    shards: Sequence[ArtifactRef],
    index_ref: ArtifactRef | None,
    selection_ref: ArtifactRef,
    seed: int,
    runtime: Runtime,
) -> ArtifactRef:
    """Draw corpus examples evenly at random, in random order, for the random baseline.

    Twice as many as a selection has, so that as many are left when copies are left out.

    Args:
        shards: of the whole corpus.
        index_ref: of all its rows, by which the draw is named; None: the shards name it.
        selection_ref: says how many are drawn.
        seed: of the draw.
        runtime: where artifacts are kept.
    """
    store = ArtifactStore(runtime.root)
    count = 2 * store.manifest(selection_ref).rows

    def build(folder: Path) -> Built:
        parts = parts_of(store, shards)
        ends = np.cumsum([part.rows for part in parts], dtype=np.int64)
        drawn = numpy_generator(seed, "random candidates").permutation(int(ends[-1]))[:count]
        nothing = [None] * len(drawn)
        places = locate([part.address for part in parts], ends, drawn.tolist())
        table = _candidates(store, places, [0] * len(drawn), nothing, nothing)
        write_candidates(folder, table, NEIGHBOUR_SCHEMA.empty_table())
        return Built(rows=len(drawn))

    return store.produce(
        STAGE,
        STAGE_VERSION,
        {"random": count, "seed": seed},
        {"index": index_ref.key} if index_ref else {"shards": _joined(shards)},
        build,
    )


def take_candidates(shards: Sequence[ArtifactRef], runtime: Runtime) -> ArtifactRef:
    """Take all rows of shards as candidates, found for no adaptation example in particular."""
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        blocks = []
        for part in parts_of(store, shards):
            names = read_table(part_path(store, part.address), ["example_id", "source"])
            count = names.num_rows
            nothing = [None] * count
            columns = [
                names["example_id"].to_pylist(),
                names["source"].to_pylist(),
                [part.address] * count,
                range(count),
                [0] * count,
                nothing,
                nothing,
            ]
            blocks.append(candidate_table(columns))
        table = pa.concat_tables(blocks)
        write_candidates(folder, table, NEIGHBOUR_SCHEMA.empty_table())
        return Built(rows=table.num_rows)

    return store.produce(STAGE, STAGE_VERSION, {"all": True}, {"shards": _joined(shards)}, build)


def _joined(shards: Sequence[ArtifactRef]) -> str:
    return "/".join(ref.key for ref in shards)


def _candidates(
    store: ArtifactStore,
    located: tuple[Sequence[str], Sequence[int]],
    turns: Sequence[int],
    nearest: Sequence[str | None],
    similarities: Sequence[float | None],
) -> pa.Table:
    """Return the table of candidates, with their names read from the shards."""
    shards, places = located
    numbered: dict[str, list[int]] = defaultdict(list)
    for number, address in enumerate(shards):
        numbered[address].append(number)
    ids, sources = [""] * len(shards), [""] * len(shards)
    for address, numbers in numbered.items():  # one part's names at a time, there may be many parts
        names = read_table(part_path(store, address), ["example_id", "source"])
        found = names.take(pa.array([places[number] for number in numbers]))
        for number, row in zip(numbers, found.to_pylist(), strict=True):
            ids[number], sources[number] = row["example_id"], row["source"]
    return candidate_table([ids, sources, shards, places, turns, nearest, similarities])
