"""Selection and weights."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import ArrayLike, NDArray

from albat_core.errors import ConfigError
from albat_core.measures.weights import effective_sample_size, exponential_weights
from albat_core.records.candidates import NEIGHBOURS
from albat_core.records.scores import SCORE_SCHEMA, SCORES
from albat_core.records.selections import read_selection
from albat_core.records.tables import read_table, write_table
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.runs.steps import NOTES
from albat_core.stages.retrieve import take_candidates
from albat_core.stages.score import ScoringConfig
from albat_core.stages.select import (
    SelectionConfig,
    best_by_source,
    best_by_turns,
    gumbel_top,
    select,
    weights_of,
)
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built

SCORED = np.random.default_rng(3).normal(size=400)


def test_effective_sample_size_of_known_weights() -> None:
    assert effective_sample_size(np.full(8, 1 / 8)) == pytest.approx(8)
    assert effective_sample_size(np.array([1.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_sample_size(np.array([0.5, 0.25, 0.25])) == pytest.approx(1 / 0.375)


def test_sources_are_taken_whole_the_best_mean_first() -> None:
    scores = np.array([0.9, 0.2, 0.5, 0.6, 0.7, 0.1, 0.0, 0.2])
    sources = np.array(["a", "a", "b", "b", "b", "c", "c", "c"])
    assert best_by_source(scores, sources, 10) == [4, 3, 2, 0, 1, 7, 5, 6]
    assert best_by_source(scores, sources, 4) == [4, 3, 2, 0]


def test_a_source_of_one_lucky_row_does_not_come_first() -> None:
    noise = np.random.default_rng(0).normal(size=(6, 40))
    means = np.repeat(np.arange(6.0)[:, None] / 2, 40, axis=1)
    scores = np.append(means + noise, 2.8)  # above the best mean, 2.5, by less than one row's noise
    sources = np.append(np.repeat(np.arange(6), 40), 6).astype(str)
    taken = [sources[row] for row in best_by_source(scores, sources, 241)]
    assert list(dict.fromkeys(taken)) == ["5", "4", "6", "3", "2", "1", "0"]


def test_a_selection_may_be_of_whole_sources(chain: Chain, run_config: RunConfig) -> None:
    settings = SelectionConfig(rows=20, select="sources", weigh="even")
    store = ArtifactStore(run_config.runtime.root)
    chosen = select(chain.candidates, chain.scores, settings, 0, run_config.runtime)
    rows = read_selection(store, chosen)
    taken = rows["source"].to_pylist()
    scored = read_table(store.folder(chain.scores) / SCORES)
    first = [s for s in scored["source"].to_pylist() if s == taken[0]]
    assert taken[: len(first)] == first[: len(taken)]


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


def test_where_turns_are_too_few_the_best_picks_have_one() -> None:
    queries, candidates = np.repeat(np.arange(6), 2), np.arange(12)
    scores = np.array([0, 1, 0, 2, 0, 3, 0, 9, 0, 8, 0, 7], np.float64)
    assert best_by_turns(queries, candidates, scores, 4) == [7, 9, 11, 5]
    assert best_by_turns(queries, candidates, scores, 6) == [1, 3, 5, 7, 9, 11]
    candidates[1] = 7  # the best of two: the other one is served by it too
    assert best_by_turns(queries, candidates, scores, 5) == [7, 9, 11, 5, 3]


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
    target = run_config.selection.ess * 20
    assert facts["effective_sample_size"] == pytest.approx(target, rel=1e-3)


def test_selection_of_the_top(chain: Chain, store: ArtifactStore, run_config: RunConfig) -> None:
    top = SelectionConfig(rows=5, select="top", ess=1.0)
    selection = select(chain.candidates, chain.scores, top, 0, run_config.runtime)
    scored = read_table(store.folder(chain.scores) / SCORES)["score"].to_numpy()
    chosen = read_selection(store, selection)
    assert chosen["score"].to_pylist() == pytest.approx(np.sort(scored)[::-1][:5])
    assert chosen["weight"].to_pylist() == pytest.approx([0.2] * 5)


def test_alpha_plays_no_part_in_the_selection(chain: Chain, run_config: RunConfig) -> None:
    other = run_config.mixture.model_copy(update={"alpha": 0.1})
    again = Chain(run_config.model_copy(update={"mixture": other})).selection
    assert again == chain.selection
    assert again.reused


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    chances = np.exp(logits - logits.max())
    return np.asarray(chances / chances.sum())


def test_gumbel_draws_one_after_the_other_with_chances_as_the_softmax() -> None:
    # the reference: draw i of those left with chance p_i / (what is left), p = softmax(s / T)
    scores, draws = np.array([0.0, 0.5, 1.0, 1.8]), 6000
    chances = softmax(scores / 0.7)
    found = [tuple(gumbel_top(scores, 2, 0.7, seed)) for seed in range(draws)]
    for first, second in permutations(range(4), 2):
        expected = chances[first] * chances[second] / (1 - chances[first])
        deviation = np.sqrt(expected * (1 - expected) / draws)
        frequency = np.mean([pair == (first, second) for pair in found])
        assert abs(frequency - expected) < 4.5 * deviation, (first, second)


def test_gumbel_draws_each_once_and_fewer_are_the_first_of_more() -> None:
    for seed in range(20):
        every = gumbel_top(SCORED, 1000, 0.5, seed)
        assert sorted(every) == list(range(400))
        assert gumbel_top(SCORED, 30, 0.5, seed) == every[:30]
    assert gumbel_top(SCORED, 30, 0.5, 0) != gumbel_top(SCORED, 30, 0.5, 1)


@pytest.mark.parametrize("count", [4, 40, 200])
def test_without_a_temperature_the_chances_are_worth_as_many_rows_as_are_drawn(count: int) -> None:
    low, high = 1e-4, 1e4  # the reference: ESS of softmax(s / T) = count, T by bisection
    for _ in range(200):
        temperature = np.sqrt(low * high)
        small = 1 / np.square(softmax(SCORED / temperature)).sum() < count
        low, high = (temperature, high) if small else (low, temperature)
    assert 1 / np.square(softmax(SCORED / temperature)).sum() == pytest.approx(count)
    for seed in range(30):
        chosen = gumbel_top(SCORED, count, None, seed)
        assert chosen == gumbel_top(SCORED, count, float(temperature), seed)
    assert chosen != gumbel_top(SCORED, count, 2 * float(temperature), seed)


def test_without_a_temperature_all_that_there_are_come_in_any_order() -> None:
    first = [gumbel_top(np.array([3.0, 2.0, 1.0]), 3, None, seed)[0] for seed in range(900)]
    assert np.bincount(first) / 900 == pytest.approx(np.full(3, 1 / 3), abs=0.08)


def test_weights_are_as_configured() -> None:
    scores = np.array([0.5, 2.0, 0.0, 1.5])
    assert weights_of(scores, SelectionConfig(weigh="even")) == (pytest.approx([0.25] * 4), np.inf)
    as_scores, tau = weights_of(scores, SelectionConfig(weigh="proportional"))
    assert (as_scores.tolist(), tau) == (pytest.approx([0.125, 0.5, 0.0, 0.375]), np.inf)
    weights, tau = weights_of(scores, SelectionConfig(ess=0.6))
    expected = exponential_weights(scores, 0.6)
    assert (weights.tolist(), tau) == (pytest.approx(expected[0]), expected[1])


@pytest.mark.parametrize("scores", [[-0.1, 2.0], [0.0, 0.0], [-1.0, -2.0]])
def test_scores_that_are_no_weights_are_refused(scores: list[float]) -> None:
    with pytest.raises(ConfigError, match="expected scores >= 0 with one above 0") as raised:
        weights_of(np.array(scores), SelectionConfig(weigh="proportional"))
    assert raised.value.where == "selection.weigh"
    assert "matching" in raised.value.remedy


class Scored:
    """Toy candidates with scores of the test's choice, selected among."""

    def __init__(self, chain: Chain, run: RunConfig) -> None:
        self._chain, self._runtime = chain, run.runtime
        self.store = ArtifactStore(run.runtime.root)
        self.rows = self.store.manifest(chain.candidates).rows

    def score(self, values: ArrayLike) -> ArtifactRef:
        """Return the toy run's scores with these in their place."""
        table = read_table(self.store.folder(self._chain.scores) / SCORES)
        column = pa.array(np.asarray(values), pa.float32())
        place = SCORE_SCHEMA.get_field_index("score")

        def build(folder: Path) -> Built:
            field = SCORE_SCHEMA.field("score")
            write_table(table.set_column(place, field, column), folder / SCORES)
            return Built(rows=table.num_rows)

        return self.store.produce("scores", 0, {"values": column.to_pylist()}, {}, build)

    def select(self, scores: ArtifactRef, seed: int = 0, **settings: object) -> ArtifactRef:
        config = SelectionConfig.model_validate({"rows": 6, "select": "top"} | settings)
        return select(self._chain.candidates, scores, config, seed, self._runtime)

    def chosen(self, scores: ArtifactRef, seed: int = 0, **settings: object) -> dict[str, float]:
        """Return the names of the rows selected with their weights, in order."""
        rows = read_selection(self.store, self.select(scores, seed, **settings)).to_pydict()
        assert sum(rows["weight"]) == pytest.approx(1)
        return dict(zip(rows["example_id"], rows["weight"], strict=True))

    @property
    def names(self) -> list[str]:
        """Names of the candidates in order."""
        table = read_table(self.store.folder(self._chain.scores) / SCORES)
        return list(table["example_id"].to_pylist())


