"""Candidates, in turns and at random."""

import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from albat_core.records.candidates import CANDIDATES, NEIGHBOURS
from albat_core.records.indexes import load_index
from albat_core.records.shards import read_examples
from albat_core.records.tables import read_table
from albat_core.records.vectors import load_queries
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.stages.decontaminate import DecontaminationConfig
from albat_core.stages.report import PAGE
from albat_core.stages.retrieve import (
    RetrievalConfig,
    draw_candidates,
    retrieve_candidates,
    take_candidates,
    take_turns,
)
from albat_core.stages.score import ScoringConfig
from albat_core.stages.select import SelectionConfig
from albat_core.stages.shard import ShardConfig
from albat_core.store.artifacts import ArtifactStore
from flows.config import load_config
from tests.pictures import write_image_run


def turns(positions: list[list[int]], limit: int = 100) -> tuple[list[int], list[int]]:
    similarities = np.tile(np.linspace(0.9, 0.1, len(positions[0])), (len(positions), 1))
    similarities[:, 0] -= np.arange(len(positions)) / 100  # the first query goes first
    return take_turns(np.array(positions), similarities.astype(np.float32), limit)


def test_each_query_takes_its_nearest_in_turn() -> None:
    assert turns([[4, 1, 2], [7, 8, 9]]) == ([4, 7, 1, 8, 2, 9], [0, 0, 1, 1, 2, 2])


def test_a_row_that_is_taken_is_passed_over_in_the_same_turn() -> None:
    assert turns([[4, 1, 2], [4, 1, 9]]) == ([4, 1, 2, 9], [0, 0, 1, 1])


def test_missing_neighbours_and_the_limit_end_it() -> None:
    assert turns([[4, -1, -1], [7, 8, -1]]) == ([4, 7, 8], [0, 0, 1])
    assert turns([[4, 1, 2], [7, 8, 9]], limit=3) == ([4, 7, 1], [0, 0, 1])
    assert turns([[-1, -1], [-1, -1]]) == ([], [])


def test_the_more_similar_query_goes_first() -> None:
    similarities = np.array([[0.3, 0.1], [0.8, 0.2]], dtype=np.float32)
    assert take_turns(np.array([[0, 1], [2, 3]]), similarities, 2)[0] == [2, 0]


def test_candidates_name_their_true_nearest_adaptation_example(
    chain: Chain, store: ArtifactStore, run_config: RunConfig
) -> None:
    table = read_table(store.folder(chain.candidates) / CANDIDATES).to_pydict()
    corpus = load_index(store, chain.inputs.index, run_config.runtime)
    ids, vectors = load_queries(store, chain.inputs.queries)
    similarities, positions = corpus.index.search(corpus.space.project(vectors), 8)
    best: dict[tuple[str, int], tuple[float, str]] = {}
    for query, name in enumerate(ids):
        for similarity, position in zip(similarities[query], positions[query], strict=True):
            (shard,), (row,) = corpus.locate([int(position)])
            best[shard, row] = max(best.get((shard, row), (-2.0, "")), (float(similarity), name))
    found = zip(table["shard"], table["row"], strict=True)
    expected = [best[place] for place in found]
    assert table["nearest_example_id"] == [name for _, name in expected]
    np.testing.assert_allclose(table["similarity"], [s for s, _ in expected], atol=1e-6)
    assert set(best) == set(zip(table["shard"], table["row"], strict=True))
    examples = read_examples(store, table["shard"], table["row"])
    assert [e.example_id for e in examples] == table["example_id"]
    assert [e.source for e in examples] == table["source"]
    assert len(set(table["example_id"])) == len(examples)


def test_neighbour_pairs_point_at_candidates(chain: Chain, store: ArtifactStore) -> None:
    folder = store.folder(chain.candidates)
    table = read_table(folder / CANDIDATES).to_pydict()
    pairs = read_table(folder / NEIGHBOURS).to_pylist()
    assert len(pairs) == len({(p["query"], p["candidate"]) for p in pairs})
    for pair in pairs:
        assert pair["similarity"] <= table["similarity"][pair["candidate"]] + 1e-6


def test_the_limit_keeps_the_first_turns(chain: Chain, run_config: RunConfig) -> None:
    few = RetrievalConfig(neighbours=8, candidates=10)
    store = ArtifactStore(run_config.runtime.root)
    all_of_them = read_table(store.folder(chain.candidates) / CANDIDATES)["example_id"].to_pylist()
    ref = retrieve_candidates(chain.inputs.index, chain.inputs.queries, few, run_config.runtime)
    kept = read_table(store.folder(ref) / CANDIDATES)["example_id"].to_pylist()
    assert kept == all_of_them[:10]


