"""Selecting again after the adaptation data has changed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from albat_core.errors import ConfigError, InputError
from albat_core.measures.theory import Estimate
from albat_core.records.examples import Example
from albat_core.records.mixtures import moved_weight, read_mixture, weighted_rows
from albat_core.records.runs import ALBAT
from albat_core.records.scores import PART_STAGE, SCORES
from albat_core.records.selections import Selected, read_selection
from albat_core.records.splits import TRAIN, VALIDATION
from albat_core.records.tables import read_table
from albat_core.report.showing import read_changes
from albat_core.report.wording import told
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.runs.reselection import (
    Acted,
    Watches,
    basis,
    data_fingerprint,
    note_finished,
)
from albat_core.scorers import known
from albat_core.stages import estimate as estimate_stage
from albat_core.stages.compare import compare_selections
from albat_core.stages.estimate import estimate_worth
from albat_core.stages.score import ScoringConfig, score_candidates
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from flows.config import load_config
from tests.core.test_registry import weighted
from tests.toys import topic_rows, write_jsonl, write_run


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return load_config(str(write_run(tmp_path, mixture={"alpha": "auto"})))


def add_rows(run: RunConfig, count: int = 4) -> None:
    rows = topic_rows("plants", 40, seed=1) + topic_rows("ships", count, seed=7)
    write_jsonl(Path(run.adaptation[0].paths[0]), rows)


def test_the_fingerprint_follows_the_data_alone(run: RunConfig) -> None:
    before = data_fingerprint(run)
    assert data_fingerprint(run.model_copy(update={"seed": 5})) == before
    path = Path(run.adaptation[0].paths[0])
    content = path.read_bytes()
    path.touch()
    assert data_fingerprint(run) == before
    add_rows(run)
    changed = data_fingerprint(run)
    assert changed != before
    path.write_bytes(content)
    assert data_fingerprint(run) == before
    path.unlink()
    with pytest.raises(InputError):
        data_fingerprint(run)


def test_held_out_data_is_watched_too(run: RunConfig, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "heldout.jsonl", topic_rows("ships", 4, seed=3))
    source = run.adaptation[0].model_copy(update={"path": str(path)})
    both = run.model_copy(update={"heldout": (source,)})
    before = data_fingerprint(both)
    assert before != data_fingerprint(run)
    write_jsonl(path, topic_rows("ships", 6, seed=3))
    assert data_fingerprint(both) != before


def test_watches_are_kept_until_they_are_removed(run: RunConfig) -> None:
    watches = Watches(run.runtime.root)
    assert watches.names() == []
    other = run.model_copy(update={"name": "another"})
    watches.add(run)
    watches.add(other)
    watches.add(run)
    assert watches.names() == ["another", "toy"]
    assert [watches.config(name) for name in watches.names()] == [other, run]
    assert watches.acted("toy") is None
    assert watches.remove("toy")
    assert not watches.remove("toy")
    assert watches.names() == ["another"]


def test_a_run_with_other_settings_than_are_watched_is_told_of(
    run: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Watches(run.runtime.root).add(run)
    made = ArtifactRef(stage="mixture", key="a" * 16)
    selected = Selected(adaptation=made, surrogate=None, mixture=made)
    monkeypatch.chdir(tmp_path)
    runtime = run.runtime.model_copy(update={"workers": 5})
    alike = run.model_copy(update={"output": "runs", "runtime": runtime})
    note_finished(alike, "state", selected, selected)
    assert caplog.text == ""
    longer = run.finetune.model_copy(update={"steps": 13})
    other = run.model_copy(update={"finetune": longer, "refit": False})
    note_finished(other.model_copy(update={"name": "another"}), "state", selected, selected)
    assert caplog.text == ""
    note_finished(other, "state", selected, selected)
    assert "toy is watched with other settings (finetune, refit)" in caplog.text
    assert "`albat watch CONFIG` again" in caplog.text


def test_a_watch_takes_the_place_of_none_on_other_data(run: RunConfig) -> None:
    watches = Watches(run.runtime.root)
    watches.add(run)
    mine = run.adaptation[0]
    theirs = mine.model_copy(update={"path": "/elsewhere/theirs.jsonl"})
    with pytest.raises(ConfigError, match=r"'toy' is watched with .*adaptation\.jsonl") as caught:
        watches.add(run.model_copy(update={"adaptation": (theirs,)}))
    assert "another `name`" in caught.value.remedy
    assert watches.config("toy") == run
    more = run.model_copy(update={"seed": 9, "adaptation": (mine, theirs)})
    watches.add(more)
    assert watches.config("toy") == more
    place = Path(run.runtime.root, "watches", "toy", "watch.json")
    place.write_bytes(place.read_bytes()[:99])
    watches.add(run)  # which is the remedy
    assert watches.config("toy") == run


def test_what_another_version_noted_is_told_of(run: RunConfig) -> None:
    watches = Watches(run.runtime.root)
    watches.add(run)
    (place,) = Path(run.runtime.root).rglob("watch.json")
    noted = json.loads(place.read_text())
    del noted["sha256"]  # the other version's fits what it noted
    noted["mixture"]["rows"] = noted.pop("selection")["rows"]
    place.write_text(json.dumps(noted))
    with pytest.raises(ConfigError, match=r"mixture\.rows.*\n.*albat watch"):
        watches.config("toy")
    place.with_name("acted.json").write_text('{"fingerprint": "f", "selected": {"mixing": null}}')
    assert watches.acted("toy") is None  # so it is selected for anew


def test_only_what_depends_on_new_rows_is_computed_again(run: RunConfig) -> None:
    first = Chain(run)
    selected = first.selected
    watches = Watches(run.runtime.root)
    watches.set_acted(
        "toy",
        Acted(
            fingerprint=data_fingerprint(run),
            basis=basis(run),
            selected=selected,
            trained=selected,
        ),
    )
    add_rows(run)
    acted = watches.acted("toy")
    assert acted is not None
    again = Chain(run, previous=acted.selected)
    later = again.selected
    reused = {stage.label: stage.reused for stage in again.stages}
    assert reused["cut corpus"]
    assert reused["embed corpus"]
    assert reused["index"]
    assert not reused["retrieve"]
    store = ArtifactStore(run.runtime.root)
    assert len(selected.folds) == 2
    assert later.folds == selected.folds
    assert later.surrogate is not None
    assert selected.surrogate is not None
    assert store.manifest(later.adaptation).inputs["previous"] == selected.adaptation.key
    assert store.manifest(later.surrogate).inputs["start"] == selected.surrogate.key
    assert later.estimate is not None
    assert selected.estimate is not None
    assert store.manifest(later.estimate).inputs["earlier"] == selected.estimate.key
    passes = [store.manifest(ref).facts["passes"] for ref in (selected.estimate, later.estimate)]
    assert 0 < passes[1] < passes[0]
    own = {e.example_id for e in read_mixture(store, later.mixture).adaptation}
    before = {e.example_id for e in read_mixture(store, selected.mixture).adaptation}
    assert before < own
    changes = read_changes(
        store,
        compare_selections(selected, later, "toy", 0.1, run.runtime),
    )
    assert set(changes.adaptation.entered) == own - before
    assert changes.adaptation.left == ()
    assert changes.worth == (changes.moved >= 0.1)
    assert changes.alpha[0] == store.manifest(selected.mixture).facts["alpha"]
    for shown, chain, entered in (
        (changes.came, again, changes.backbone.entered),
        (changes.went, first, changes.backbone.left),
    ):
        rows = {r["example_id"]: r for r in read_selection(store, chain.selection).to_pylist()}
        texts = {
            e.example_id: e.text for e in read_mixture(store, chain.arms.mixture(ALBAT)).backbone
        }
        heaviest = sorted(entered, key=lambda n: (-rows[n]["weight"], -rows[n]["score"], n))
        assert [e.example_id for e in shown] == heaviest[:6]
        assert shown
        for example in shown:
            row = rows[example.example_id]
            assert (example.weight, example.score) == (row["weight"], row["score"])
            assert example.nearest_id == row["nearest_example_id"]
            assert example.text == texts[example.example_id]
    text = told(changes)
    counts = f"{len(before)} | 0 | {len(own - before)} | {len(own)}"
    assert f"| Adaptation rows | {counts} |" in text
    assert ("is worth it" in text) == changes.worth


def test_surrogates_are_trained_anew_where_most_rows_are(run: RunConfig) -> None:
    selected = Chain(run).selected
    add_rows(run, count=50)
    later = Chain(run, previous=selected)
    store = ArtifactStore(run.runtime.root)
    assert "start" not in store.manifest(later.surrogate).inputs
    assert later.folds != list(selected.folds)
    assert "earlier" not in store.manifest(later.estimate).inputs


def test_gradients_that_are_known_are_as_good_as_new_ones(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    selected = Chain(run).selected
    add_rows(run)
    later = Chain(run, previous=selected)
    c = run
    given = (
        later.selection,
        later.inputs.trained_on(),
        selected.folds,
        [],
        c.backbone,
        c.surrogate.adapter,
        c.estimate,
        c.seed,
        c.runtime,
    )
    known = later.estimate
    grown: list[float] = []
    true = estimate_stage.estimate_terms

    def noted(*args: Any, **named: float) -> Estimate:
        grown.append(named["more_rows"])
        return true(*args, **named)

    monkeypatch.setattr(estimate_stage, "estimate_terms", noted)
    alone = estimate_worth(*given)
    store = ArtifactStore(c.runtime.root)
    again = estimate_worth(*given, known)  # of all
    assert store.manifest(again).facts["passes"] == 0
    then = np.mean([store.manifest(split).facts[TRAIN]["rows"] for split, _ in selected.folds])
    now = store.manifest(later.inputs.trained_on()).facts[TRAIN]["rows"]
    assert grown == [now / then] * 2
    assert now > then
    told = [later.facts(ref) for ref in (later.estimate, alone)]
    assert told[0]["alpha_estimate"] == pytest.approx(told[1]["alpha_estimate"], abs=1e-4)
    assert told[0]["passes"] < told[1]["passes"]


@pytest.mark.parametrize("moved", ["in front", "another name"])
def test_what_surrogates_were_trained_on_is_known_where_names_have_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: str
) -> None:
    """Where no column names documents, they are named by file and row."""
    texts = [{"text": row["text"]} for row in topic_rows("plants", 40, seed=1)]

    def chain(name: str, rows: list[dict[str, str]], earlier: Selected | None = None) -> Chain:
        its = write_run(tmp_path, mixture={"alpha": "auto"}, adaptation=[{"path": name}])
        write_jsonl(tmp_path / name, rows)
        return Chain(load_config(str(its)), previous=earlier)

    selected = chain("own.jsonl", texts).selected
    compared: list[int] = []
    true = estimate_stage._beside

    def noted(trained: list[Example], own: Any, rows: list[Example], gradients: Any) -> Any:
        seen = {example.digest() for example in trained}

        def of(examples: list[Example]) -> Any:
            heldout = examples[: len(examples) - len(rows)]
            assert not [example for example in heldout if example.digest() in seen]
            compared.append(len(heldout))
            return gradients(examples)

        return true(trained, own, rows, of)

    monkeypatch.setattr(estimate_stage, "_beside", noted)
    new = [{"text": row["text"]} for row in topic_rows("ships", 5, seed=7)]
    name = "own.jsonl" if moved == "in front" else "other.jsonl"
    later = chain(name, new + texts, selected)
    assert later.folds == list(selected.folds)
    _ = later.estimate
    # those that validated, and of the new ones those that are not held out
    facts = [later.facts(split) for split, _ in selected.folds]
    now, then = later.facts(later.inputs.adaptation), facts[0]
    more = sum(now[role]["rows"] - then[role]["rows"] for role in (TRAIN, VALIDATION))
    assert more > 0
    assert compared[: len(facts)] == [its[VALIDATION]["rows"] + more for its in facts]


@pytest.mark.parametrize("alike", [True, False])
def test_scores_are_kept_where_both_surrogates_rank_alike(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    monkeypatch.setattr(known, "_SAMPLE", 8)
    scoring = run.scoring.model_copy(
        update={"rank_agreement": 0.01 if alike else 0.999999, "discount": "none"}
    )
    run = run.model_copy(update={"scoring": scoring})
    first = Chain(run)
    selected = first.selected
    add_rows(run, count=12)
    later = Chain(run, previous=selected)
    c, store = run, ArtifactStore(run.runtime.root)
    alone = score_candidates(
        later.candidates,
        later.surrogate,
        later.inputs.adaptation,
        [],
        c.backbone,
        scoring,
        c.seed,
        c.runtime,
    )
    told = later.facts(later.scores)
    tables = [
        read_table(store.folder(ref) / SCORES) for ref in (selected.scores, later.scores, alone)
    ]
    places = [[*zip(t["shard"].to_pylist(), t["row"].to_pylist(), strict=True)] for t in tables]
    old = dict(zip(places[0], tables[0]["score"].to_pylist(), strict=True))
    kept = told["earlier"]["kept"]
    scores, exact = (t["score"].to_numpy() for t in tables[1:])
    assert len(scores) == len(exact) > len(set(places[1]) & set(places[0])) > 8
    assert told["passes"] == pytest.approx(
        later.facts(alone)["passes"] * (1 - kept / len(exact)), rel=0.1
    )
    close = np.isclose(scores, exact, atol=1e-4)
    assert kept == (len(set(places[1]) & set(places[0])) - 8 if alike else 0)
    assert close.sum() >= len(scores) - kept
    if not alike:
        return
    changes = np.array([s - old[p] for p, s in zip(places[1], scores, strict=True) if p in old])
    by_mean = np.abs(changes - np.median(changes)) < 1e-5
    assert by_mean.sum() == kept
    assert abs(np.median(changes)) > 1e-3
    assert np.median(changes) == pytest.approx(changes[~by_mean].mean(), abs=1e-5)
    losses = [tables[1][name].to_numpy() for name in ("loss_backbone", "loss_surrogate")]
    np.testing.assert_allclose(np.subtract(*losses), scores, atol=1e-5)


def test_blocks_are_scored_side_by_side_again_where_no_score_is_kept(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("albat_core.records.candidates._BLOCK", 20)
    scoring = {"scorer": {"name": "gradient", "dimension": 64, "checkpoints": 2}}
    run = run.model_copy(update={"scoring": ScoringConfig.model_validate(scoring)})
    selected = Chain(run).selected
    store = ArtifactStore(run.runtime.root)
    first = [ref for ref in store.all_refs() if ref.stage == PART_STAGE]
    add_rows(run)
    rows = store.manifest(Chain(run, previous=selected).scores).rows
    made = {ref for ref in store.all_refs() if ref.stage == PART_STAGE} - {*first}
    assert len(made) == -(-rows // 20) > 1


def test_scores_found_in_another_way_are_not_kept(run: RunConfig) -> None:
    selected = Chain(run).selected
    add_rows(run)
    other = run.scoring.model_copy(update={"batch_tokens": 64})
    later = Chain(run.model_copy(update={"scoring": other}), previous=selected)
    assert "earlier" not in later.facts(later.scores)


def test_nothing_is_trained_for_what_needs_no_surrogate(run: RunConfig) -> None:
    changes: dict[str, object] = {
        "scoring": ScoringConfig(scorer="nearest"),
        "mixture": run.mixture.model_copy(update={"alpha": 0.5}),
    }
    chain = Chain(run.model_copy(update=changes))
    selected = chain.selected
    assert selected.adaptation == chain.inputs.adaptation
    assert selected.surrogate is None
    assert selected.estimate is None
    assert selected.folds == ()


def test_settings_that_an_earlier_selection_must_share(run: RunConfig) -> None:
    assert basis(run) == basis(run.model_copy(update={"name": "other", "baselines": ()}))
    assert basis(run) != basis(run.model_copy(update={"seed": 1}))


def test_weight_that_moved() -> None:
    first = weighted("t1 u2", "c1 d2")
    assert moved_weight(first, first) == 0
    assert moved_weight(first, weighted("t1 u2", "c1 e3")) == 0.25
    assert moved_weight(first, weighted("t1 u2", "c1 d3")) == 0.25  # another text under its id
    assert moved_weight(first, weighted("t1 u2", "x1 y2")) == 0  # the same under other ids
    assert moved_weight(first, weighted("v3", "f4")) == 1
    assert moved_weight(weighted("a1", "a2"), weighted("a1", "a3")) == 0.5  # ids are of a role


def test_rows_rewritten_under_their_ids_are_worth_a_training(run: RunConfig) -> None:
    store = ArtifactStore(run.runtime.root)
    run = run.model_copy(update={"mixture": run.mixture.model_copy(update={"alpha": 0.05})})
    first = Chain(run).selected
    before = weighted_rows(store, first.mixture)
    path = Path(run.adaptation[0].paths[0])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [row["text"] for row in topic_rows("ships", 20, seed=7)]
    write_jsonl(path, [row | {"text": text} for row, text in zip(rows, texts)] + rows[20:])  # noqa: B905
    assert sum(row.weight for row in before) == pytest.approx(1)
    later = Chain(run, previous=first, trained=first)
    after = weighted_rows(store, later.selected.mixture)
    assert {row.example_id for row in before} & {row.example_id for row in after}
    assert moved_weight(before, after) > 0.3
    assert store.manifest(later.changes).facts["worth"]
