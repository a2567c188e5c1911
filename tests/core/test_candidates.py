"""Candidates as they are read: many at a time, of large pictures few."""

import os
import tracemalloc

import numpy as np
import pytest

from albat_core.records.examples import Example
from albat_core.stages.prefilter import PrefilterConfig, prefilter
from albat_core.stages.retrieve import take_candidates
from albat_core.stages.split import SplitConfig, split_adaptation
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from tests.core.test_ngram import candidates, shards_of, texts

LARGE = 100_000  # bytes of a picture


def pictures(count: int) -> list[Example]:
    return [
        Example(f"p{n}", f"p{n}", "s", text="leaf", image=os.urandom(LARGE)) for n in range(count)
    ]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of ten rows, and of no more than four pictures in memory."""
    monkeypatch.setattr("albat_core.records.candidates._BLOCK", 10)
    monkeypatch.setattr("albat_core.records.candidates._BLOCK_BYTES", 4 * LARGE + 4000)


@pytest.mark.usefixtures("few")
def test_large_rows_are_read_few_at_a_time_and_encoded_in_the_same_blocks(
    runtime: Runtime,
) -> None:
    rows = pictures(22)
    pool = candidates(rows, runtime)
    blocks = list(pool.blocks())
    assert [row for block in blocks for row in block] == rows
    assert max(map(len, blocks)) <= 5
    given: list[int] = []

    def names(some: list[Example]) -> list[str]:
        given.append(len(some))
        return [row.example_id for row in some]

    encoded = list(pool.encoded(names))
    assert list(map(len, encoded)) == [10, 10, 2]
    assert [name for block in encoded for name in block] == [row.example_id for row in rows]
    assert given == list(map(len, blocks))
    words = candidates(texts(*(str(n) for n in range(22))), runtime)
    assert list(map(len, words.blocks())) == [10, 10, 2]
    assert not list(pool.take(np.zeros(0, np.intp)).encoded(names))


@pytest.mark.usefixtures("few")
def test_a_block_is_let_go_before_the_next_is_read(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("albat_core.store.storage._BLOCK", 1 << 16)  # of digests
    corpus = take_candidates([shards_of(pictures(40), runtime)], runtime)
    own = shards_of(texts(*(f"leaf {n}" for n in range(9))), runtime)
    split = split_adaptation([own], [], SplitConfig(folds=2), 0, runtime)
    pool = candidates(pictures(40), runtime)
    tracemalloc.start()
    try:
        assert sum(map(len, pool.encoded(lambda some: [row.text for row in some]))) == 40
        _, encoding = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        kept = prefilter(corpus, split, PrefilterConfig(share=0.9), runtime)
        _, filtering = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ArtifactStore(runtime.root).manifest(kept).rows == 36
    assert encoding < 7 * LARGE
    assert filtering < 7 * LARGE
