"""The index: whitening, exact and approximate search, and the recall that is measured.

Searches are checked against comparing with every vector in NumPy.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from albat_core.errors import DamagedError, DimensionMismatchError, InputError
from albat_core.progress import Advance, Silent, reporting_to
from albat_core.records.indexes import Coded, CorpusIndex, growth_notes, load_index
from albat_core.records.vectors import EmbeddedPart
from albat_core.runs.chain import Chain
from albat_core.search import config as search_config
from albat_core.search.config import IndexConfig, choose_kind
from albat_core.search.index import WIDER, ExactSearch, VectorIndex, enough, recall, without
from albat_core.search.space import EmbeddingSpace
from albat_core.seeding import numpy_generator
from albat_core.stages import index as index_stage
from albat_core.stages.index import (
    build_index,
    code_rows,
    find_index,
    groups,
    learn_cells,
)
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.stage import Runtime
from flows.config import load_config
from tests.core.embeddings import ROWS, D, Embedded, clustered
from tests.toys import topic_rows, write_jsonl, write_run


def in_blocks(vectors: np.ndarray, size: int = 300) -> list[np.ndarray]:
    return [vectors[start : start + size] for start in range(0, len(vectors), size)]


def nearest(queries: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1)[:, :k]


def built(
    parts: list[EmbeddedPart], runtime: Runtime, seed: int = 0, **config: object
) -> tuple[CorpusIndex, dict]:
    ref = build_index(parts, IndexConfig(**config), seed, runtime)
    store = ArtifactStore(runtime.root)
    return load_index(store, ref, runtime), store.manifest(ref).facts


# Whitening


def test_whitened_vectors_have_no_preferred_direction() -> None:
    vectors = clustered()
    space = EmbeddingSpace.fit(iter(in_blocks(vectors)), shrinkage=1e-6)
    white = (vectors - space.mean) @ space.whitening
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(D), atol=1e-2)


def test_shrinkage_adds_a_share_of_the_mean_variance() -> None:
    vectors = clustered()
    space = EmbeddingSpace.fit(iter([vectors]), shrinkage=0.5)
    covariance = np.cov(vectors.T.astype(np.float64), bias=True)
    shrunk = covariance + 0.5 * np.trace(covariance) / D * np.eye(D)
    # W = shrunk^-1/2, so W shrunk W = 1
    np.testing.assert_allclose(space.whitening @ shrunk @ space.whitening, np.eye(D), atol=1e-4)
    np.testing.assert_allclose(space.whitening, space.whitening.T, atol=1e-7)


def test_blocks_make_no_difference_to_the_space() -> None:
    vectors = clustered()
    whole, parts = (
        EmbeddingSpace.fit(iter(blocks), 0.1) for blocks in ([vectors], in_blocks(vectors))
    )
    np.testing.assert_allclose(whole.mean, parts.mean, rtol=1e-6)
    np.testing.assert_allclose(whole.whitening, parts.whitening, rtol=1e-4, atol=1e-7)


def test_projected_vectors_have_unit_length() -> None:
    vectors = clustered()
    space = EmbeddingSpace.fit(iter([vectors]), 0.1)
    projected = space.project(vectors)
    assert projected.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(projected, axis=1), 1, rtol=1e-5)
    assert np.isfinite(space.project(space.mean[None])).all()


@pytest.mark.parametrize(
    "vectors",
    [np.ones((1, 4)), np.ones((5, 4)), np.eye(4)[:2]],
    ids=["one row", "equal rows", "two rows"],
)
def test_a_corpus_without_spread_gives_finite_vectors(vectors: np.ndarray) -> None:
    vectors = vectors.astype(np.float32)
    space = EmbeddingSpace.fit(iter([vectors]), 0.1)
    assert np.isfinite(space.project(vectors)).all()
    assert np.isfinite(space.project(np.full((1, 4), 7, np.float32))).all()


# Search


def test_flat_search_is_exact(embedded: Embedded, runtime: Runtime) -> None:
    vectors = clustered()
    index, facts = built(embedded(*in_blocks(vectors)), runtime, kind="flat")
    queries = index.space.project(clustered(30, seed=1))
    similarities, positions = index.index.search(queries, 7)
    projected = index.space.project(vectors)
    assert np.array_equal(positions, nearest(queries, projected, 7))
    expected = np.take_along_axis(queries @ projected.T, positions, axis=1)
    np.testing.assert_allclose(similarities, expected, atol=1e-5)
    assert (np.diff(similarities) <= 0).all()
    assert np.abs(similarities).max() <= 1 + 1e-5
    assert facts["recall_at_10"] == 1
    assert (facts["kind"], facts["dimension"], facts["cells"]) == ("flat", D, 0)


@pytest.mark.parametrize(
    ("config", "factory", "least"),
    [
        ({"kind": "ivf", "probes": 4}, "IVF51,Flat", 0.5),
        ({"kind": "ivf", "cells": 10, "probes": 1}, "IVF10,Flat", 0.3),
        ({"kind": "ivfpq", "code_bytes": 11}, "IVF51,PQ8x4np", 0.2),
    ],
    ids=str,
)
def test_the_recall_of_approximate_search_is_as_measured(
    embedded: Embedded, runtime: Runtime, config: dict, factory: str, least: float
) -> None:
    vectors = clustered(spread=0.5)
    index, facts = built(embedded(*in_blocks(vectors)), runtime, seed=5, **config)
    assert facts["factory"] == factory
    drawn = np.sort(
        numpy_generator(5, "index", "recall").choice(ROWS, 256, replace=False, shuffle=False)
    )
    queries = index.space.project(vectors[drawn])
    found = without(index.index.search(queries, 11)[1], drawn, 10)
    exact = without(nearest(queries, index.space.project(vectors), 11), drawn, 10)
    hits = np.mean([len(set(f) & set(e)) / 10 for f, e in zip(found, exact, strict=True)])
    assert facts["recall_at_10"] == pytest.approx(hits, abs=1e-3)
    assert least < hits < 1


def test_looking_into_every_cell_is_exact(embedded: Embedded, runtime: Runtime) -> None:
    vectors = clustered()
    index, facts = built(embedded(vectors), runtime, kind="ivf", cells=20, probes=100)
    queries = index.space.project(clustered(30, seed=1))
    assert np.array_equal(
        index.index.search(queries, 7)[1], nearest(queries, index.space.project(vectors), 7)
    )
    assert (facts["cells"], facts["probes"], facts["recall_at_10"]) == (20, 20, 1)


def test_more_probes_find_no_less(embedded: Embedded, runtime: Runtime) -> None:
    parts = embedded(clustered(spread=0.5))
    found = [
        built(parts, runtime, kind="ivf", cells=40, probes=probes)[1]["recall_at_10"]
        for probes in (1, 3, 10, 40)
    ]
    assert found == sorted(found)
    assert found[0] < found[-1] == 1


@pytest.mark.parametrize("kind", ["flat", "ivf", "ivfpq"])
def test_equal_corpora_give_equal_indices(embedded: Embedded, runtime: Runtime, kind: str) -> None:
    parts = embedded(*in_blocks(clustered()))

    def digests() -> list[str]:
        ref = build_index(parts, IndexConfig(kind=kind), 0, runtime)
        assert not ref.reused
        store = ArtifactStore(runtime.root)
        found = [file.sha256 for file in store.manifest(ref).files]
        storage.remove(storage.join(store.root, ref.stage, ref.key))
        return found

    assert digests() == digests()


def test_what_codes_find_is_compared_by_the_vectors_themselves(
    embedded: Embedded, runtime: Runtime
) -> None:
    vectors = clustered(spread=0.5)
    index, facts = built(
        embedded(*in_blocks(vectors)), runtime, kind="ivfpq", cells=10, probes=10, code_bytes=16
    )
    queries = index.space.project(clustered(50, seed=1, spread=0.5))
    projected = index.space.project(vectors)
    expected = nearest(queries, projected, 10)
    similarities, found = index.index.search(queries, 10)
    assert recall(found, expected) > 0.95
    assert facts["recall_at_10"] > 0.95
    exact = np.take_along_axis(queries @ projected.T, found, axis=1)
    np.testing.assert_allclose(similarities, exact, atol=1e-3)
    index.index.compare_with(None)
    assert recall(index.index.search(queries, 10)[1], expected) < 0.9


def test_as_many_cells_are_looked_into_as_the_recall_takes(
    embedded: Embedded, runtime: Runtime
) -> None:
    parts = embedded(clustered(spread=0.1))
    found = [
        built(parts, runtime, kind="ivf", cells=200, least_recall=least)[1]
        for least in (0.3, 0.9, 1.0)
    ]
    assert [facts["probes"] for facts in found] == sorted(facts["probes"] for facts in found)
    assert found[0]["probes"] == 8 < found[1]["probes"] < found[2]["probes"]
    assert found[0]["recall_at_10"] < 0.9 <= found[1]["recall_at_10"] < found[2]["recall_at_10"]


def test_faiss_is_left_as_it_was_when_codes_are_learnt() -> None:
    """Its threshold is the process's: others' searches are not to change."""
    import faiss

    before = faiss.cvar.distance_compute_blas_threshold
    seen = []
    index = VectorIndex.new(D, "IVF4,PQ4x4np", Runtime(device="cpu"), cells=4)
    train = index._index.train

    def watched(sample: np.ndarray) -> None:
        seen.append(faiss.cvar.distance_compute_blas_threshold)
        train(sample)

    index._index.train = watched
    index.train(clustered())
    assert seen == [20]
    assert faiss.cvar.distance_compute_blas_threshold == before


def test_what_luck_may_have_found_is_not_relied_on() -> None:
    """Of 100 queries with a spread of 0.1, two standard errors of the mean are 0.02."""
    spread = np.tile([-0.1, 0.1], 50)
    by_probes = {8: 0.86 + spread, 16: 0.89 + spread, 32: 0.93 + spread, 64: np.full(100, 0.99)}

    def asked(cells: int, probes: int | None, least: float) -> tuple[int, float]:
        looking, mean = enough(lambda its: by_probes[its.probes], cells, probes, least, codes=False)
        assert looking.wider == WIDER
        return looking.probes, mean

    assert asked(200, None, 0.9) == (32, pytest.approx(0.93))
    assert asked(200, None, 0.92) == (64, pytest.approx(0.99))
    assert asked(200, 16, 0.92) == (16, pytest.approx(0.89))
    assert asked(16, None, 0.92) == (16, pytest.approx(0.89))


def test_where_codes_are_what_misses_more_are_compared(
    embedded: Embedded, runtime: Runtime
) -> None:
    """Codes of a byte for 16 dimensions of noise tell little, in however many cells."""
    vectors = np.random.default_rng(0).standard_normal((6000, D)).astype(np.float32)
    index, facts = built(embedded(vectors), runtime, kind="ivfpq", cells=8, code_bytes=1)
    assert facts["compared"] == index.index.wider > WIDER
    projected = index.space.project(vectors)
    expected = nearest(projected[:200], projected, 10)
    assert recall(index.index.search(projected[:200], 10)[1], expected) > 0.9
    index.index.wider = WIDER
    assert recall(index.index.search(projected[:200], 10)[1], expected) < 0.7


def test_what_a_row_finds_of_itself_does_not_count() -> None:
    positions = np.array([[5, 1, 2], [1, 7, 2], [0, 1, 2]])
    assert without(positions, np.array([5, 7, 9]), 2).tolist() == [[1, 2], [1, 2], [0, 1]]


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_many_cells_are_found_by_a_graph(
    embedded: Embedded, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import faiss

    parts = embedded(*in_blocks(clustered(spread=0.5)))
    _, plain = built(parts, runtime, kind=kind, cells=40)
    monkeypatch.setattr("albat_core.search.config._MANY_CELLS", 40)
    joined_by: list[int] = []
    add = faiss.IndexHNSW.add
    monkeypatch.setattr(
        faiss.IndexHNSW,
        "add",
        lambda *its: (joined_by.append(faiss.omp_get_max_threads()), add(*its)),
    )
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(4)  # which would join cells in any order
    digests = []
    for _ in range(2):
        storage.remove(storage.join(runtime.root, "index"))
        ref = build_index(parts, IndexConfig(kind=kind, cells=40), 0, runtime)
        manifest = ArtifactStore(runtime.root).manifest(ref)
        digests.append([file.sha256 for file in manifest.files])
    faiss.omp_set_num_threads(before)
    assert joined_by == [1, 1]
    assert manifest.facts["factory"].startswith("IVF40_HNSW32,")
    assert manifest.facts["recall_at_10"] == pytest.approx(plain["recall_at_10"], abs=0.03)
    assert digests[0] == digests[1]


def test_small_corpora_can_be_indexed_in_any_kind(embedded: Embedded, runtime: Runtime) -> None:
    for rows in (1, 3, 40):
        for kind in ("flat", "ivf", "ivfpq"):
            index, facts = built(embedded(clustered(rows)), runtime, kind=kind)
            found = index.index.search(index.space.project(clustered(2, seed=1)), rows)[1]
            assert found.shape == (2, rows)
            assert f"recall_at_{min(rows, 10)}" in facts
    _, facts = built(embedded(clustered(40)), runtime, kind="ivf", cells=100)
    assert facts["cells"] == 40


def test_where_there_is_no_neighbour_the_position_is_minus_one(
    embedded: Embedded, runtime: Runtime
) -> None:
    index, _ = built(embedded(clustered(3)), runtime, kind="flat")
    positions = index.index.search(index.space.project(clustered(2, seed=1)), 5)[1]
    assert (positions[:, 3:] == -1).all()
    assert (np.sort(positions[:, :3]) == [0, 1, 2]).all()


def test_what_is_loaded_knows_where_rows_are(embedded: Embedded, runtime: Runtime) -> None:
    index, _ = built(embedded(*in_blocks(clustered(700))), runtime)
    assert index.rows == 700
    addresses, rows = index.locate([0, 299, 300, 650, 599])
    assert addresses == ["s0/part-0", "s0/part-0", "s1/part-0", "s2/part-0", "s1/part-0"]
    assert rows == [0, 299, 0, 50, 299]


def test_saved_is_as_it_was(tmp_path: Path, embedded: Embedded, runtime: Runtime) -> None:
    import faiss

    vectors = clustered()
    raw = faiss.index_factory(D, "IVF10,Flat", faiss.METRIC_INNER_PRODUCT)
    raw.nprobe = 3
    index = VectorIndex(raw, runtime)
    index.train(vectors)
    index.add(vectors)
    index.save(tmp_path / "index.faiss")
    back = VectorIndex(faiss.read_index(str(tmp_path / "index.faiss")), runtime)
    for found, expected in zip(back.search(vectors, 5), index.search(vectors, 5), strict=True):
        assert np.array_equal(found, expected)


# Growing


def grown(
    store: ArtifactStore, earlier: ArtifactRef, parts: list[EmbeddedPart], **config: object
) -> ArtifactRef:
    settings = IndexConfig(**config)
    return build_index(parts, settings, 0, Runtime(root=store.root, device="cpu"), earlier)


@pytest.mark.parametrize("kind", ["flat", "ivf", "ivfpq"])
def test_a_corpus_that_grew_has_its_new_rows_added(
    embedded: Embedded, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Space and cells stay; what is found are the neighbours in that space, up to the recall."""
    store = ArtifactStore(runtime.root)
    vectors = clustered(spread=0.5)
    parts = embedded(*in_blocks(vectors))
    first = build_index(parts[:-2], IndexConfig(kind=kind), 0, runtime)
    assert len(parts) - 2 == 5
    read: list[str] = []
    load = index_stage.load_vectors
    monkeypatch.setattr(
        index_stage, "load_vectors", lambda _, ref: (read.append(ref.key), load(store, ref))[1]
    )
    shuffled = [*parts[-2:], *parts[:-2]]  # new files may come anywhere
    ref = grown(store, first, shuffled, kind=kind)
    assert read == [part.embeddings.key for part in parts[-2:]]
    facts = store.manifest(ref).facts
    assert (facts["learnt"], facts["fitted_rows"], facts["added_rows"]) == (first.key, 1500, 500)
    assert facts["drift"] < 0.1
    one, other = (load_index(store, each, runtime) for each in (first, ref))
    assert np.array_equal(one.space.whitening, other.space.whitening)
    assert other.addresses == [part.part.address for part in parts]
    queries = other.space.project(clustered(50, seed=1, spread=0.5))
    expected = nearest(queries, other.space.project(vectors), 10)
    found = other.index.search(queries, 10)[1]
    assert recall(found, expected) == 1 if kind == "flat" else recall(found, expected) > 0.8
    assert (found >= 1500).any()
    whole = load_index(store, build_index(parts, IndexConfig(kind=kind), 0, runtime), runtime)
    anew = whole.index.search(whole.space.project(clustered(50, seed=1, spread=0.5)), 10)[1]
    assert recall(found, anew) > 0.8  # as from scratch, but for the space of 1,500 rows


