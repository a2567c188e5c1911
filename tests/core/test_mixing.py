"""The mixing weight, the verdict, and what they are computed from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from albat_core.backbones import kind_of
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.base import FixedNoise
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.benchmark.arms import with_settings
from albat_core.measures.gradients import AdapterGradients
from albat_core.measures.theory import Estimate, FoldGradients, Terms, estimate_terms
from albat_core.records.examples import Example
from albat_core.records.indexes import STAGE as INDEX
from albat_core.records.mixtures import read_mixture
from albat_core.records.runs import ALBAT, RANDOM
from albat_core.records.splits import TEST, TRAIN, VALIDATION, read_role
from albat_core.report.verdict import verdict, verdict_beforehand
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.runs.quick_look import quick_look
from albat_core.search.config import IndexConfig
from albat_core.stages import estimate as estimate_stage
from albat_core.stages.estimate import (
    DOUBT,
    LEAST,
    _at_start,
    _beside,
    _facts,
    draw_alike,
    estimate_worth,
)
from albat_core.store.artifacts import ArtifactStore
from tests.toys import topic_rows, write_jsonl


@pytest.fixture(scope="module")
def computed(run_config: RunConfig) -> Chain:
    """The toy run with a computed mixing weight: half of its corpus is of the target's topic."""
    mixture = run_config.mixture.model_copy(update={"alpha": "auto"})
    return Chain(run_config.model_copy(update={"mixture": mixture}))


def test_surrogates_never_saw_what_they_are_looked_at_with(
    computed: Chain, store: ArtifactStore
) -> None:
    assert len(computed.folds) == 2
    validated = []
    for adaptation, surrogate in computed.folds:
        roles = {
            role: {e.document for e in read_role(store, adaptation, role)}
            for role in (TRAIN, VALIDATION, TEST)
        }
        assert not roles[TRAIN] & roles[VALIDATION]
        mixture = store.manifest(surrogate).inputs["mixture"]
        trained = next(read_mixture(store, ref) for ref in store.all_refs() if ref.key == mixture)
        assert {e.document for e in trained.adaptation} == roles[TRAIN]
        validated.append(roles[VALIDATION])
    assert not validated[0] & validated[1]


def test_alpha_goes_into_every_mixture(computed: Chain, store: ArtifactStore) -> None:
    facts = computed.facts(computed.estimate)
    assert 0 < facts["alpha"] <= kind_of(computed.config.backbone).highest_alpha
    low, high = facts["alpha_interval"]
    assert low <= facts["alpha_estimate"] <= high
    assert facts["alpha_estimate"] == pytest.approx(
        facts["target_variance"]
        / (facts["target_variance"] + facts["corpus_variance"] + facts["bias"])
    )
    for arm in (ALBAT, RANDOM):
        assert read_mixture(store, computed.arms.mixture(arm)).alpha == facts["alpha"]


def test_a_selection_of_another_topic_is_worth_less(
    computed: Chain, store: ArtifactStore, run_config: RunConfig
) -> None:
    c = run_config

    def worth(chain: Chain) -> float:
        ref = estimate_worth(
            chain.selection,
            computed.inputs.adaptation,
            computed.folds,
            [],
            c.backbone,
            c.surrogate.adapter,
            c.estimate,
            c.seed,
            c.runtime,
        )
        return float(store.manifest(ref).facts["alpha_estimate"])

    corpus = c.corpus[0].path
    assert isinstance(corpus, str)
    alphas = {}
    for topic in ("plants", "ships"):
        source = c.corpus[0].model_copy(update={"path": corpus.replace("*", topic)})
        alphas[topic] = worth(Chain(c.model_copy(update={"corpus": (source,)})))
    assert alphas["plants"] > alphas["ships"] + 0.1


