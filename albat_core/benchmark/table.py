"""The table of the efficacy benchmark: gains, multipliers and compute, with intervals."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from albat_core.benchmark.arms import LABELS, ArmResult
from albat_core.benchmark.chart import CHART, Curve, learning_curves
from albat_core.measures.bootstrap import interval_over_seeds
from albat_core.measures.metrics import metric_title
from albat_core.records.grades import document_grades, metrics_of
from albat_core.records.losses import document_losses
from albat_core.records.runs import ADAPTATION_ONLY, ALBAT, ALL_DATA, RANDOM
from albat_core.report.content import Interval, Metric
from albat_core.seeding import numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime

STAGE = "efficacy"
STAGE_VERSION = 6
TABLE, RESULTS = "table.md", "results.json"
_DRAWS = 2000

Floats = NDArray[np.float64]
Draw = list[NDArray[np.int64]]
"""The held-out documents drawn, by seed."""


class Row(BaseModel):
    """What an arm came to over all seeds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    situation: str
    arm: str
    loss: Interval
    """Over seeds and documents, as all intervals here."""
    gain: Interval
    """Loss of adaptation data only less this arm's, paired by document."""
    behind: Interval
    """This arm's loss less ALBAT's, paired likewise."""
    multiplier: Interval
    """Measured: how many times the adaptation data would be needed for this loss without corpus."""
    most: float | None = None
    """The largest multiplier that the curve without corpus can tell: what reaches it may be worth
    any more. None for arms that are points of the curve."""
    share: float
    """Of the documents that are not held out."""
    alphas: tuple[float, ...]
    """By seed."""
    learning_rates: tuple[float, ...]
    """By seed; 0 where nothing was trained."""
    penalties: tuple[float, ...]
    """By seed."""
    best_steps: tuple[int, ...]
    """By seed."""
    passes: float
    """Compute over that of adaptation data only, mean over seeds."""
    seconds: float
    """Mean over seeds."""
    metrics: tuple[Metric, ...] = ()
    """Of the answers to held-out prompts and to tasks, where there are any; higher is better."""


class Measured:
    """Losses of a situation's arms by seed, or scores of their answers, and draws of them.

    Args:
        results: of one situation; every seed has the same arms.
        read: gives an arm's totals and units by document, each (n_documents,).
    """

    def __init__(
        self, results: Sequence[ArmResult], read: Callable[[ArmResult], tuple[Floats, Floats]]
    ) -> None:
        self.by_arm = {
            arm: sorted((r for r in results if r.arm == arm), key=lambda r: r.seed)
            for arm in dict.fromkeys(r.arm for r in results)
        }
        found = {arm: [read(r) for r in rows] for arm, rows in self.by_arm.items()}
        self._totals = {arm: [totals for totals, _ in pairs] for arm, pairs in found.items()}
        self._units = [units for _, units in found[ADAPTATION_ONLY]]
        first, *others = self._units
        self._same_documents = all(np.array_equal(first, units) for units in others)
        self._seeds = len(self._units)
        self._documents = len(first) if self._same_documents else sum(map(len, self._units))

    def drawn(self, generator: np.random.Generator) -> dict[str, Floats]:
        """Return each arm's mean over everything, of each seed, and over draws of documents.

        Documents are drawn with replacement, each seed's by themselves; where all seeds hold out
        the same, once for all of them: what is theirs alone does not become less by more seeds.

        Returns:
            by arm: (1 + n_seeds + draws,), for ``interval``.
        """
        everything = [np.arange(len(units)) for units in self._units]
        draws = [everything, *(self._draw(generator) for _ in range(_DRAWS))]
        found = {}
        for arm in self.by_arm:
            means = np.array([self._means(arm, draw) for draw in draws])
            found[arm] = np.concatenate([means[:1].mean(axis=1), means[0], means[1:].mean(axis=1)])
        return found

    def interval(self, found: Floats) -> Interval:
        """Return what was measured, with its 95% interval over seeds and documents.

        Args:
            found: as ``drawn`` gives it, or made of such arrays element by element.
        """
        value, (by_seed, drawn) = float(found[0]), np.split(found[1:], [self._seeds])
        low, high = interval_over_seeds(
            value, by_seed, drawn, self._documents, same_documents=self._same_documents
        )
        return Interval(value=value, low=low, high=high)

    def _draw(self, generator: np.random.Generator) -> Draw:
        sizes = [len(units) for units in self._units]
        if self._same_documents:
            return [generator.integers(sizes[0], size=sizes[0])] * len(sizes)
        return [generator.integers(size, size=size) for size in sizes]

    def _means(self, arm: str, draw: Draw) -> list[float]:
        """Return the mean per unit of each seed."""
        return [
            float(totals[documents].sum() / units[documents].sum())
            for totals, units, documents in zip(self._totals[arm], self._units, draw, strict=True)
        ]

    @property
    def curve(self) -> tuple[Floats, list[str]]:
        """Shares of the adaptation data, ascending, and the arms that have them without corpus."""
        points = {a: rows[0].share for a, rows in self.by_arm.items() if _without_corpus(a)}
        arms = sorted(points, key=lambda arm: points[arm])
        return np.array([points[arm] for arm in arms]), arms