def test_what_an_index_grew_from_is_in_its_key_and_order_is_not(
    embedded: Embedded, runtime: Runtime
) -> None:
    store = ArtifactStore(runtime.root)
    parts = embedded(*in_blocks(clustered(spread=0.5)))
    first = build_index(parts[:4], IndexConfig(), 0, runtime)
    second = grown(store, first, parts[:5])
    third = grown(store, second, parts[:6])
    assert grown(store, third, parts[:6]) == third  # nothing is new
    assert grown(store, first, parts[:6]) == third  # in one step: the same rows in the same order
    storage.remove(storage.join(store.root, str(third)))
    files = {f.path: f.sha256 for f in store.manifest(grown(store, first, parts[:6])).files}
    storage.remove(storage.join(store.root, str(third)))
    again = {f.path: f.sha256 for f in store.manifest(grown(store, second, parts[:6])).files}
    assert files["index.faiss"] == again["index.faiss"]
    assert build_index(parts[:6], IndexConfig(), 0, runtime) != third


@pytest.mark.parametrize(
    ("count", "config"),
    [(7, {"kind": "flat"}), (4, {"kind": "ivf"}), (4, {"kind": "flat", "shrinkage": 0.2})],
    ids=["twice the rows", "another kind", "another space"],
)
def test_an_index_is_built_anew_where_it_cannot_grow(
    embedded: Embedded, runtime: Runtime, count: int, config: dict
) -> None:
    store = ArtifactStore(runtime.root)
    parts = embedded(*in_blocks(clustered(spread=0.5)))
    first = build_index(parts[:3], IndexConfig(kind="flat"), 0, runtime)
    ref = grown(store, first, parts[:count], **config)
    assert "learnt" not in store.manifest(ref).facts
    assert ref == build_index(parts[:count], IndexConfig(**config), 0, runtime)
    assert "learnt" not in store.manifest(grown(store, first, parts[1:4], kind="flat")).facts


