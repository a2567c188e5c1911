"""The efficacy benchmark: every scorer and every fair baseline, on several seeds, as a table."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from albat_core.progress import track
from albat_core.runs.chain import ADAPTATION_ONLY, ALBAT, RANDOM, UNTOUCHED, Chain
from albat_core.runs.config import RunConfig
from albat_core.stages.score import ScorerName
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.stage import StageConfig
from albat_core.training.config import penalty_weight

LABELS = {
    UNTOUCHED: "backbone untouched",
    ADAPTATION_ONLY: "adaptation data only",
    "more_steps": "adaptation data only, with ALBAT's compute",
    "penalty": "penalty towards the backbone's outputs",
    "rows_alone": "ALBAT without the penalty",
    RANDOM: "random corpus rows",
    "nearest": "nearest neighbours (RDS+)",
    "ngram": "hashed n-grams (DSIR)",
    "advantage": "advantage, best rows",
    "gradient": "gradient similarity (LESS)",
    "matching": "gradient matching",
    ALBAT: "ALBAT",
    "all": "all of the adaptation data",
}

ARMS = "arms"
"""What progress is counted in."""

_SCORER_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "random": {
        "retrieval": {"pool": "corpus"},
        "mixture": {"select": "top", "weigh": "even"},
    },
    "nearest": {"mixture": {"select": "turns", "weigh": "even"}},
    "ngram": {
        "retrieval": {"pool": "corpus"},
        "mixture": {"select": "gumbel", "temperature": 1.0, "weigh": "even"},
    },
    "advantage": {"mixture": {"select": "top"}},
    "gradient": {"mixture": {"select": "top", "weigh": "even"}},
    "matching": {"mixture": {"select": "top", "weigh": "proportional"}},
}
"""How each scorer's own paper selects and weighs with it."""


class Situation(StageConfig):
    """A task on which arms are compared."""

    name: str = Field(min_length=1)
    """What it is called in the table."""
    run: RunConfig
    """The run; its seed is replaced."""


class EfficacyConfig(StageConfig):
    """What is compared, on which tasks."""

    name: str = Field("efficacy", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the benchmark, and of the file that its table is written to."""
    situations: tuple[Situation, ...] = Field(min_length=1)
    """The tasks."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Each draws adaptation documents, initialization and batches anew."""
    scorers: tuple[ScorerName, ...] = ("nearest", "ngram", "advantage", "gradient", "matching")
    """Scorers that are compared with ALBAT, at its mixing weight."""
    alphas: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    """Mixing weights at which ALBAT is tried beside the one that it computes."""
    shares: tuple[float, ...] = (0.2, 0.4, 0.7, 1.0)
    """Larger shares of the documents that are not held out, for the curve of adaptation data
    only; the arms have `split.use` of them."""
    penalty: float = Field(0.3, gt=0)
    """Weight of the penalty towards the backbone's outputs."""
    parallel: int = Field(1, ge=1)
    """Tasks and seeds that run at once, each in a process of its own."""


class ArmResult(BaseModel):
    """What an arm came to with one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    situation: str
    seed: int
    arm: str
    """A key of ``LABELS``, ``alpha 0.5`` or ``share 0.2``."""
    evaluation: ArtifactRef
    alpha: float
    """Mixing weight, 0 where nothing is mixed in."""
    share: float
    """Of the documents that are not held out."""
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
    """Train and evaluate every arm of a situation with one seed, or find them finished."""
    run = situation.run.model_copy(update={"seed": seed})
    store = ArtifactStore(run.runtime.root)
    results: dict[str, ArmResult] = {}
    arms = 6 + len(config.scorers) + len(config.alphas) + len(config.shares)
    arms += bool(penalty_weight(run.finetune, run.backbone))
    with track(f"{situation.name}, seed {seed}", arms, ARMS) as advance:
        for arm, its, role in _arms(run, config, results):
            results[arm] = _result(situation.name, arm, Chain(its), role, store)
            advance(1)
    return list(results.values())


def _arms(
    run: RunConfig, config: EfficacyConfig, results: Mapping[str, ArmResult]
) -> Iterator[tuple[str, RunConfig, str]]:
    """Yield each arm's name, its run, and which of the run's arms it is.

    Args:
        run: ALBAT's.
        config: of the benchmark.
        results: of the arms yielded so far, on which later ones depend.
    """
    plain = with_settings(run, finetune={"penalty": 0.0}, surrogate={"penalty": 0.0})
    yield UNTOUCHED, run, UNTOUCHED
    yield ADAPTATION_ONLY, plain, ADAPTATION_ONLY
    yield ALBAT, run, ALBAT
    more = results[ALBAT].passes / results[ADAPTATION_ONLY].passes
    steps = round(run.finetune.steps * more)
    yield "more_steps", with_settings(plain, finetune={"steps": steps}), ADAPTATION_ONLY
    yield "penalty", with_settings(plain, finetune={"penalty": config.penalty}), ADAPTATION_ONLY
    if penalty_weight(run.finetune, run.backbone):
        yield "rows_alone", plain, ALBAT
    alpha = results[ALBAT].alpha
    for scorer in ("random", *config.scorers):
        settings = {n: dict(v) for n, v in _SCORER_SETTINGS.get(scorer, {}).items()}
        settings["scoring"] = {"scorer": scorer}
        settings["mixture"] = settings.get("mixture", {}) | {"alpha": alpha}
        yield scorer, with_settings(run, **settings), ALBAT
    for each in config.alphas:
        yield f"alpha {each:g}", with_settings(run, mixture={"alpha": each}), ALBAT
    for share in config.shares:
        name = "all" if share == 1 else f"share {share:g}"
        yield name, with_settings(plain, split={"use": share}), ADAPTATION_ONLY


def _compute(store: ArtifactStore, chain: Chain) -> tuple[int, float]:
    """Return the passes and the seconds of all that a chain has asked for."""
    manifests = [store.manifest(ref) for stage in chain.stages for ref in stage.refs]
    return (
        sum(int(m.facts.get("passes", 0)) for m in manifests),
        sum(m.seconds for m in manifests),
    )


def _result(situation: str, arm: str, chain: Chain, role: str, store: ArtifactStore) -> ArmResult:
    adapter = chain.adapter(role)
    passes, seconds = _compute(store, chain)
    facts = store.manifest(adapter).facts if adapter else {}
    return ArmResult(
        situation=situation,
        seed=chain.config.seed,
        arm=arm,
        evaluation=chain.evaluation(role),
        alpha=float(facts.get("alpha", 0.0)),
        share=chain.config.split.use,
        best_step=int(facts.get("best_step", 0)),
        passes=passes,
        seconds=seconds,
    )
