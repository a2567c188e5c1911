"""Scores of candidates."""

from pathlib import Path

import numpy as np
import pytest

from albat_core.backbones import open_backbone
from albat_core.backbones.base import adapted
from albat_core.errors import ConfigError
from albat_core.measures.discounts import discounted
from albat_core.records.candidates import CANDIDATES
from albat_core.records.scores import PART_STAGE, SCORES
from albat_core.records.shards import read_examples
from albat_core.records.tables import read_table
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.scorers import SCORERS
from albat_core.stages.retrieve import RetrievalConfig
from albat_core.stages.score import ScoringConfig, score_candidates, score_part
from albat_core.stages.split import split_adaptation
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.stage import Runtime

OF_GRADIENTS = ("gradient", "matching")


def test_advantage_is_what_the_surrogate_gains_per_token(
    chain: Chain, store: ArtifactStore, run_config: RunConfig
) -> None:
    table = read_table(store.folder(chain.scores) / SCORES).to_pydict()
    examples = read_examples(store, table["shard"], table["row"])
    losses = []
    for adapter in (None, store.folder(chain.surrogate)):
        with (
            open_backbone(run_config.backbone, run_config.runtime) as backbone,
            adapted(backbone, adapter) as opened,
        ):
            one_by_one = [opened.losses(opened.encode([e])) for e in examples]
            losses.append([float(one.mean.detach()) for one in one_by_one])
    np.testing.assert_allclose(table["loss_backbone"], losses[0], atol=1e-4)
    np.testing.assert_allclose(table["loss_surrogate"], losses[1], atol=1e-4)
    measured, errors = np.subtract(*losses), np.array(table["score_error"])
    np.testing.assert_allclose(table["score"], discounted(measured, errors, "shrinkage"), atol=1e-4)
    assert (np.abs(table["score"] - measured) > 1e-3).any()
    assert np.std(table["score"]) > 1e-3


def test_candidates_of_the_target_s_topic_score_higher(
    store: ArtifactStore, run_config: RunConfig
) -> None:
    every_row = run_config.retrieval.model_copy(update={"neighbours": 64})
    chain = Chain(run_config.model_copy(update={"retrieval": every_row}))
    table = read_table(store.folder(chain.scores) / SCORES).to_pydict()
    by_topic: dict[str, list[float]] = {}
    for name, score in zip(table["example_id"], table["score"], strict=True):
        by_topic.setdefault(name.partition("-")[0], []).append(score)
    assert {topic: len(scores) for topic, scores in by_topic.items()} == {"plants": 60, "ships": 60}
    assert np.mean(by_topic["plants"]) > np.mean(by_topic["ships"]) + np.std(by_topic["ships"])