@pytest.mark.parametrize("at", ["surrogates", "start"])
@pytest.mark.parametrize("scorer", ["gradient", "matching", "nearest"])
def test_documents_that_chose_rows_do_not_tell_what_these_are_worth(
    computed: Chain,
    store: ArtifactStore,
    monkeypatch: pytest.MonkeyPatch,
    scorer: str,
    at: str,
) -> None:
    settings = {} if scorer == "nearest" else {"dimension": 64}
    c = RunConfig.model_validate(
        computed.config.model_dump()
        | {"scoring": {"scorer": {"name": scorer} | settings}}
        | {"estimate": computed.config.estimate.model_dump() | {"at": at, "damping": 9.0}}
    )
    heldout: set[str] = set()

    def listed(folds: Sequence[FoldGradients], *rest: Any, **named: Any) -> Estimate:
        heldout.update(str(name) for fold in folds for name in fold.documents)
        assert all(len(fold.documents) for fold in folds)  # one without tells nothing
        return estimate_terms(folds, *rest, **named)

    monkeypatch.setattr(estimate_stage, "estimate_terms", listed)
    chain = Chain(c)
    assert not chain.estimate.reused
    documents = {
        role: {e.document for e in read_role(store, chain.inputs.adaptation, role)}
        for role in (TRAIN, VALIDATION)
    }
    assert heldout
    if scorer == "nearest":
        assert heldout >= documents[VALIDATION]
    else:
        assert not heldout & documents[VALIDATION]
        assert heldout <= documents[TRAIN]


def test_one_surrogate_does_not_tell_what_its_own_documents_chose(run_config: RunConfig) -> None:
    wanted = run_config.model_dump() | {"estimate": {"folds": 1}}
    wanted["mixture"] = wanted["mixture"] | {"alpha": "auto"}
    assert RunConfig.model_validate(wanted).estimate.one_surrogate
    wanted["scoring"] = {"scorer": {"name": "gradient", "dimension": 64}}
    with pytest.raises(ValidationError, match="gradient chooses rows by the documents that valid"):
        RunConfig.model_validate(wanted)
    RunConfig.model_validate(wanted | {"estimate": {"folds": 1, "at": "start"}})


def test_gradients_taken_fold_by_fold_are_those_of_one_task(
    computed: Chain, store: ArtifactStore, run_config: RunConfig, tmp_path: Path
) -> None:
    c = computed.config
    parts = next(stage.refs for stage in computed.stages if stage.label == "take gradients")
    assert len(set(parts)) == len(computed.folds) == 2
    for stage in ("selection", "split", "adapter", "shards"):
        (tmp_path / stage).symlink_to(Path(store.root) / stage)
    alone = estimate_worth(
        computed.selection,
        computed.inputs.trained_on(),
        computed.folds,
        [],
        c.backbone,
        c.surrogate.adapter,
        c.estimate,
        c.seed,
        c.runtime.model_copy(update={"root": str(tmp_path)}),
    )
    assert alone == computed.estimate
    one, several = ArtifactStore(str(tmp_path)).manifest(alone), store.manifest(computed.estimate)
    assert (one.facts, one.files) == (several.facts, several.files)


def test_the_same_run_gives_the_same_weight(computed: Chain, run_config: RunConfig) -> None:
    again = Chain(computed.config)
    assert again.estimate.key == computed.estimate.key
    assert again.estimate.reused
    more = run_config.estimate.model_copy(update={"stands_for": 10.0})
    larger = Chain(computed.config.model_copy(update={"estimate": more}))
    one, ten = (chain.facts(chain.estimate) for chain in (computed, larger))
    assert ten["corpus_variance"] == pytest.approx(one["corpus_variance"] / 10)


def test_a_configured_weight_needs_no_further_surrogates(
    run_config: RunConfig, store: ArtifactStore
) -> None:
    chain = Chain(run_config)
    assert read_mixture(store, chain.arms.mixture(ALBAT)).alpha == run_config.mixture.alpha
    assert not [stage for stage in chain.stages if "fold" in stage.label]


FACTS = {
    "alpha": 0.52,
    "alpha_estimate": 0.52,
    "alpha_interval": [0.41, 0.6],
    "multiplier": 3.12,
    "multiplier_interval": [2.2, float("inf")],
    "ended_early": False,
}


