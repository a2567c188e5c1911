"""The efficacy benchmark: every scorer and every fair baseline, on several seeds, as a table."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from albat_core.benchmark.config import EfficacyConfig, Situation
from albat_core.progress import track
from albat_core.records.runs import ADAPTATION_ONLY, ALBAT, ALL_DATA, UNTOUCHED
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.scorers import SCORERS
from albat_core.scorers.random import Random
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.training.config import penalty_weight

LABELS = {
    UNTOUCHED: "backbone untouched",
    ADAPTATION_ONLY: "adaptation data only",
    "more_steps": "adaptation data only, with ALBAT's compute",
    "penalty": "penalty towards the backbone's outputs",
    "rows_alone": "ALBAT without the penalty",
    **{name: scorer.title for name, scorer in SCORERS.items()},
    ALBAT: "ALBAT",
    ALL_DATA: "all of the adaptation data",
}

ARMS = "arms"
"""What progress is counted in."""


class ArmResult(BaseModel):
    """What an arm came to with one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    situation: str
    seed: int
    arm: str
    """A key of ``LABELS``, ``alpha 0.5`` or ``share 0.2``."""
    evaluation: ArtifactRef
    grades: tuple[ArtifactRef, ...] = ()
    """Of its answers to held-out prompts, by metric, where any are configured."""
    alpha: float
    """Mixing weight, 0 where nothing is mixed in."""
    share: float
    """Of the documents that are not held out."""
    learning_rate: float
    """That it was trained at, 0 where it was not trained."""
    best_step: int
    passes: int
    """Units that went through the model, selection included; a backward pass counts for two."""
    seconds: float
    """Time that the stages took when they were computed, selection included."""


def with_settings(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """Return a run with some settings of some sections changed."""
    changed = {
        name: getattr(config, name).model_copy(update=values) for name, values in sections.items()
    }
    return config.model_copy(update=changed)


def measure_situation(situation: Situation, config: EfficacyConfig, seed: int) -> list[ArmResult]:
    """Train and evaluate every arm of a situation with one seed, or find them finished.

    Each is trained at every learning rate that is configured; validation documents choose.
    """
    run = situation.run.model_copy(update={"seed": seed})
    store = ArtifactStore(run.runtime.root)
    results: dict[str, ArmResult] = {}
    arms = 6 + len(config.scorers) + len(config.alphas) + len(config.shares)
    arms += bool(penalty_weight(run.finetune, run.backbone))
    with track(f"{situation.name}, seed {seed}", arms, ARMS) as advance:
        tried = [with_settings(run, surrogate=rate) for rate in _rates(config)]
        run = min(tried, key=lambda its: _validation(store, Chain(its).surrogate))
        for arm in _arms(run, config, results):
            its, role = arm.run, arm.role
            if role != UNTOUCHED:
                like = [{"learning_rate": results[arm.like].learning_rate}] if arm.like else None
                at = [with_settings(its, finetune=rate) for rate in like or _rates(config)]
                its = min(at, key=lambda r: _validation(store, Chain(r).arms.adapter(role)))
            results[arm.name] = _result(situation.name, arm.name, Chain(its), role, store)
            advance(1)
    return list(results.values())


def _rates(config: EfficacyConfig) -> list[dict[str, Any]]:
    """Return what each learning rate changes in a training's settings."""
    return [{"learning_rate": rate} for rate in config.learning_rates] or [{}]


def _validation(store: ArtifactStore, adapter: ArtifactRef | None) -> float:
    """Return an adapter's loss on the documents that chose its best step."""
    assert adapter is not None  # only the untouched arm has none
    return float(store.manifest(adapter).facts["validation_loss"])


class _Arm(NamedTuple):
    name: str
    run: RunConfig
    role: str
    """Which of the run's arms it is."""
    like: str = ""
    """The arm whose learning rate it has; none: its own best."""


def _arms(
    run: RunConfig, config: EfficacyConfig, results: Mapping[str, ArmResult]
) -> Iterator[_Arm]:
    """Yield the arms.

    Args:
        run: ALBAT's.
        config: of the benchmark.
        results: of the arms yielded so far, on which later ones depend.
    """
    plain = with_settings(run, finetune={"penalty": 0.0}, surrogate={"penalty": 0.0})
    yield _Arm(UNTOUCHED, run, UNTOUCHED)
    yield _Arm(ADAPTATION_ONLY, plain, ADAPTATION_ONLY)
    yield _Arm(ALBAT, run, ALBAT)
    more = results[ALBAT].passes / results[ADAPTATION_ONLY].passes
    longer = with_settings(plain, finetune={"steps": round(run.finetune.steps * more)})
    yield _Arm("more_steps", longer, ADAPTATION_ONLY, ADAPTATION_ONLY)
    held = with_settings(plain, finetune={"penalty": config.penalty})
    yield _Arm("penalty", held, ADAPTATION_ONLY, ADAPTATION_ONLY)
    if penalty_weight(run.finetune, run.backbone):
        yield _Arm("rows_alone", plain, ALBAT, ALBAT)
    alpha = results[ALBAT].alpha
    for scorer in (Random(), *config.scorers):
        settings = {section: dict(its) for section, its in scorer.published.items()}
        settings["scoring"] = {"scorer": scorer}
        settings["mixture"] = {"alpha": alpha}
        yield _Arm(scorer.name, with_settings(run, **settings), ALBAT)
    for each in config.alphas:
        at = with_settings(run, mixture={"alpha": each})
        yield _Arm(f"alpha {each:g}", at, ALBAT, ALBAT)
    for share in config.shares:
        name = ALL_DATA if share == 1 else f"share {share:g}"
        yield _Arm(name, with_settings(plain, split={"use": share}), ADAPTATION_ONLY)


def compute_of(chain: Chain, store: ArtifactStore) -> tuple[int, float]:
    """Return the passes and the seconds of all that a chain has asked for."""
    manifests = [store.manifest(ref) for stage in chain.stages for ref in stage.refs]
    return (
        sum(int(m.facts.get("passes", 0)) for m in manifests),
        sum(m.seconds for m in manifests),
    )


def _result(situation: str, arm: str, chain: Chain, role: str, store: ArtifactStore) -> ArmResult:
    adapter = chain.arms.adapter(role)
    passes, seconds = compute_of(chain, store)
    facts = store.manifest(adapter).facts if adapter else {}
    return ArmResult(
        situation=situation,
        seed=chain.config.seed,
        arm=arm,
        evaluation=chain.arms.evaluation(role),
        grades=chain.arms.grades(role),
        alpha=float(facts.get("alpha", 0.0)),
        share=chain.config.split.use,
        learning_rate=chain.config.finetune.learning_rate if adapter else 0.0,
        best_step=int(facts.get("best_step", 0)),
        passes=passes,
        seconds=seconds,
    )
