"""The efficacy benchmark: every scorer and every fair baseline, on several seeds, as a table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from albat_core.benchmark.config import EfficacyConfig, Situation
from albat_core.progress import track
from albat_core.records.runs import ADAPTATION_ONLY, ALBAT, ALL_DATA, UNTOUCHED
from albat_core.records.scores import PART_STAGE
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.scorers import SCORERS
from albat_core.scorers.random import Random
from albat_core.stages.estimate import GRADIENTS_STAGE
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.training.config import FinetuneConfig, penalty_weight

LABELS = {
    UNTOUCHED: "backbone untouched",
    ADAPTATION_ONLY: "adaptation data only",
    "more_steps": "adaptation data only, with ALBAT's compute",
    **{name: scorer.title for name, scorer in SCORERS.items()},
    ALBAT: "ALBAT",
    ALL_DATA: "all of the adaptation data",
}

_PARTS = (PART_STAGE, GRADIENTS_STAGE)  # what joins them counts their passes as its own

ARMS, TASKS = "arms", "tasks and seeds"
"""What progress is counted in: within a task with a seed, and of all of them."""


class ArmResult(BaseModel):
    """What an arm came to with one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    situation: str
    seed: int
    arm: str
    """A key of ``LABELS``, ``alpha 0.5`` or ``share 0.2``."""
    evaluation: ArtifactRef
    grades: tuple[ArtifactRef, ...] = ()
    """Of its answers to held-out prompts, by metric, and to tasks, where any are configured."""
    alpha: float
    """Mixing weight, 0 where nothing is mixed in."""
    share: float
    """Of the documents that are not held out."""
    learning_rate: float
    """That it was trained at; 0 where nothing was trained."""
    penalty: float
    """Weight of the penalty towards the backbone's outputs."""
    surrogate: float
    """Learning rate that the run's surrogate is trained at."""
    best_step: int
    passes: int
    """Units that went through the model, selection included; a backward pass counts for two."""
    seconds: float
    """Time that the stages took when they were computed, selection included."""

    @property
    def training(self) -> dict[str, Any]:
        """Settings that validation documents chose."""
        return {"learning_rate": self.learning_rate, "penalty": self.penalty}