@pytest.fixture
def scored(chain: Chain, run_config: RunConfig) -> Scored:
    return Scored(chain, run_config)


def test_a_selection_by_gumbel_is_drawn_with_the_run_s_seed(scored: Scored) -> None:
    values = np.linspace(0, 1, scored.rows, dtype=np.float32)
    scores = scored.score(values)
    for seed in range(3):
        for temperature in (None, 0.2):
            drawn = gumbel_top(values.astype(np.float64), 6, temperature, seed)
            found = scored.chosen(scores, seed, select="gumbel", temperature=temperature)
            assert list(found) == [scored.names[row] for row in drawn]


def test_only_a_selection_that_is_drawn_depends_on_the_seed(scored: Scored) -> None:
    scores = scored.score(np.linspace(0, 1, scored.rows))
    for how, alike in (("turns", True), ("top", True), ("gumbel", False)):
        refs = [scored.select(scores, seed, select=how) for seed in (1, 2)]
        assert (refs[0] == refs[1]) == alike, how
    again = scored.select(scores, 2, select="gumbel")
    assert again == refs[1]
    assert again.reused


def test_a_selection_is_weighed_as_configured(scored: Scored) -> None:
    values = np.zeros(scored.rows, np.float32)
    values[:4] = [3.0, 0.0625, 4.0, 2.0]
    scores, names = scored.score(values), scored.names
    even = scored.chosen(scores, weigh="even")
    order = (2, 0, 3, 1)
    assert list(even)[:4] == [names[n] for n in order]
    assert list(even.values()) == pytest.approx([1 / 6] * 6)
    as_scores = scored.chosen(scores, weigh="proportional")  # and none without weight
    assert as_scores == {names[n]: pytest.approx(values[n] / values.sum()) for n in order}
    facts = scored.store.manifest(scored.select(scores, weigh="proportional")).facts
    ess = values.sum() ** 2 / np.square(values).sum()
    assert facts == {"effective_sample_size": pytest.approx(ess), "wanted": 6, "lacking": 2}
    steep = scored.chosen(scores, weigh="exponential", ess=0.5, rows=4)
    assert effective_sample_size(np.array(list(steep.values()))) == pytest.approx(2, rel=1e-3)


