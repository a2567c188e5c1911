"""Importance weights of hashed n-grams, against the formula of DSIR (arXiv 2302.03169).

Buckets and counts are those of the toys in the reference's own tests (p-lambda/dsir).
"""

import hashlib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from albat_core.errors import InputError
from albat_core.records.candidates import CANDIDATES, Candidates
from albat_core.records.examples import Example, example_text, examples_to_table
from albat_core.records.shards import STAGE as SHARDS
from albat_core.records.tables import read_table, write_table
from albat_core.scorers.ngram import hash_buckets, importance, ngram_counts
from albat_core.stages.retrieve import take_candidates
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime
from tests.toys import sentences


def texts(*values: str) -> list[Example]:
    return [Example(f"e{n}", f"d{n}", "s", text=value) for n, value in enumerate(values)]


def shards_of(examples: list[Example], runtime: Runtime) -> ArtifactRef:
    """Shards that hold the examples as they are, uncut."""

    def build(folder: Path) -> Built:
        write_table(examples_to_table(examples), folder / "part.parquet")
        facts = {"parts": [{"name": "part.parquet", "rows": len(examples)}]}
        return Built(rows=len(examples), facts=facts)

    inputs = {"rows": [[e.example_id, e.document, e.digest()] for e in examples]}
    return ArtifactStore(runtime.root).produce(SHARDS, 1, {}, inputs, build)


def candidates(examples: list[Example], runtime: Runtime) -> Candidates:
    """All the examples as candidates."""
    store = ArtifactStore(runtime.root)
    ref = take_candidates([shards_of(examples, runtime)], runtime)
    return Candidates(store, read_table(store.folder(ref) / CANDIDATES))


def test_buckets_are_those_of_the_reference() -> None:
    assert hash_buckets("alice") == 6720
    assert hash_buckets("alice went") == 114
    digest = int(hashlib.sha256("zoë".encode()).hexdigest(), 16)
    assert hash_buckets("zoë", 97) == digest % 97


def test_counts_of_the_reference_s_toy() -> None:
    counts = ngram_counts("Alice went to the store", 10_000)
    assert counts.shape == (10_000,)
    assert counts.sum() == 9
    assert counts[6720] == 1
    assert counts[114] == 1


def test_tokens_are_runs_of_word_characters_and_of_punctuation() -> None:
    tokens = ["it", "cost", "$", "3", ".", "88", "--", "it", "cost"]
    pairs = [f"{first} {second}" for first, second in pairwise(tokens)]
    expected = Counter(hash_buckets(ngram, 5000) for ngram in tokens + pairs)
    counts = ngram_counts("It cost\n$3.88 -- IT cost", 5000)
    assert {b: int(counts[b]) for b in np.flatnonzero(counts)} == expected
    assert ngram_counts(" \n", 8).tolist() == [0] * 8


def test_weight_of_a_word_that_is_twice_as_frequent_is_log_two(runtime: Runtime) -> None:
    score = importance(candidates(texts("leaf", "mast"), runtime), texts("leaf"))
    assert score.dtype == np.float64
    assert score.tolist() == pytest.approx([np.log(2), np.log(1e-8 / 0.5)], rel=1e-6)


def test_score_is_dsir_s_log_importance_weight(runtime: Runtime) -> None:
    target = sentences("plants", 12, 1)
    pool = [*sentences("plants", 15, 2), *sentences("ships", 15, 3), "green sails, blue leaf"]
    buckets = 300

    def shares(lines: list[str]) -> NDArray[np.float64]:
        total = np.sum([ngram_counts(line, buckets) for line in lines], axis=0)
        return np.asarray(total / total.sum())

    difference = np.log(shares(target) + 1e-8) - np.log(shares(pool) + 1e-8)
    expected = [float(ngram_counts(line, buckets) @ difference) for line in pool]
    found = importance(candidates(texts(*pool), runtime), texts(*target), buckets)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[:15].min() > found[15:30].max()  # plants before ships


def test_scores_do_not_depend_on_how_many_rows_are_in_memory(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = texts(*sentences("plants", 5, 1))
    pool = candidates(texts(*sentences("plants", 20, 2), *sentences("ships", 20, 3)), runtime)
    whole = importance(pool, targets)
    monkeypatch.setattr("albat_core.records.candidates._BLOCK", 7)
    assert len(list(pool.blocks())) == 6
    assert importance(pool, targets).tolist() == whole.tolist()


def test_a_chat_counts_as_its_contents(runtime: Runtime) -> None:
    turns = ({"role": "user", "content": "leaf root"}, {"role": "assistant", "content": "stem"})
    chat = Example("c", "c", "s", messages=turns)
    assert example_text(chat) == "leaf root\nstem"
    pool = candidates([*texts("leaf root stem", "mast"), chat], runtime)
    first, _, last = importance(pool, [chat])
    assert first == last > 0


def test_targets_without_words_are_refused(runtime: Runtime) -> None:
    pool = candidates(texts("leaf"), runtime)
    with pytest.raises(InputError, match="words in the adaptation examples"):
        importance(pool, [Example("p", "p", "s", image=b"x")])
