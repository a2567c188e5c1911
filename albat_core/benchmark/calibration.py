"""Calibration: what was said beforehand, what a run computed, and what mixing was worth."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from albat_core.benchmark.arms import ARMS, compute_of, with_settings
from albat_core.benchmark.chart import Prediction, predictions
from albat_core.benchmark.config import Situation
from albat_core.benchmark.table import (
    data_multiplier,
    drawn_interval,
    shown,
    times,
    write_rows,
)
from albat_core.progress import track
from albat_core.records.losses import document_losses
from albat_core.records.runs import ADAPTATION_ONLY, ALBAT
from albat_core.records.splits import TRAIN
from albat_core.report.content import Interval
from albat_core.report.verdict import Outlook, outlook
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.runs.quick_look import quick_look
from albat_core.seeding import numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime

STAGE = "calibration"
STAGE_VERSION = 3
_PROBE = 0.25
"""Mixing weight at which a selection is tried that is said not to pay."""
_FURTHER = 3  # doublings of the largest size, on the curve without corpus
_DRAWS = 2000

Floats = NDArray[np.float64]


class Said(BaseModel):
    """What an estimate says of mixing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float
    """Mixing weight; 0: do not mix."""
    alpha_interval: tuple[float, float]
    """95%."""
    multiplier: float
    """How many times the adaptation data mixing is worth."""
    multiplier_interval: tuple[float, float]
    """95%."""
    ended_early: bool
    """Whether surrogates were best at their last step."""
    ratio: float
    """V_T / (V_w + B) behind it, >= 0."""
    seconds: float
    """That the stages took when they were computed."""

    @property
    def outlook(self) -> Outlook:
        """In a word."""
        return outlook(self.alpha, self.multiplier_interval[0], self.ended_early)