def data_multiplier(shares: Floats, losses: Floats, loss: float) -> float:
    """Return how many times the smallest share gives a loss on the curve without corpus.

    The curve is made falling (more data is never taken to be worse) and is straight between its
    points in the logarithm of the share. A loss below all of it gives the largest share. One above
    it follows the first piece on, as far below the smallest share as the curve goes above it.

    Args:
        shares: (n,) ascending.
        losses: (n,).
        loss: what is looked for.
    """
    falling = np.minimum.accumulate(losses)
    if loss < falling[-1]:
        return float(shares[-1] / shares[0])
    logs = np.log(shares / shares[0])
    if loss > falling[0]:
        dropped = falling[0] - falling[1:]
        if not dropped.any():
            return float(shares[0] / shares[-1])
        next_ = int(np.argmax(dropped > 0))
        before = -(loss - falling[0]) * logs[next_ + 1] / dropped[next_]
        return float(np.exp(max(before, -logs[-1])))
    # of points with the same loss the smallest share counts
    keep = np.concatenate([[True], falling[1:] < falling[:-1]])
    return float(np.exp(np.interp(-loss, -falling[keep], logs[keep])))


def rows_of(store: ArtifactStore, results: Sequence[ArmResult], seed: int) -> list[Row]:
    """Return the rows of one situation, in the order in which its arms were run."""
    measured = Measured(results, lambda r: document_losses(store, r.evaluation))
    losses = measured.drawn(numpy_generator(seed, "efficacy"))
    metrics = _metrics(store, results, seed)
    shares, arms = measured.curve
    curves = np.stack([losses[arm] for arm in arms], axis=1)
    base = measured.by_arm[ADAPTATION_ONLY]
    rows = []
    for arm, its in measured.by_arm.items():
        worth = [data_multiplier(shares, c, v) for c, v in zip(curves, losses[arm], strict=True)]
        compute = [r.passes / b.passes for r, b in zip(its, base, strict=True)]
        rows.append(
            Row(
                situation=its[0].situation,
                arm=arm,
                loss=measured.interval(losses[arm]),
                gain=measured.interval(losses[ADAPTATION_ONLY] - losses[arm]),
                behind=measured.interval(losses[arm] - losses[ALBAT]),
                multiplier=_worth(measured, np.array(worth), shares),
                most=None if arm in arms else float(shares[-1] / shares[0]),
                share=its[0].share,
                alphas=tuple(r.alpha for r in its),
                learning_rates=tuple(r.learning_rate for r in its),
                penalties=tuple(r.penalty for r in its),
                best_steps=tuple(r.best_step for r in its),
                passes=float(np.mean(compute)),
                seconds=float(np.mean([r.seconds for r in its])),
                metrics=tuple(metrics[arm]),
            )
        )
    return rows


def _worth(measured: Measured, multipliers: Floats, shares: Floats) -> Interval:
    """Return a multiplier with its interval: one of ratios, within what the curve can tell."""
    logs = measured.interval(np.log(multipliers))
    most = float(shares[-1] / shares[0])
    value, low, high = np.clip(np.exp([logs.value, logs.low, logs.high]), 1 / most, most)
    return Interval(value=float(value), low=float(low), high=float(high))


def _metrics(
    store: ArtifactStore, results: Sequence[ArmResult], seed: int
) -> dict[str, list[Metric]]:
    """Return what each metric says of each arm's answers, over seeds and documents."""
    found: dict[str, list[Metric]] = {r.arm: [] for r in results}
    for place, name, task in metrics_of(store, results[0].grades):
        measured = Measured(results, partial(_graded, store, place, name))
        means = measured.drawn(numpy_generator(seed, "efficacy", name))
        for arm, its in means.items():
            gain = measured.interval(its - means[ADAPTATION_ONLY])
            value = measured.interval(its)
            title = metric_title(name)
            found[arm].append(Metric(name=name, title=title, value=value, gain=gain, task=task))
    return found


def _graded(
    store: ArtifactStore, place: int, metric: str, result: ArmResult
) -> tuple[Floats, Floats]:
    return document_grades(store, result.grades[place], metric)


def drawn_interval(found: Floats) -> Interval:
    """Return the first, which is measured on everything, with the 95% interval of the others."""
    low, high = np.quantile(found[1:], [0.025, 0.975])
    return Interval(value=float(found[0]), low=float(low), high=float(high))