def test_the_verdict_in_words() -> None:
    assert verdict(FACTS) == (
        "Likely to pay: worth 3.1 times your data (95% interval 2.2 to over 100), mixed with "
        "alpha = 0.52 (95% interval 0.41 to 0.60)."
    )
    unclear = FACTS | {"multiplier": 1.3, "multiplier_interval": [0.8, 1.9]}
    assert verdict(unclear) == (
        "Unclear whether it pays: worth 1.3 times your data (95% interval 0.8 to 1.9), mixed with "
        "alpha = 0.52 (95% interval 0.41 to 0.60). Below 1 it costs."
    )
    assert verdict(FACTS | {"ended_early": True}) == (
        "Unclear whether it pays: adaptation data alone was still learned from when its steps "
        "ended, so more steps come first. For a training that is done: worth 3.1 times your data "
        "(95% interval 2.2 to over 100), mixed with alpha = 0.52 (95% interval 0.41 to 0.60)."
    )
    most = FACTS | {"alpha": 0.9, "alpha_estimate": 0.97, "alpha_interval": [0.94, 1.0]}
    assert verdict(most) == (
        "Likely to pay: worth 3.1 times your data (95% interval 2.2 to over 100), mixed with "
        "alpha = 0.90, the most that is mixed (the best is 0.97, 95% interval 0.94 to 1.00)."
    )
    nothing = FACTS | {"alpha": 0.0, "alpha_estimate": 0.02, "alpha_interval": [0.0, 0.08]}
    assert verdict(nothing) == (
        "Unlikely to pay, do not mix: the best alpha is 0.02 (95% interval 0.00 to 0.08)."
    )


def test_a_look_beforehand_says_a_word_and_no_figure() -> None:
    for changed, word in (
        ({}, "Likely to pay."),
        ({"ended_early": True}, "Unclear whether it pays."),
        ({"alpha": 0.0}, "Unlikely to pay."),
    ):
        said = verdict_beforehand(FACTS | changed)
        assert said.startswith(word)
        assert not any(letter.isdigit() for letter in said)


def test_a_quick_look_reaches_a_verdict_with_less(computed: Chain) -> None:
    config = computed.config.model_copy(
        update={"selection": computed.config.selection.model_copy(update={"rows": 200})}
    )
    quick = quick_look(config)
    assert quick.selection.rows == 20
    assert quick.estimate.stands_for == 10
    assert quick.corpus[0].share == pytest.approx(config.corpus[0].share / 10)
    chain = Chain(quick)
    facts = chain.facts(chain.estimate)
    assert np.isfinite(facts["alpha_estimate"])
    assert not [stage for stage in chain.stages if stage.label.startswith("fine-tune")]


def test_a_quick_look_takes_all_of_a_source_of_few_documents(
    computed: Chain, tmp_path: Path
) -> None:
    rows = topic_rows("plants", 60, per_document=12)  # five novels
    novels = computed.config.corpus[0].model_copy(
        update={"path": str(write_jsonl(tmp_path / "novels.jsonl", rows)), "share": 0.9}
    )
    both = (novels, *computed.config.corpus)
    few, many = quick_look(computed.config.model_copy(update={"corpus": both})).corpus
    assert few == novels
    assert many.share == pytest.approx(both[1].share / 10)


@pytest.mark.parametrize(("rows", "taken"), [(4000, 400), (50, 16), (8, 8)])
def test_a_quick_look_stands_for_as_many_rows_as_the_run_selects(
    computed: Chain, rows: int, taken: int
) -> None:
    config = with_settings(computed.config, selection={"rows": rows})
    quick = quick_look(config)
    assert quick.selection.rows == quick.retrieval.candidates == taken
    assert quick.estimate.stands_for * taken == rows
    # of rows that the backbone makes there is no tenth
    alone = quick_look(config.model_copy(update={"corpus": ()}))
    assert (alone.selection.rows, alone.estimate.stands_for) == (rows, 1)


def test_a_quick_look_leaves_a_run_the_index_that_it_grows(
    computed: Chain, store: ArtifactStore
) -> None:
    growing = computed.config.model_copy(update={"index": IndexConfig(grow=True)})
    its = Chain(growing).index
    assert Chain(quick_look(growing)).index != its
    assert store.latest(INDEX, growing.name) == its