class Case(BaseModel):
    """A task with one seed and one size of its adaptation set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    """Its name."""
    seed: int
    """Of the run."""
    rows: int
    """Adaptation rows that are trained on."""
    beforehand: Said
    """By a quick look."""
    computed: Said
    """By the run."""
    alpha: float
    """That was trained with: the computed one, or a small one where that is 0."""
    measured: Interval
    """How many times the adaptation data would be needed without corpus; over documents."""
    most: float
    """The largest multiplier that the curve without corpus can tell."""
    gain: Interval
    """Loss of adaptation data only less that with the mixture, nats per unit."""
    seconds: float
    """Of the whole run, both arms and their evaluation."""


def calibrate(situation: Situation, sizes: Sequence[float], seed: int) -> list[Case]:
    """Look at a task beforehand, run it and measure it, at several sizes of its adaptation set.

    The curve without corpus is of adaptation sets from the smallest size to eight times the largest
    one, trained by the task's own settings.

    Args:
        situation: the task.
        sizes: over the task's own ``split.use``; it is below 1 with each.
        seed: that replaces the run's.
    """
    task = situation.run
    store = ArtifactStore(task.runtime.root)
    uses = sorted({task.split.use * size for size in sizes})
    further = [uses[-1] * 2**n for n in range(1, _FURTHER + 1)]
    curve = [*uses, *(use for use in further if use < 1)]
    if curve[-1] < 1 <= further[-1]:
        curve.append(1.0)

    def at(use: float) -> RunConfig:
        return with_settings(task.model_copy(update={"seed": seed}), split={"use": use})

    with track(f"{situation.name}, seed {seed}", len(curve) + len(uses), ARMS) as advance:
        alone: list[ArtifactRef] = []
        for use in curve:
            alone.append(Chain(at(use)).arms.evaluation(ADAPTATION_ONLY))
            advance(1)
        cases = []
        for place, use in enumerate(uses):
            cases.append(
                _case(situation.name, at(use), np.array(curve[place:]), alone[place:], store)
            )
            advance(1)
    return cases


def _case(
    task: str, run: RunConfig, shares: Floats, alone: Sequence[ArtifactRef], store: ArtifactStore
) -> Case:
    quick, ran = Chain(quick_look(run)), Chain(run)
    beforehand, computed = (_said(each, store) for each in (quick, ran))
    trained = {"alpha": computed.alpha or _PROBE, "fall_back": False}
    tried = Chain(with_settings(run, mixture=trained))
    own = ran.arms.evaluation(ADAPTATION_ONLY)
    evaluations = [own, tried.arms.evaluation(ALBAT), *alone[1:]]
    found = [document_losses(store, evaluation) for evaluation in evaluations]
    units = found[0][1]
    totals = np.stack([totals for totals, _ in found])  # (own, mixed, more of it...)
    generator = numpy_generator(run.seed, "calibration")
    drawn = generator.integers(len(units), size=(_DRAWS, len(units)))
    draws = np.concatenate([np.arange(len(units))[None], drawn])
    losses = totals[:, draws].sum(axis=2) / units[draws].sum(axis=1)
    curves = np.delete(losses, 1, axis=0).T
    worth = [data_multiplier(shares, c, v) for c, v in zip(curves, losses[1], strict=True)]
    return Case(
        task=task,
        seed=run.seed,
        rows=ran.facts(ran.inputs.trained_on())[TRAIN]["rows"],
        beforehand=beforehand,
        computed=computed,
        alpha=computed.alpha or _PROBE,
        measured=drawn_interval(np.array(worth)),
        most=float(shares[-1] / shares[0]),
        gain=drawn_interval(losses[0] - losses[1]),
        seconds=compute_of(store, ran, tried)[1],
    )


def _said(chain: Chain, store: ArtifactStore) -> Said:
    facts = chain.facts(chain.estimate)
    against = facts["corpus_variance"] + facts["bias"]
    return Said(
        alpha=facts["alpha"],
        alpha_interval=tuple(facts["alpha_interval"]),
        multiplier=facts["multiplier"],
        multiplier_interval=tuple(facts["multiplier_interval"]),
        ended_early=facts["ended_early"],
        ratio=facts["target_variance"] / max(against, 1e-12),
        seconds=compute_of(store, chain)[1],
    )


def tabulate_cases(cases: Sequence[Case], runtime: Runtime) -> ArtifactRef:
    """Write the table of a calibration, as Markdown and as JSON, and its chart."""

    def build(folder: Path) -> Built:
        said = [
            Prediction(
                task=case.task,
                predicted=_interval(case.computed),
                measured=case.measured,
            )
            for case in cases
            if case.computed.alpha
        ]
        return write_rows(folder, table(cases), cases, predictions(said))

    inputs = [case.model_dump(mode="json") for case in cases]
    store = ArtifactStore(runtime.root)
    return store.produce(STAGE, STAGE_VERSION, {}, {"cases": inputs}, build)


def _interval(said: Said) -> Interval:
    low, high = said.multiplier_interval
    return Interval(value=said.multiplier, low=low, high=high)


def table(cases: Sequence[Case]) -> str:
    """Return cases as Markdown: a line each, and below them how often what was said held."""
    lines = [
        "| task | seed | own rows | beforehand | the run | measured | gain | seconds |",
        "|---|---:|---:|---|---|---|---|---|",
        *(_line(case) for case in cases),
        "",
        *_summary(cases),
    ]
    return "\n".join(lines) + "\n"


def _line(case: Case) -> str:
    at = "" if case.computed.alpha else f", at alpha {case.alpha:g}"
    cells = (
        case.task,
        str(case.seed),
        f"{case.rows:,}",
        _told(case.beforehand),
        _told(case.computed),
        times(case.measured, case.most) + at,
        shown(case.gain, "+.3f"),
        f"{case.beforehand.seconds:.0f} of {case.seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def _told(said: Said) -> str:
    low, high = said.multiplier_interval
    worth = f": {said.multiplier:.1f} ({low:.1f} to {high:.1f})" if said.alpha else ""
    return f"{said.outlook}{worth}"


def _summary(cases: Sequence[Case]) -> list[str]:
    """Return how often intervals held what they were of, and what became of each outlook."""
    ran = [case for case in cases if case.beforehand.alpha and case.computed.alpha]
    mixed = [case for case in cases if case.computed.alpha]
    lines = [
        _share("the interval beforehand holds what the run computed", ran, _foretold),
        _share("the run's interval holds what was measured", mixed, _kept),
    ]
    for said, outlook_of in (("beforehand", _beforehand), ("by the run", _computed)):
        for word in get_args(Outlook):
            its = [case.gain for case in cases if outlook_of(case) == word]
            lines.append(
                f"- {word}, {said}: {len(its)} of {len(cases)}, of which "
                f"{sum(g.value > 0 for g in its)} gained, {sum(g.low > 0 for g in its)} beyond "
                f"noise; {sum(g.high < 0 for g in its)} lost beyond it"
            )
    cost = np.median([case.beforehand.seconds / case.seconds for case in cases])
    return [*lines, f"- median time of a look beforehand over that of the run: {cost:.2f}"]


def _share(what: str, cases: Sequence[Case], holds: Callable[[Case], bool]) -> str:
    number = sum(map(holds, cases))
    share = f" ({number / len(cases):.0%})" if cases else ""
    return f"- {what}: {number} of {len(cases)}{share}"


def _beforehand(case: Case) -> Outlook:
    return case.beforehand.outlook


def _computed(case: Case) -> Outlook:
    return case.computed.outlook


def _foretold(case: Case) -> bool:
    low, high = case.beforehand.multiplier_interval
    return low <= case.computed.multiplier <= high


def _kept(case: Case) -> bool:
    low, high = case.computed.multiplier_interval
    beyond = case.measured.value >= case.most  # of the curve: it is that much or more
    return low <= case.measured.value <= high or (beyond and high >= case.most)