def tabulate(results: Sequence[ArmResult], seed: int, runtime: Runtime) -> ArtifactRef:
    """Write the table of a benchmark, as Markdown and as JSON, and its chart.

    Args:
        results: of all situations.
        seed: of the bootstrap.
        runtime: where artifacts are kept.
    """
    store = ArtifactStore(runtime.root)
    situations = list(dict.fromkeys(r.situation for r in results))

    def build(folder: Path) -> Built:
        rows = [
            row
            for name in situations
            for row in rows_of(store, [r for r in results if r.situation == name], seed)
        ]
        return write_rows(folder, table(rows), rows, learning_curves(_curves(rows)))

    inputs = [
        r.model_dump(mode="json", exclude={"seconds"} if r.grades else {"seconds", "grades"})
        for r in results
    ]
    return store.produce(STAGE, STAGE_VERSION, {"seed": seed}, {"results": inputs}, build)


def _curves(rows: Sequence[Row]) -> list[Curve]:
    """Return what the chart shows of each situation."""
    curves = []
    for name in dict.fromkeys(row.situation for row in rows):
        arms = {row.arm: row for row in rows if row.situation == name}
        points = sorted((r for r in arms.values() if _without_corpus(r.arm)), key=lambda r: r.share)
        curves.append(
            Curve(
                title=name,
                shares=[row.share for row in points],
                alone=[row.loss for row in points],
                mixed=arms[ALBAT].loss,
                random=arms[RANDOM].loss,
            )
        )
    return curves


def _without_corpus(arm: str) -> bool:
    """Tell whether an arm is a point of the curve of adaptation data only."""
    return arm in (ADAPTATION_ONLY, ALL_DATA) or arm.startswith("share ")


def write_rows(folder: Path, markdown: str, rows: Sequence[BaseModel], picture: bytes) -> Built:
    """Write a benchmark's table, its rows as JSON and its chart."""
    (folder / CHART).write_bytes(picture)
    (folder / TABLE).write_text(markdown, encoding="utf-8")
    lines = ",\n".join(row.model_dump_json() for row in rows)
    (folder / RESULTS).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return Built(rows=len(rows))


def table(rows: Sequence[Row]) -> str:
    """Return rows as Markdown, one table a situation."""
    parts = []
    for name in dict.fromkeys(row.situation for row in rows):
        its = [row for row in rows if row.situation == name]
        lines = [
            f"### {name}\n",
            "| arm | loss | gain over adaptation only | ALBAT lower by | data multiplier | alpha "
            "| compute |"
            + "".join(f" {m.title}, higher is better; gain |" for m in its[0].metrics),
            "|---|---|---|---|---|---|---:|" + "---|" * len(its[0].metrics),
            *(_line(row) for row in its),
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(row: Row) -> str:
    label = LABELS.get(row.arm, row.arm)
    if row.arm.startswith("alpha "):
        label = f"{LABELS[ALBAT]} with {row.arm}"
    elif row.arm.startswith("share "):
        share = float(row.arm.partition(" ")[2])
        label = f"{LABELS[ADAPTATION_ONLY]}, {share:.0%} of it"
    behind = "" if row.arm == ALBAT else shown(row.behind, "+.3f")
    mixed = [a for a in row.alphas if a]
    alpha = ", ".join(f"{a:.2f}" for a in row.alphas) if mixed else ""
    if len(set(row.alphas)) == 1 and mixed:
        alpha = f"{row.alphas[0]:.2f}"
    return (
        f"| {label} | {shown(row.loss, '.3f')} | {shown(row.gain, '+.3f')} | {behind} "
        f"| {times(row.multiplier, row.most)} | {alpha} | {row.passes:.1f} |"
        + "".join(f" {_measured(metric)} |" for metric in row.metrics)
    )


def _measured(metric: Metric) -> str:
    """Return a metric's mean, and its gain over adaptation only."""
    gain = f"; {shown(metric.gain, '+.3f')}" if metric.gain else ""
    return f"{shown(metric.value, '.3f')}{gain}"


def times(multiplier: Interval, most: float | None) -> str:
    """Return a multiplier; one that lies beyond the curve is written as more than its end.

    Args:
        multiplier: measured.
        most: end of the curve; None for a point of it. One over it is as far as less is followed.
    """

    def told(number: float) -> str:
        if most is not None and number >= most:
            return f"> {most:.3g}"
        if most is not None and number <= 1 / most:
            return f"< {1 / most:.2g}"
        return f"{number:.1f}"

    value, low, high = map(told, (multiplier.value, multiplier.low, multiplier.high))
    return value if low == value == high else f"{value} ({low} to {high})"


def shown(value: Interval, form: str) -> str:
    """Return a value with its interval, each in this form."""
    return f"{value.value:{form}} ({value.low:{form}} to {value.high:{form}})"