def test_an_index_that_is_damaged_does_not_grow(embedded: Embedded, runtime: Runtime) -> None:
    store = ArtifactStore(runtime.root)
    parts = embedded(*in_blocks(clustered(spread=0.5)))
    first = build_index(parts[:4], IndexConfig(), 0, runtime)
    file = store.folder(first) / "index.faiss"
    content = file.read_bytes()
    file.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    with pytest.raises(DamagedError):
        grown(store, first, parts)
    ref = grown(store, first, parts)  # as a run asks once more
    assert "learnt" not in store.manifest(ref).facts


def test_a_corpus_that_drifted_is_learnt_anew_and_that_is_told(
    embedded: Embedded, runtime: Runtime
) -> None:
    store = ArtifactStore(runtime.root)
    vectors = clustered(1000, spread=0.5)
    for other in (vectors[:300] + 40, vectors[:300] * 3):  # elsewhere, and wider
        parts = embedded(*in_blocks(vectors, 500), other.astype(np.float32))
        first = build_index(parts[:2], IndexConfig(), 0, runtime)
        ref = grown(store, first, parts)
        manifest = store.manifest(ref)
        assert manifest.facts["fitted_rows"] == 1300
        assert manifest.facts["learnt_anew_at"] > 0.1
        (said,) = growth_notes([manifest.facts])
        assert said.startswith("learnt anew: with rows that came, the corpus had moved by ")
        one, whole = (
            load_index(store, r, runtime)
            for r in (ref, build_index(parts, IndexConfig(), 0, runtime))
        )
        assert np.array_equal(one.space.mean, whole.space.mean)


