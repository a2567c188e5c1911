"""A smaller backbone that scores for a larger one, once it was seen to rank candidates alike."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import spearmanr
from tokenizers import AddedToken
from transformers import AutoTokenizer

from albat_core.backbones import backbone_identity, check_smaller
from albat_core.backbones.config import BackboneConfig, SmallerBackbone
from albat_core.errors import BackboneError
from albat_core.records.agreement import agreement_notes
from albat_core.records.candidates import read_candidates
from albat_core.records.examples import Example
from albat_core.records.scores import SCORE_SCHEMA, SCORES, read_scores
from albat_core.records.scores import STAGE as SCORED
from albat_core.records.tables import write_table
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.stages.agree import draw_sample, measure_agreement
from albat_core.stages.report import PAGE
from albat_core.stages.score import ScoringConfig
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime
from flows.checks import find_mistakes
from flows.config import load_config
from tests.pictures import write_image_run
from tests.toys import rewrite, save_backbone, topic_rows, write_jsonl, write_run


@dataclass
class Pair:
    """The toy run, and a smaller backbone beside its own."""

    run: RunConfig
    smaller: Path

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.run.runtime.root)

    def chain(self, scorer: object = "advantage", **knobs: object) -> Chain:
        its = {"path": str(self.smaller), "sample": 40} | knobs
        scoring = ScoringConfig(scorer=scorer, smaller=its)
        return Chain(self.run.model_copy(update={"scoring": scoring}))

    def scored_by(self, chain: Chain) -> object:
        return self.store.manifest(chain.scores).inputs["backbone"]

    @property
    def identities(self) -> tuple[object, object]:
        other = SmallerBackbone(path=str(self.smaller)).of(self.run.backbone)
        own, its = (backbone_identity(b, self.run.runtime) for b in (self.run.backbone, other))
        assert own != its
        return own, its


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    smaller = save_backbone(folder / "smaller", width=16, seed=1)
    every = {"neighbours": 64}  # rows of both topics, so that there is something to agree on
    return Pair(load_config(str(write_run(folder, retrieval=every))), smaller)


def test_one_that_ranks_alike_scores_every_candidate_and_nothing_else(pair: Pair) -> None:
    own, other = pair.identities
    chain = pair.chain(least_agreement=0.01)
    assert pair.scored_by(chain) == other
    facts = pair.store.manifest(chain.scoring.agreement).facts
    assert facts["trusted"]
    assert facts["scored_by_smaller"]
    assert pair.store.manifest(chain.scores).rows == pair.store.manifest(chain.candidates).rows
    alone = Chain(
        pair.run.model_copy(
            update={"backbone": SmallerBackbone(path=str(pair.smaller)).of(pair.run.backbone)}
        )
    )
    assert chain.scoring.smaller_surrogate == alone.surrogate  # trained as its own run's
    assert pair.store.manifest(chain.surrogate).inputs["backbone"] == own
    for fold, surrogate in chain.folds:
        assert fold
        assert pair.store.manifest(surrogate).inputs["backbone"] == own
    assert pair.store.manifest(chain.estimate).inputs["backbone"] == own


def test_the_agreement_is_spearman_s_of_both_scores_of_a_drawn_sample(pair: Pair) -> None:
    chain = pair.chain()
    manifest = pair.store.manifest(chain.scoring.agreement)
    refs = [ArtifactRef(stage=SCORED, key=manifest.inputs[n]) for n in ("scores", "smaller")]
    own, other = (read_scores(pair.store, ref) for ref in refs)
    assert own["example_id"] == other["example_id"]
    every = read_candidates(pair.store, chain.candidates)["example_id"].to_pylist()
    drawn = own["example_id"].to_pylist()
    assert len(drawn) == manifest.rows == 40 < len(every)
    assert drawn == [name for name in every if name in set(drawn)] != every[:40]
    expected = spearmanr(own["score"].to_numpy(), other["score"].to_numpy()).statistic
    assert manifest.facts["agreement"] == pytest.approx(expected, abs=1e-6)
    low, high = manifest.facts["interval"]
    assert low < expected < high
    inputs = [pair.store.manifest(ref).inputs["backbone"] for ref in refs]
    assert inputs == list(pair.identities)


def test_one_that_ranks_otherwise_leaves_the_scores_to_the_backbone(pair: Pair) -> None:
    chain = pair.chain(least_agreement=0.999)
    assert not pair.store.manifest(chain.scoring.agreement).facts["trusted"]
    assert chain.scores == Chain(pair.run).scores
    caution = "It ranks otherwise, so the backbone scored all candidates itself"
    assert caution in (pair.store.folder(chain.report) / PAGE).read_text()


def test_one_that_ranks_otherwise_scores_all_the_same_where_that_is_asked_for(pair: Pair) -> None:
    chain = pair.chain(least_agreement=0.999, fall_back=False)
    assert pair.scored_by(chain) == pair.identities[1]
    facts = pair.store.manifest(chain.scoring.agreement).facts
    (note,) = agreement_notes([facts])
    assert "not surely by 0.999 (scoring.smaller.least_agreement)" in note
    assert "scores all the same" in note


def test_gradients_of_a_smaller_one_score_too(pair: Pair) -> None:
    chain = pair.chain({"name": "gradient", "dimension": 64, "checkpoints": 2}, fall_back=False)
    assert pair.scored_by(chain) == pair.identities[1]


def scores(store: ArtifactStore, values: list[float]) -> ArtifactRef:
    """An artifact with these scores."""

    def build(folder: Path) -> Built:
        rows = [
            {"example_id": f"{n}", "source": "s", "shard": "s", "row": n, "turn": 0, "score": value}
            for n, value in enumerate(values)
        ]
        write_table(pa.Table.from_pylist(rows, schema=SCORE_SCHEMA), folder / SCORES)
        return Built(rows=len(rows))

    return store.produce(SCORED, 1, {}, {"values": values}, build)


@pytest.mark.parametrize("correlation", [0.3, 0.9])
def test_the_interval_is_as_wide_as_theory_has_it_and_its_lower_end_decides(
    runtime: Runtime, correlation: float
) -> None:
    store, generator = ArtifactStore(runtime.root), np.random.default_rng(3)
    covariance = [[1, correlation], [correlation, 1]]
    first, second = generator.multivariate_normal([0, 0], covariance, size=500).T.tolist()
    refs = scores(store, first), scores(store, second)

    def facts(least: float) -> dict:
        smaller = SmallerBackbone(path="x", least_agreement=least)
        return store.manifest(measure_agreement(*refs, smaller, 0, runtime)).facts

    found = facts(0.5)
    value, (low, high) = found["agreement"], found["interval"]
    # Bonett and Wright 2000: the variance of Fisher's z of a rank correlation
    error = ((1 + value**2 / 2) / (500 - 3)) ** 0.5
    expected = np.tanh(np.arctanh(value) + np.array([-1.96, 1.96]) * error)
    assert [low, high] == pytest.approx(expected, abs=0.015)
    assert facts(low - 0.001)["trusted"]
    assert not facts(low + 0.001)["trusted"]  # though the value is above


def test_samples_are_drawn_by_the_seed(pair: Pair) -> None:
    chain = Chain(pair.run)
    smaller = SmallerBackbone(path=str(pair.smaller), sample=40)

    def drawn(seed: int) -> ArtifactRef:
        run = pair.run
        return draw_sample(chain.candidates, run.backbone, smaller, seed, run.runtime)

    assert drawn(0) == drawn(0)
    names = [read_candidates(pair.store, drawn(s))["example_id"].to_pylist() for s in (0, 1)]
    assert names[0] != names[1]
    few = smaller.model_copy(update={"sample": 10_000})
    every = draw_sample(chain.candidates, pair.run.backbone, few, 0, pair.run.runtime)
    assert read_candidates(pair.store, every) == read_candidates(pair.store, chain.candidates)


@pytest.fixture
def others(tmp_path: Path) -> Iterator[tuple[BackboneConfig, Path]]:
    own = BackboneConfig(path=str(save_backbone(tmp_path / "own")), max_length=64)
    yield own, save_backbone(tmp_path / "other", width=16)


def test_other_tokens_are_refused(others: tuple[BackboneConfig, Path]) -> None:
    own, folder = others
    other = own.model_copy(update={"path": str(folder)})
    text = Example("t", "d", "s", text="leaf root")
    chat = Example("c", "d", "s", messages=({"role": "assistant", "content": "leaf"},))
    check_smaller(own, other, [text, chat])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("</s>", "</s>\n")
    tokenizer.save_pretrained(folder)
    check_smaller(own, other, [text])
    with pytest.raises(BackboneError, match="tokens, got others of example c"):
        check_smaller(own, other, [text, chat])
    tokenizer.add_tokens([AddedToken("leafroot")])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BackboneError, match=r"its 400 tokens, got 401, 1 of them .*'leafroot'"):
        check_smaller(own, other)


def test_a_tokenizer_of_equal_vocabulary_that_begins_texts_otherwise_is_refused(
    others: tuple[BackboneConfig, Path],
) -> None:
    own, folder = others
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(BackboneError, match="got others of a text"):
        check_smaller(own, own.model_copy(update={"path": str(folder)}))


def test_the_run_refuses_other_tokens_before_it_trains(tmp_path: Path) -> None:
    smaller = save_backbone(tmp_path / "smaller", width=16)
    tokenizer = AutoTokenizer.from_pretrained(smaller)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(smaller)
    path = write_run(tmp_path, scoring={"scorer": "advantage", "smaller": {"path": "smaller"}})
    config = load_config(str(path))
    assert config.scoring.smaller.path == str(smaller)
    (mistake,) = find_mistakes(config)
    assert mistake.where.startswith("scoring.smaller: ")
    chain = Chain(config)
    with pytest.raises(BackboneError, match="'another'"):
        _ = chain.scores
    assert not list(Path(config.runtime.root).glob("adapter/*"))


def test_what_is_not_smaller_is_told_of(tmp_path: Path) -> None:
    path = write_run(tmp_path, scoring={"scorer": "advantage", "smaller": {"path": "other"}})
    for width, count in ((16, 0), (32, 1)):
        save_backbone(tmp_path / "other", width=width, seed=2)
        told: list[str] = []
        assert find_mistakes(load_config(str(path)), warn=told.append) == []
        assert len([note for note in told if "nothing is saved" in note]) == count
    scoring = {"scorer": "advantage", "smaller": {"path": "./nowhere"}}
    (mistake,) = find_mistakes(load_config(str(rewrite(path, {"scoring": scoring}))))
    assert mistake.where.startswith("scoring.smaller: ")
    assert "expected a model folder" in mistake.message


def test_pictures_have_no_smaller_backbone(tmp_path: Path) -> None:
    scoring = {"scorer": "advantage", "smaller": {"path": "backbone"}}
    (mistake,) = find_mistakes(load_config(str(write_image_run(tmp_path, scoring=scoring))))
    assert "this backbone makes pictures" in mistake.message


@pytest.mark.parametrize("scorer", ["nearest", "ngram", "random", "matching"])
def test_scorers_without_a_surrogate_s_score_of_a_row_take_no_smaller_backbone(
    pair: Pair, scorer: str
) -> None:
    scoring = {"scorer": scorer, "smaller": {"path": "smaller"}}
    with pytest.raises(ValueError, match=f"the scorer {scorer} gives rows no score"):
        RunConfig.model_validate(pair.run.model_dump() | {"scoring": scoring})
    unchecked = ScoringConfig(scorer=scorer, smaller={"path": str(pair.smaller)})
    chain = Chain(pair.run.model_copy(update={"scoring": unchecked}))
    assert chain.scoring.agreement is None


def test_selecting_again_goes_on_from_the_smaller_surrogate_and_from_its_scores_alone(
    tmp_path: Path,
) -> None:
    save_backbone(tmp_path / "smaller", width=16, seed=1)
    save_backbone(tmp_path / "another", width=16, seed=2)
    smaller = {"path": "smaller", "sample": 40, "fall_back": False}
    path = write_run(tmp_path, scoring={"scorer": "advantage", "smaller": smaller})
    first = Chain(load_config(str(path))).selected
    store = ArtifactStore(str(tmp_path / "artifacts"))
    rows = topic_rows("plants", 40, seed=1) + topic_rows("ships", 4, seed=7)
    write_jsonl(tmp_path / "adaptation.jsonl", rows)

    def again(its: dict[str, object]) -> tuple[bool, bool]:
        """Whether the surrogate goes on, and whether earlier scores are looked at."""
        scoring = {"scorer": "advantage", "smaller": its}
        chain = Chain(load_config(str(rewrite(path, {"scoring": scoring}))), previous=first)
        surrogate = chain.scoring.smaller_surrogate
        goes_on = surrogate is not None and "start" in store.manifest(surrogate).inputs
        return goes_on, "earlier" in store.manifest(chain.scores).inputs

    assert again(smaller) == (True, True)
    assert again(smaller | {"path": "another"}) == (False, False)
    assert again({}) == (False, False)  # by the backbone itself