def test_names_are_read_from_one_part_at_a_time(
    run_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = Chain(run_config.model_copy(update={"shards": ShardConfig(rows=8)}))
    assert len(many.inputs.embeddings) > 10
    index, queries, alive = many.inputs.index, many.inputs.queries, []

    def read(path: Path, columns: list[str]) -> pa.Table:
        table = read_table(path, columns)
        alive.append(weakref.ref(table))
        held.append(sum(each() is not None for each in alive))
        return table

    held: list[int] = []
    monkeypatch.setattr("albat_core.stages.retrieve.read_table", read)
    every = RetrievalConfig(neighbours=120)
    assert retrieve_candidates(index, queries, every, run_config.runtime)
    assert len(held) == len(many.inputs.embeddings)
    assert max(held) <= 2  # and the one before, until it is replaced


def test_random_candidates_are_distinct_named_by_the_seed_and_enough_when_some_are_left_out(
    chain: Chain, store: ArtifactStore, run_config: RunConfig
) -> None:
    def drawn(seed: int) -> list[str]:
        ref = draw_candidates(
            chain.inputs.corpus, chain.inputs.index, chain.selection, seed, run_config.runtime
        )
        return read_table(store.folder(ref) / CANDIDATES)["example_id"].to_pylist()

    enough = min(2 * store.manifest(chain.selection).rows, store.manifest(chain.inputs.index).rows)
    assert len(set(drawn(0))) == len(drawn(0)) == enough
    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_random_candidates_of_many_parts_have_their_own_names(
    store: ArtifactStore, run_config: RunConfig
) -> None:
    many = Chain(run_config.model_copy(update={"shards": ShardConfig(rows=8)}))
    ref = draw_candidates(many.inputs.corpus, None, many.selection, 3, run_config.runtime)
    table = read_table(store.folder(ref) / CANDIDATES).to_pydict()
    assert len(set(table["shard"])) > 5
    assert table["row"] != sorted(table["row"])
    examples = read_examples(store, table["shard"], table["row"])
    assert [e.example_id for e in examples] == table["example_id"]
    assert [e.source for e in examples] == table["source"]


def test_the_whole_corpus_may_be_candidates(
    chain: Chain, store: ArtifactStore, run_config: RunConfig
) -> None:
    ref = take_candidates(chain.inputs.corpus, run_config.runtime)
    table = read_table(store.folder(ref) / CANDIDATES).to_pydict()
    expected = {f"{topic}-0-{n}" for topic in ("plants", "ships") for n in range(60)}
    assert len(table["example_id"]) == store.manifest(ref).rows == len(expected)
    assert set(table["example_id"]) == expected
    examples = read_examples(store, table["shard"], table["row"])
    assert [e.example_id for e in examples] == table["example_id"]
    assert [e.source for e in examples] == table["source"]
    assert set(table["nearest_example_id"]) == set(table["similarity"]) == {None}
    assert read_table(store.folder(ref) / NEIGHBOURS).num_rows == 0


def test_the_whole_corpus_is_the_same_whatever_is_near(chain: Chain, run_config: RunConfig) -> None:
    near, few = (
        Chain(run_config.model_copy(update={"retrieval": RetrievalConfig(pool="corpus", **its)}))
        for its in ({"neighbours": 8}, {"neighbours": 3, "candidates": 10})
    )
    assert near.retrieved == few.retrieved != chain.retrieved


def test_where_the_whole_corpus_is_scored_by_words_nothing_is_embedded(
    run_config: RunConfig, tmp_path: Path
) -> None:
    settings = {
        "retrieval": RetrievalConfig(pool="corpus"),
        "scoring": ScoringConfig(scorer="ngram"),
        "selection": SelectionConfig(rows=20, select="top"),
        "runtime": run_config.runtime.model_copy(update={"root": str(tmp_path)}),
    }
    assert run_config.decontamination.similarity is not None
    chain = Chain(run_config.model_copy(update=settings))
    assert chain.report  # with every arm, of random rows too
    store = ArtifactStore(str(tmp_path))
    made = {ref.stage for ref in store.all_refs()}
    assert made >= {"scores", "selection", "report"}
    assert not made & {"embeddings", "queries", "index"}
    assert store.manifest(chain.candidates).facts["examined"] == 120
    assert store.manifest(chain.random_selection).rows == 20
    html = (store.folder(chain.report) / PAGE).read_text()
    assert "Index of the corpus" not in html


def test_a_picture_s_copies_are_told_by_embeddings_whatever_the_pool(tmp_path: Path) -> None:
    config = load_config(str(write_image_run(tmp_path)))
    whole = RetrievalConfig(pool="corpus")
    for changes, embedded in (
        ({}, True),
        ({"retrieval": whole}, True),
        ({"retrieval": whole, "decontamination": DecontaminationConfig(similarity=None)}, False),
        ({"retrieval": whole, "decontamination": DecontaminationConfig(enabled=False)}, False),
    ):
        assert config.model_copy(update=changes).embeds_corpus == embedded