def test_a_run_grows_its_index_where_it_is_told_to(tmp_path: Path) -> None:
    path = write_run(tmp_path, index={"grow": True})
    config = load_config(str(path))
    first = Chain(config)
    assert first.inputs.index
    write_jsonl(tmp_path / "corpus" / "more.jsonl", topic_rows("plants", 8, seed=3))
    second, third = Chain(config), Chain(config)
    facts = second.facts(second.inputs.index)
    assert (facts["added_rows"], facts["learnt"]) == (8, first.inputs.index.key)
    assert third.inputs.index == second.inputs.index
    assert third.inputs.index.reused
    apart = Chain(config.model_copy(update={"index": IndexConfig()}))
    assert "learnt" not in apart.facts(apart.inputs.index)


# Where it lies


def allocated() -> float:
    """MB of this process, pages of mapped files and what was freed left out."""
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for its memory")
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_rows_that_were_coded_group_by_group_give_the_same_index(
    embedded: Embedded, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, kind: str, graph: bool
) -> None:
    monkeypatch.setattr(index_stage, "_GROUP", 800)
    monkeypatch.setattr(search_config, "_MANY_CELLS", 2 if graph else 10**9)
    config = IndexConfig(kind=kind, code_bytes=8)
    parts = embedded(*in_blocks(clustered()))
    store = ArtifactStore(runtime.root)
    grouped = groups(parts, config, runtime)
    assert [sum(p.part.rows for p in group) for group in grouped] == [900, 900, 200]
    assert find_index(parts, config, 3, runtime) is None
    cells = learn_cells(parts, config, 3, runtime)
    coded = [code_rows(cells, group, config, runtime) for group in grouped]
    joined = build_index(parts, config, 3, runtime, coded=Coded(cells=cells, groups=coded))
    assert find_index(parts, config, 3, runtime) == joined
    by_groups = store.manifest(joined)
    storage.remove(f"{runtime.root}/{joined.stage}")
    store = ArtifactStore(runtime.root)
    assert build_index(parts, config, 3, runtime) == joined  # of the same key, by one process
    whole = store.manifest(joined)
    assert whole.files == by_groups.files
    assert whole.facts == by_groups.facts
    assert "HNSW" in whole.facts["factory"] or not graph