def test_parts_of_the_documents_are_held_out_in_turn_at_the_start(
    computed: Chain, store: ArtifactStore, backbone: LanguageBackbone
) -> None:
    backbone.attach_adapter(AdapterConfig(rank=4), seed=0)
    gradients = AdapterGradients(backbone, 1000, FixedNoise(), 32)
    own = read_role(store, computed.inputs.adaptation, TRAIN)
    rows = read_role(store, computed.inputs.adaptation, VALIDATION)
    alone = gradients.of(own)
    of_document = {e.document: g for e, g in zip(own, alone, strict=True)}
    folds = _at_start(gradients, own, rows, seed=0)
    assert 1 < len(folds) <= 8
    assert sum(len(fold.heldout) for fold in folds) == len(own)
    for fold in folds:
        others = [g for e, g in zip(own, alone, strict=True) if e.document not in fold.documents]
        assert 0 < len(others) == len(own) - len(fold.heldout)
        assert fold.trained is not None
        np.testing.assert_allclose(fold.trained, others, atol=1e-5)
        for document, found in zip(fold.documents[-1:], fold.heldout[-1:], strict=True):
            np.testing.assert_allclose(found, of_document[document], atol=1e-5)


def test_rows_are_drawn_by_their_weights_and_alike_from_similar_ones() -> None:
    names = [f"row {n}" for n in range(6)]
    weights = np.array([0.4, 0.3, 0.2, 0.1, 0.0, 0.0])
    drawn = draw_alike(names, weights, 20_000, seed=0)
    shares = np.bincount(drawn, minlength=6) / len(drawn)
    np.testing.assert_allclose(shares, weights, atol=0.015)
    # another table that a row left and one entered: only draws of these differ
    later = draw_alike([*names[1:4], "new"], np.array([0.3, 0.2, 0.1, 0.1]), 20_000, seed=0)
    before = np.array(names)[drawn]
    after = np.array([*names[1:4], "new"])[later]
    stays = before != names[0]
    assert (after[stays & (before != after)] == "new").all()
    assert 0.5 < (after == before).mean() < 0.6
    assert (draw_alike(names, weights, 50, seed=1) != drawn[:50]).any()


@pytest.mark.parametrize(("kind", "most"), [("language", 0.9), ("diffusion", 0.5)])
def test_the_adaptation_set_keeps_a_part_of_the_objective(kind: str, most: float) -> None:
    highest = kind_of(BackboneConfig(kind=kind, path="somewhere")).highest_alpha
    for estimate, alpha in ((0.97, most), (0.4, 0.4), (LEAST / 2, 0.0)):
        terms = Terms(target_variance=estimate, corpus_variance=0.0, bias=1 - estimate)
        facts = _facts(Estimate(terms, (0.0, 1.0), (1.0, 9.0)), highest)
        assert facts["alpha"] == pytest.approx(alpha)
        assert facts["alpha_estimate"] == pytest.approx(estimate)


def test_what_is_said_holds_what_the_theory_is_off_by(
    computed: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    surer: list[Estimate] = []
    true = estimate_stage.estimate_terms

    def noted(*args: Any, **named: float) -> Estimate:
        surer.append(true(*args, **named | {"doubt": 0.0}))
        return true(*args, **named)

    monkeypatch.setattr(estimate_stage, "estimate_terms", noted)
    widths = []
    for at in ("surrogates", "start"):
        changed = computed.config.estimate.model_copy(update={"at": at, "rows": 33})
        chain = Chain(computed.config.model_copy(update={"estimate": changed}))
        low, high = chain.facts(chain.estimate)["alpha_interval"]
        assert low < surer[-1].alpha[0]
        assert high > surer[-1].alpha[1]
        widths.append(np.log(high / (1 - high)) - np.log(low / (1 - low)))
        assert widths[-1] > 2 * 1.96 * DOUBT[at] * 0.9
    assert DOUBT["start"] > DOUBT["surrogates"]


def test_documents_that_an_adapter_was_trained_on_are_not_held_out(
    computed: Chain, store: ArtifactStore
) -> None:
    own = [
        e
        for role in (TRAIN, VALIDATION)
        for e in read_role(store, computed.inputs.adaptation, role)
    ]
    assert computed.folds
    for split, _ in computed.folds:
        trained = read_role(store, split, TRAIN)
        asked: list[str] = []

        def gradients(examples: Sequence[Example], asked: list[str] = asked) -> np.ndarray:
            asked += [example.example_id for example in examples]
            return np.zeros((len(examples), 2))

        fold = _beside(trained, own, own[:3], gradients)
        others = [e for e in own if e.document not in {t.document for t in trained}]
        assert others
        assert fold.documents.tolist() == [e.document for e in others]
        assert asked == [e.example_id for e in [*others, *own[:3]]]
        assert len(fold.corpus) == 3