@pytest.mark.parametrize("scorer", ["advantage", "gradient", "matching"])
def test_blocks_scored_side_by_side_have_the_scores_of_all_at_once(
    store: ArtifactStore,
    run_config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scorer: str,
) -> None:
    whole = scored_by(run_config, scorer)
    all_at_once = read_table(store.folder(whole.scores) / SCORES)
    monkeypatch.setattr("albat_core.records.candidates._BLOCK", 20)
    parts = Chain(
        whole.config.model_copy(update={"runtime": Runtime(root=str(tmp_path), device="cpu")})
    )
    table = read_table(ArtifactStore(str(tmp_path)).folder(parts.scores) / SCORES)
    assert table.num_rows > 40
    assert table["example_id"] == all_at_once["example_id"]
    np.testing.assert_allclose(table["score"], all_at_once["score"], rtol=1e-4, atol=1e-5)
    made = [ref for ref in ArtifactStore(str(tmp_path)).all_refs() if ref.stage == PART_STAGE]
    assert len(made) == (0 if scorer == "matching" else -(-table.num_rows // 20))
    assert parts.scores.key == whole.scores.key


def test_what_a_block_measured_is_known_whatever_would_score_beside(
    chain: Chain, run_config: RunConfig
) -> None:
    """A smaller backbone that was not trusted leaves the same work to do."""
    smaller = {"path": "another"}
    alone, beside = (
        score_part(
            chain.candidates,
            0,
            chain.surrogate,
            chain.inputs.adaptation,
            [],
            run_config.backbone,
            config,
            0,
            run_config.runtime,
            "block 1",
        )
        for config in (ScoringConfig(), ScoringConfig.model_validate({"smaller": smaller}))
    )
    assert alone == beside


def test_steps_that_did_not_suffice_are_told_where_validation_rows_choose(
    run_config: RunConfig,
) -> None:
    """The run's own surrogate is no fold there: what it has not seen chose the rows."""
    auto = run_config.mixture.model_copy(update={"alpha": "auto"})
    chain = scored_by(run_config, "gradient", mixture=auto)
    assert chain.facts(chain.surrogate)["best_step"] == chain.config.surrogate.steps
    assert chain.facts(chain.estimate)["ended_early"]


def test_nearest_scores_by_similarity(
    chain: Chain, store: ArtifactStore, run_config: RunConfig
) -> None:
    ref = score_candidates(
        chain.candidates,
        chain.surrogate,
        chain.inputs.adaptation,
        [],
        run_config.backbone,
        ScoringConfig(scorer="nearest"),
        0,
        run_config.runtime,
    )
    table = read_table(store.folder(ref) / SCORES)
    assert table["score"].to_pylist() == pytest.approx(table["similarity"].to_pylist())
    assert table["loss_backbone"].null_count == table.num_rows


def small(scorer: str, **settings: object) -> dict[str, object]:
    """Settings of a scorer that are small where it has any of these."""
    wanted = {"dimension": 64, "checkpoints": 2} | settings
    its = SCORERS[scorer].model_fields
    return {"name": scorer} | {name: value for name, value in wanted.items() if name in its}


def scored_by(run: RunConfig, scorer: str, **changes: object) -> Chain:
    """Stages of the toy run with another scorer."""
    scoring = ScoringConfig(scorer=small(scorer))
    return Chain(run.model_copy(update={"scoring": scoring} | changes))


@pytest.mark.parametrize("scorer", SCORERS)
def test_every_scorer_gives_finite_scores_of_its_range(
    store: ArtifactStore, run_config: RunConfig, scorer: str
) -> None:
    chain = scored_by(run_config, scorer)
    table = read_table(store.folder(chain.scores) / SCORES)
    candidates = read_table(store.folder(chain.candidates) / CANDIDATES)
    assert table["example_id"].to_pylist() == candidates["example_id"].to_pylist()
    scores = table["score"].to_numpy()
    assert np.isfinite(scores).all()
    assert np.std(scores) > 1e-3
    everything = (-np.inf, np.inf)
    ranges = {"nearest": (-1, 1), "gradient": (-1, 1), "matching": (0, len(scores))}
    low, high = (ranges | {"random": (0, 1)}).get(scorer, everything)
    assert low <= scores.min() < scores.max() <= high
    facts = store.manifest(chain.scores).facts
    assert facts["mean"] == pytest.approx(scores.mean(), abs=1e-6)
    assert facts["positive"] == pytest.approx((scores > 0).mean())
    if scorer == "matching":
        assert scores.mean() == pytest.approx(1, abs=1e-5)
    if scorer == "random":
        assert scores.mean() == pytest.approx(0.5, abs=4 * (1 / 12 / len(scores)) ** 0.5)


class Scoring:
    """Scores the toy run's candidates again, below a root of the test's own."""

    def __init__(self, chain: Chain, run: RunConfig, root: Path) -> None:
        self._chain, self._run = chain, run
        self._inputs = (chain.candidates, chain.surrogate)
        root.mkdir()
        for stage in ("shards", "candidates", "adapter", "split"):
            (root / stage).symlink_to(Path(run.runtime.root) / stage)
        self._runtime = Runtime(root=str(root), device="cpu")
        self.store = ArtifactStore(str(root))

    def score(self, scorer: str, seed: int = 0, fold: int = 0, **settings: object) -> ArtifactRef:
        run, runtime = self._run, self._run.runtime
        adaptation = split_adaptation(
            self._chain.inputs.own, [], run.split, run.seed, runtime, fold
        )
        scoring = ScoringConfig(scorer=small(scorer, **settings))
        return score_candidates(
            *self._inputs, adaptation, [], run.backbone, scoring, seed, self._runtime
        )


@pytest.fixture
def scoring(run_config: RunConfig, tmp_path: Path) -> Scoring:
    chain = scored_by(run_config, "gradient")
    return Scoring(chain, run_config, tmp_path / "other")


@pytest.mark.parametrize("scorer", SCORERS)
def test_equal_inputs_give_the_same_scores_bit_for_bit(
    scoring: Scoring, store: ArtifactStore, run_config: RunConfig, tmp_path: Path, scorer: str
) -> None:
    chain = scored_by(run_config, "gradient")
    first = scoring.score(scorer)
    assert not first.reused
    again = scoring.score(scorer)
    assert again == first
    assert again.reused
    other = Scoring(chain, run_config, tmp_path / "another")
    second = other.score(scorer)
    assert second == first
    assert not second.reused
    assert other.store.manifest(second).files == scoring.store.manifest(first).files


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_scorer_s_scores_are_named_by_what_it_reads(scoring: Scoring, scorer: str) -> None:
    first = scoring.score(scorer)
    changed = {
        "dimension": scoring.score(scorer, dimension=32) != first,
        "damping": scoring.score(scorer, damping=1.0) != first,
        "seed": scoring.score(scorer, seed=1) != first,
        "rows": scoring.score(scorer, fold=1) != first,
    }
    assert changed["dimension"] == (scorer in OF_GRADIENTS)
    assert changed["damping"] == (scorer == "matching")
    assert changed["seed"] == (scorer == "random")
    assert changed["rows"] == (scorer in ("ngram", *OF_GRADIENTS))


def test_random_scores_are_those_of_the_run_s_seed(scoring: Scoring) -> None:
    def drawn(seed: int) -> list[float]:
        ref = scoring.score("random", seed)
        return list(read_table(scoring.store.folder(ref) / SCORES)["score"].to_pylist())

    first, second = drawn(1), drawn(2)
    assert len(set(first)) == len(first)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.5


def test_candidates_that_are_near_to_nothing_have_no_similarity_to_score(
    run_config: RunConfig,
) -> None:
    chain = scored_by(run_config, "nearest", retrieval=RetrievalConfig(pool="corpus"))
    with pytest.raises(ConfigError, match="expected candidates near") as raised:
        _ = chain.scores
    assert raised.value.where == "scoring.scorer"
    assert "neighbours" in raised.value.remedy


@pytest.mark.parametrize("scorer", ["advantage", "ngram", "gradient", "matching", "random"])
def test_the_whole_corpus_may_be_scored(
    store: ArtifactStore, run_config: RunConfig, scorer: str
) -> None:
    chain = scored_by(run_config, scorer, retrieval=RetrievalConfig(pool="corpus"))
    table = read_table(store.folder(chain.scores) / SCORES)
    assert table.num_rows == store.manifest(chain.candidates).rows > 100
    scores = table["score"].to_numpy()
    plants = np.array([name.startswith("plants") for name in table["example_id"].to_pylist()])
    ahead = scores[plants].mean() - scores[~plants].mean()
    error = scores.std() * (1 / plants.sum() + 1 / (~plants).sum()) ** 0.5
    if scorer == "random":
        assert abs(ahead) < 4 * error
    else:
        assert ahead > 4 * error