def test_few_rows_and_those_of_a_flat_index_are_not_divided(
    embedded: Embedded, runtime: Runtime
) -> None:
    parts = embedded(*in_blocks(clustered()))
    assert groups(parts, IndexConfig(kind="ivf"), runtime) == []
    assert groups(parts, IndexConfig(kind="flat"), runtime) == []
    assert groups([], IndexConfig(), runtime) == []


def test_a_run_codes_rows_of_a_large_corpus_by_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_stage, "_GROUP", 20)
    settings = {"index": {"kind": "ivf", "cells": 4}, "shards": {"rows": 16}}
    chain = Chain(load_config(str(write_run(tmp_path, **settings))))
    made = chain.inputs.index
    labels = [stage.label for stage in chain.stages]
    assert labels[labels.index("learn cells") :][:3] == ["learn cells", "code rows", "index"]
    assert len(next(s for s in chain.stages if s.label == "code rows").refs) > 1
    again = Chain(chain.config)  # what is there is not divided
    assert again.inputs.index == made
    assert "code rows" not in [stage.label for stage in again.stages]


def test_cells_are_searched_in_their_file_with_the_same_result(
    tmp_path: Path, runtime: Runtime
) -> None:
    vectors, queries = clustered(60_000, 64), clustered(20, 64, seed=1)
    made = VectorIndex.new(64, "IVF16,Flat", runtime, cells=16)
    made.train(vectors[:2000])
    made.add(vectors)
    made.save(tmp_path / "index")
    grown, found = [], []
    for mapped in (True, False):
        before = allocated()
        index = VectorIndex.read(tmp_path / "index", runtime, mapped=mapped)
        index.look_into(4)
        found.append(index.search(queries, 10))
        grown.append(allocated() - before)
    assert np.array_equal(found[0][1], found[1][1])
    assert np.array_equal(found[0][0], found[1][0])
    assert grown[0] < 4 < 12 < grown[1]  # 15.8 MB of vectors and ids


