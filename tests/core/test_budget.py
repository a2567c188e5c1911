"""Mixing never takes from adaptation data: how long trainings are, and when nothing is mixed in."""

from pathlib import Path

import pytest

from albat_core.records.runs import ADAPTATION_ONLY, ALBAT, RANDOM
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.store.artifacts import ArtifactStore
from albat_core.training.config import FinetuneConfig, continued, in_steps, stretched
from flows.config import load_config
from tests.toys import topic_rows, write_jsonl, write_run


@pytest.mark.parametrize(
    ("reached", "alpha", "steps"),
    [
        (1.0, 0.0, 100),
        (1.0, 0.2, 125),  # all of the steps count, and a fifth of them goes to the corpus
        (0.5, 0.2, 100),  # half were enough, and there are more than that
        (0.5, 0.6, 125),
        (1.0, 0.9, 200),  # no more than twice
        (0.0, 0.9, 100),
    ],
)
def test_a_mixture_has_as_many_steps_as_adaptation_rows_need(
    reached: float, alpha: float, steps: int
) -> None:
    assert stretched(FinetuneConfig(steps=100), reached, alpha).steps == steps
    epochs = stretched(FinetuneConfig(epochs=3.0), reached, alpha).epochs
    assert epochs == pytest.approx(3 * steps / 100)


def test_a_length_in_epochs_is_counted_in_steps() -> None:
    config = FinetuneConfig(epochs=1.5, batch_size=8)
    assert in_steps(config, 64).steps == 12
    assert in_steps(config, 1).steps == 1
    assert in_steps(FinetuneConfig(steps=7), 64).steps == 7
    assert in_steps(in_steps(config, 64), 6400).steps == 12


def test_folds_and_later_selections_have_their_own_length(
    run_config: RunConfig, store: ArtifactStore
) -> None:
    length = {"epochs": 60.0, "evaluate_every": 5, "learning_rate": 0.5}
    training = run_config.surrogate.model_copy(update=length)
    mixture = run_config.mixture.model_copy(update={"alpha": "auto"})
    run = run_config.model_copy(update={"surrogate": training, "mixture": mixture})
    chain = Chain(run)
    own, *others = (store.manifest(surrogate) for _, surrogate in chain.folds)
    best = max(own.facts["best_step"], 1)
    assert own.config["steps"] > best
    assert others
    assert {fold.config["steps"] for fold in others} == {best}
    later = continued(in_steps(training, 400), 20, 0.5)
    assert in_steps(later, 400).steps == later.steps == 20


@pytest.fixture
def short(run_config: RunConfig) -> RunConfig:
    """Six steps, after which the adaptation rows are far from learned."""
    finetune = run_config.finetune.model_copy(
        update={"steps": 6, "evaluate_every": 2, "stretch": 4.0}
    )
    return run_config.model_copy(update={"finetune": finetune, "refit": False})


def test_adaptation_rows_are_read_as_often_as_without_a_mixture(
    short: RunConfig, store: ArtifactStore
) -> None:
    chain = Chain(short)
    own, mixed, random = (
        store.manifest(chain.arms.adapter(arm)) for arm in (ADAPTATION_ONLY, ALBAT, RANDOM)
    )
    assert own.facts["best_step"] == own.config["steps"] == 6  # still learning
    assert mixed.config["steps"] == random.config["steps"] == 12  # alpha is a half
    at_most = short.finetune.model_copy(update={"stretch": 1.5})
    less = Chain(short.model_copy(update={"finetune": at_most}))
    assert store.manifest(less.arms.adapter(ALBAT)).config["steps"] == 9
    assert less.arms.adapter(ADAPTATION_ONLY) == chain.arms.adapter(ADAPTATION_ONLY)


def test_a_refit_reads_its_more_rows_as_often(short: RunConfig, store: ArtifactStore) -> None:
    epochs = short.finetune.model_copy(update={"epochs": 1.0, "batch_size": 2, "stretch": 1.0})
    once, again = (
        Chain(short.model_copy(update={"finetune": epochs, "refit": refit})).arms.adapter(
            ADAPTATION_ONLY
        )
        for refit in (False, True)
    )
    looked, refitted = store.manifest(once), store.manifest(again)
    for its in (looked, refitted):
        assert its.config["steps"] == round(its.facts["adaptation_rows"] / 2)
    assert refitted.config["steps"] > looked.config["steps"]


def harmful(folder: Path) -> Path:
    """A run about plants whose corpus is of ships alone, mixed in nearly alone."""
    path = write_run(
        folder,
        mixture={"alpha": 0.9},
        finetune={"steps": 40, "batch_size": 4, "evaluate_every": 4, "learning_rate": 0.02},
    )
    (folder / "corpus" / "plants.jsonl").unlink()
    write_jsonl(folder / "corpus" / "more.jsonl", topic_rows("ships", 60, seed=3))
    return path


def test_validation_documents_may_prefer_adaptation_data_alone(tmp_path: Path) -> None:
    run = load_config(str(harmful(tmp_path)), {})
    store, chain = ArtifactStore(run.runtime.root), Chain(run)
    own = chain.arms.adapter(ADAPTATION_ONLY)
    assert chain.arms.adapter(ALBAT) == own
    assert store.manifest(chain.arms.mixture(ALBAT)).facts["alpha"] == 0.9
    assert chain.arms.trained_mixture(ALBAT) == chain.arms.mixture(ADAPTATION_ONLY)
    assert chain.register(evaluated=False).adapter == own
    anyway = Chain(
        run.model_copy(update={"mixture": run.mixture.model_copy(update={"fall_back": False})})
    )
    assert anyway.arms.adapter(ALBAT) != own
    assert anyway.arms.trained_mixture(ALBAT) == anyway.arms.mixture(ALBAT)


def test_a_mixture_that_helps_is_kept(tmp_path: Path) -> None:
    path = write_run(
        tmp_path,
        mixture={"alpha": 0.5},
        finetune={"steps": 40, "batch_size": 4, "evaluate_every": 4, "learning_rate": 0.02},
    )
    write_jsonl(tmp_path / "adaptation.jsonl", topic_rows("plants", 10, seed=1))
    chain = Chain(load_config(str(path), {}))
    assert chain.arms.adapter(ALBAT) != chain.arms.adapter(ADAPTATION_ONLY)
