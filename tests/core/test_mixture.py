"""Selection and weights."""

import numpy as np
import pytest

from albat_core.artifacts import ArtifactStore
from albat_core.chain import Chain
from albat_core.config import RunConfig
from albat_core.mixture import (
    MixtureConfig,
    best_by_turns,
    effective_sample_size,
    exponential_weights,
    read_selection,
    select,
)
from albat_core.records import read_table
from albat_core.retrieval import NEIGHBOURS
from albat_core.scoring import SCORES

SCORED = np.random.default_rng(3).normal(size=400)


def test_effective_sample_size_of_known_weights() -> None:
    assert effective_sample_size(np.full(8, 1 / 8)) == pytest.approx(8)
    assert effective_sample_size(np.array([1.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_sample_size(np.array([0.5, 0.25, 0.25])) == pytest.approx(1 / 0.375)


@pytest.mark.parametrize("ess", [0.01, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_exponential_weights_meet_the_target_at_any_scale(ess: float, scale: float) -> None:
    weights, tau = exponential_weights(scale * SCORED, ess)
    assert weights.sum() == pytest.approx(1)
    assert effective_sample_size(weights) == pytest.approx(ess * 400, rel=1e-4)
    expected = np.exp(scale * (SCORED - SCORED.max()) / tau)
    assert weights == pytest.approx(expected / expected.sum())
    assert (np.diff(weights[np.argsort(SCORED)]) >= 0).all()


def test_a_target_that_is_out_of_reach_gives_the_best_alone() -> None:
    weights, tau = exponential_weights(SCORED, 1e-6)
    assert weights == pytest.approx(np.eye(400)[SCORED.argmax()])
    assert np.isfinite(tau)
    scores = np.repeat([1.0, 0.0], [3, 97])  # three are best: no fewer than these can be meant
    assert exponential_weights(scores, 0.001)[0] == pytest.approx(np.repeat([1 / 3, 0], [3, 97]))


def test_equal_scores_and_full_ess_give_equal_weights() -> None:
    assert exponential_weights(np.zeros(5), 0.3)[0] == pytest.approx(np.full(5, 0.2))
    weights, tau = exponential_weights(SCORED, 1.0)
    assert weights == pytest.approx(np.full(400, 1 / 400))
    assert tau == np.inf


def test_turns_go_round_the_queries_and_take_the_best_first() -> None:
    # query 0 knows 0, 1, 2; query 1 knows 1, 3; scores say 2 > 1 > 0 > 3
    queries = np.array([0, 0, 0, 1, 1])
    candidates = np.array([0, 1, 2, 1, 3])
    scores = np.array([0.2, 0.5, 0.9, 0.1])
    assert best_by_turns(queries, candidates, scores, 10) == [2, 1, 0, 3]
    assert best_by_turns(queries, candidates, scores, 3) == [2, 1, 0]
    # when the shared one is taken, the query takes its next
    scores = np.array([0.2, 0.95, 0.9, 0.1])
    assert best_by_turns(queries, candidates, scores, 10) == [1, 3, 2, 0]


def test_selection_by_turns_serves_every_query(
    chain: Chain, store: ArtifactStore, run_config: RunConfig
) -> None:
    chosen = read_selection(store, chain.selection).to_pydict()
    scored = read_table(store.folder(chain.scores) / SCORES).to_pydict()
    pairs = read_table(store.folder(chain.candidates) / NEIGHBOURS).to_pydict()
    known: dict[str, set[str]] = {}
    for query, candidate in zip(pairs["query"], pairs["candidate"], strict=True):
        known.setdefault(query, set()).add(scored["example_id"][candidate])
    assert len(chosen["example_id"]) == len(set(chosen["example_id"])) == 20
    assert sum(chosen["weight"]) == pytest.approx(1)
    score = dict(zip(scored["example_id"], scored["score"], strict=True))
    best = {max(sorted(ids), key=lambda i: score[i]) for ids in known.values()}
    assert best <= set(chosen["example_id"])
    facts = store.manifest(chain.selection).facts
    target = run_config.mixture.ess * 20
    assert facts["effective_sample_size"] == pytest.approx(target, rel=1e-3)


def test_selection_of_the_top(chain: Chain, store: ArtifactStore, run_config: RunConfig) -> None:
    top = MixtureConfig(rows=5, select="top", ess=1.0)
    selection = select(chain.candidates, chain.scores, top, run_config.runtime)
    scored = read_table(store.folder(chain.scores) / SCORES)["score"].to_numpy()
    chosen = read_selection(store, selection)
    assert chosen["score"].to_pylist() == pytest.approx(np.sort(scored)[::-1][:5])
    assert chosen["weight"].to_pylist() == pytest.approx([0.2] * 5)


def test_alpha_plays_no_part_in_the_selection(chain: Chain, run_config: RunConfig) -> None:
    other = run_config.mixture.model_copy(update={"alpha": 0.1})
    again = select(chain.candidates, chain.scores, other, run_config.runtime)
    assert again == chain.selection
    assert again.reused