# What is refused


def test_other_dimensions_are_refused_with_both(embedded: Embedded, runtime: Runtime) -> None:
    index, _ = built(embedded(clustered(50)), runtime)
    wrong = np.ones((2, 24), dtype=np.float32)
    for search in (index.space.project, lambda q: index.index.search(q, 1)):
        with pytest.raises(DimensionMismatchError, match=f"d=24 but the index has d={D}") as caught:
            search(wrong)
        assert "same backbone" in caught.value.remedy


def test_parts_of_different_dimensions_are_refused(embedded: Embedded, runtime: Runtime) -> None:
    parts = embedded(clustered(50), clustered(50, dimension=24))
    with pytest.raises(DimensionMismatchError, match=r"16.*24"):
        built(parts, runtime)


def test_every_pass_over_the_vectors_is_shown(embedded: Embedded, runtime: Runtime) -> None:
    shown: dict[str, list[int]] = {}

    class Watching(Silent):
        @contextmanager
        def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
            assert (total, unit) == (ROWS, "vectors")
            yield shown.setdefault(label, []).append

    with reporting_to(Watching()):
        build_index(embedded(*in_blocks(clustered())), IndexConfig(kind="ivf"), 0, runtime)
    assert list(shown) == [f"index: {what}" for what in ("whiten", "draw a sample", "add")]
    assert {sum(done) for done in shown.values()} == {ROWS}