def test_a_selection_of_fewer_rows_than_wanted_is_told(scored: Scored) -> None:
    scores = scored.score(np.linspace(0, 1, scored.rows))
    for how in ("turns", "top", "gumbel"):
        manifest = scored.store.manifest(scored.select(scores, select=how, rows=1500))
        assert manifest.rows == scored.rows < 1500  # all there are
        (note,) = NOTES["selection"]([manifest.facts])
        assert note.startswith(f"{1500 - scored.rows:,} fewer than the 1,500 of selection.rows")
        enough = scored.store.manifest(scored.select(scores, select=how, rows=scored.rows))
        assert NOTES["selection"]([enough.facts]) == ()


def test_candidates_none_of_which_has_weight_are_refused(scored: Scored) -> None:
    with pytest.raises(ConfigError, match="one above 0, got 0 to 0"):
        scored.select(scored.score(np.zeros(scored.rows)), weigh="proportional")


def test_turns_without_neighbours_are_refused(
    scored: Scored, chain: Chain, run_config: RunConfig
) -> None:
    everything = take_candidates(chain.inputs.corpus, run_config.runtime)
    scores = scored.score(np.zeros(scored.rows))
    with pytest.raises(ConfigError, match="expected neighbours") as raised:
        select(everything, scores, SelectionConfig(select="turns"), 0, run_config.runtime)
    assert raised.value.where == "selection.select"
    assert "gumbel" in raised.value.remedy


def test_a_run_may_weigh_rows_by_what_they_match(run_config: RunConfig) -> None:
    selection = run_config.selection.model_copy(update={"weigh": "proportional"})
    changes = {
        "scoring": ScoringConfig(scorer={"name": "matching", "dimension": 64}),
        "selection": selection,
    }
    matching = Chain(run_config.model_copy(update=changes))
    store = ArtifactStore(run_config.runtime.root)
    chosen = read_selection(store, matching.selection).to_pydict()
    assert 1 < len(chosen["score"]) <= 20
    assert min(chosen["score"]) > 0
    expected = np.array(chosen["score"]) / np.sum(chosen["score"])
    assert chosen["weight"] == pytest.approx(expected)
    assert np.ptp(chosen["weight"]) > 0.01