def with_settings(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """Return a run with some settings of some sections changed."""
    changed = {
        name: getattr(config, name).model_copy(update=values) for name, values in sections.items()
    }
    return config.model_copy(update=changed)


def measure_situation(
    situation: Situation,
    config: EfficacyConfig,
    seed: int,
    first: Sequence[ArmResult] = (),
) -> list[ArmResult]:
    """Train and evaluate every arm of a situation with one seed, or find them finished.

    The surrogate is trained at the middle one of the learning rates, the others at that of an arm
    like them, and each at its neighbours for as long as the loss on validation documents falls;
    then those without corpus without the penalty.

    Args:
        situation: the task.
        config: of the benchmark.
        seed: of the runs.
        first: results with another seed, whose choices are taken over; none: they are made.
    """
    chosen = {result.arm: result for result in first}
    run = situation.run.model_copy(update={"seed": seed})
    store = ArtifactStore(run.runtime.root)
    results: dict[str, ArmResult] = {}
    arms = 5 + len(config.scorers) + len(config.alphas) + len(config.shares)
    with track(f"{situation.name}, seed {seed}", arms, ARMS) as advance:
        if chosen:
            run = with_settings(run, surrogate={"learning_rate": chosen[ALBAT].surrogate})
        else:
            run = _tuned_surrogate(run, config.learning_rates, store)
        for arm in _arms(run, config, results):
            best = arm.run
            if chosen and arm.name != UNTOUCHED:
                best = with_settings(best, finetune=chosen[arm.name].training)
            elif arm.tuned:
                like = results[arm.like].learning_rate if arm.like else None
                best = _tuned(arm, like or run.surrogate.learning_rate, config, store)
            results[arm.name] = _result(situation.name, arm.name, Chain(best), arm.role, store)
            advance(1)
    return list(results.values())


def _tuned_surrogate(run: RunConfig, rates: Sequence[float], store: ArtifactStore) -> RunConfig:
    """Return a run with the best learning rate of its surrogate."""

    def at(rate: float) -> RunConfig:
        return with_settings(run, surrogate={"learning_rate": rate})

    def loss(rate: float) -> float:
        return _validation_loss(store, Chain(at(rate)).surrogate)

    return at(lowest(sorted(rates), len(rates) // 2, loss)) if rates else run


def _tuned(arm: "_Arm", start: float, config: EfficacyConfig, store: ArtifactStore) -> RunConfig:
    """Return an arm's run with its best learning rate and, without corpus, the better penalty.

    Args:
        arm: that is trained.
        start: the rate that is tried first.
        config: of the benchmark.
        store: of its artifacts.
    """

    def loss(run: RunConfig) -> float:  # of an adapter that has not seen these documents
        adapter = Chain(run.model_copy(update={"refit": False})).arms.adapter(arm.role)
        assert adapter is not None  # only the untouched arm has none
        return _validation_loss(store, adapter)

    def at(**training: float) -> RunConfig:
        return with_settings(arm.run, finetune=training)

    alone = arm.role == ADAPTATION_ONLY
    own = {"penalty": config.penalty} if alone else {}
    if rates := sorted(config.learning_rates):
        rate = lowest(rates, rates.index(start), lambda rate: loss(at(learning_rate=rate, **own)))
        own["learning_rate"] = rate
    best = at(**own)
    if alone:
        best = min(at(**own | {"penalty": 0.0}), best, key=loss)
    return best


def lowest(rates: Sequence[float], start: int, loss: Callable[[float], float]) -> float:
    """Return the learning rate of the lowest loss where that has one valley; of equals, the lower.

    Args:
        rates: in ascending order.
        start: position of the one to begin with.
        loss: computed of those that are come to, often of less than all.
    """
    loss, at = cache(loss), start
    while at + 1 < len(rates) and loss(rates[at + 1]) < loss(rates[at]):
        at += 1
    if at == start:
        while at > 0 and loss(rates[at - 1]) <= loss(rates[at]):
            at -= 1
    return rates[at]


def _validation_loss(store: ArtifactStore, adapter: ArtifactRef) -> float:
    """Return an adapter's loss on the documents that chose its best step."""
    return float(store.manifest(adapter).facts["validation_loss"])


class _Arm(NamedTuple):
    name: str
    run: RunConfig
    role: str
    """Which of the run's arms it is."""
    tuned: bool = False
    """Whether validation documents choose the settings of its training."""
    like: str = ""
    """Arm at whose learning rate the search begins; none: at the surrogate's."""


def _arms(
    run: RunConfig, config: EfficacyConfig, results: Mapping[str, ArmResult]
) -> Iterator[_Arm]:
    """Yield the arms.

    Args:
        run: ALBAT's.
        config: of the benchmark.
        results: of the arms yielded so far, on which later ones depend.
    """
    yield _Arm(UNTOUCHED, run, UNTOUCHED)
    yield _Arm(ADAPTATION_ONLY, run, ADAPTATION_ONLY, True)
    yield _Arm(ALBAT, run, ALBAT, True)
    own, mixed = results[ADAPTATION_ONLY], results[ALBAT]
    length = longer(run.finetune, mixed.passes / own.passes)
    yield _Arm("more_steps", with_settings(run, finetune=own.training | length), ADAPTATION_ONLY)
    alpha = Chain(run).alpha  # ALBAT's adapter may be that of adaptation data alone
    for scorer in (Random(), *config.scorers):
        settings = {section: dict(its) for section, its in scorer.published.items()}
        settings["scoring"] = {"scorer": scorer}
        settings["mixture"] = {"alpha": alpha, "fall_back": False}
        yield _Arm(scorer.name, with_settings(run, **settings), ALBAT, True, ALBAT)
    for each in config.alphas:
        at = with_settings(run, mixture={"alpha": each, "fall_back": False})
        yield _Arm(f"alpha {each:g}", at, ALBAT, True, ALBAT)
    like = ADAPTATION_ONLY
    for share in config.shares:
        name = ALL_DATA if share == 1 else f"share {share:g}"
        yield _Arm(name, with_settings(run, split={"use": share}), ADAPTATION_ONLY, True, like)
        like = name


def longer(training: FinetuneConfig, times: float) -> dict[str, float]:
    """Return the setting that makes a training so many times as long, in steps or in epochs."""
    if training.epochs is None:
        return {"steps": round(training.steps * times)}
    return {"epochs": training.epochs * times}


def compute_of(store: ArtifactStore, *chains: Chain) -> tuple[int, float]:
    """Return the passes and the seconds of all that chains have asked for, each thing once."""
    refs = dict.fromkeys(ref for chain in chains for stage in chain.stages for ref in stage.refs)
    manifests = {ref: store.manifest(ref) for ref in refs}
    return (
        sum(
            int(m.facts.get("passes", 0)) for ref, m in manifests.items() if ref.stage not in _PARTS
        ),
        sum(m.seconds for m in manifests.values()),
    )


def _result(situation: str, arm: str, chain: Chain, role: str, store: ArtifactStore) -> ArmResult:
    adapter = chain.arms.adapter(role)
    passes, seconds = compute_of(store, chain)
    facts = store.manifest(adapter).facts if adapter else {}
    training = chain.config.finetune
    return ArmResult(
        situation=situation,
        seed=chain.config.seed,
        arm=arm,
        evaluation=chain.arms.evaluation(role),
        grades=chain.arms.grades(role),
        alpha=float(facts.get("alpha", 0.0)),
        share=chain.config.split.use,
        learning_rate=training.learning_rate if adapter else 0.0,
        penalty=penalty_weight(training, chain.config.backbone) if adapter else 0.0,
        surrogate=chain.config.surrogate.learning_rate,
        best_step=int(facts.get("best_step", 0)),
        passes=passes,
        seconds=seconds,
    )