def test_an_empty_corpus_is_refused(runtime: Runtime) -> None:
    with pytest.raises(InputError, match="expected a corpus with rows"):
        built([], runtime)


# What it is made of


@pytest.mark.parametrize(
    ("rows", "dimension", "config", "kind"),
    [
        (200_000, 768, {}, "flat"),
        (200_001, 768, {}, "ivf"),
        (1_302_083, 768, {}, "ivf"),  # 3.99999 GB
        (1_302_084, 768, {}, "ivfpq"),
        (100_000, 768, {"memory_gb": 0.3}, "ivfpq"),
        (1000, 8, {"exact_rows": 999}, "ivf"),
        (10**9, 4096, {"kind": "flat"}, "flat"),
        (16, 4, {"kind": "ivfpq"}, "ivfpq"),
        (15, 4, {"kind": "ivfpq"}, "flat"),
    ],
)
def test_the_kind_follows_rows_and_memory(
    rows: int, dimension: int, config: dict, kind: str
) -> None:
    assert choose_kind(rows, dimension, IndexConfig(**config)) == kind


def test_exact_search_over_blocks_is_that_over_all() -> None:
    vectors, queries = clustered(700), clustered(20, seed=1)
    parts, whole = ExactSearch(queries, 9), ExactSearch(queries, 9)
    for block in in_blocks(vectors, 64):
        parts.add(block)
    whole.add(vectors)
    assert np.array_equal(parts.positions, whole.positions)
    assert np.array_equal(parts.positions, nearest(queries, vectors, 9))
    np.testing.assert_allclose(parts.similarities, whole.similarities, rtol=1e-5)


def test_exact_search_of_few_rows_says_where_there_is_none() -> None:
    search = ExactSearch(np.eye(2, dtype=np.float32), 3)
    search.add(np.eye(2, dtype=np.float32))
    assert search.positions.tolist() == [[0, 1, -1], [1, 0, -1]]
    assert search.similarities.tolist() == [[1, 0, -np.inf], [1, 0, -np.inf]]


@pytest.mark.parametrize(
    ("found", "exact", "expected"),
    [
        ([[1, 2, 3]], [[3, 2, 1]], 1),
        ([[1, 2, 3]], [[4, 5, 6]], 0),
        ([[1, 2, 3], [7, 8, 9]], [[1, 2, 0], [9, 0, 1]], 0.5),
        ([[1, -1, -1]], [[1, 2, -1]], 0.5),  # a neighbour that does not exist is none to miss
        ([[-1]], [[-1]], 0),
    ],
)
def test_recall_is_the_share_of_true_neighbours_found(
    found: list, exact: list, expected: float
) -> None:
    assert recall(np.array(found), np.array(exact)) == expected
