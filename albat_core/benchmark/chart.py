"""The benchmarks' charts, as pictures (PNG) for their pages."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from albat_core.report.content import Interval

CHART = "chart.png"
_WIDTH, _HEIGHT, _DPI = 3.7, 2.9, 150  # inches of a panel
_INK, _GRAY, _GREEN, _BLUE = "#1c2430", "#7c8694", "#13795b", "#3b6fb6"
_COLUMNS = 3


@dataclass(frozen=True)
class Curve:
    """Held-out losses of one task.

    Args:
        title: its name.
        shares: of the adaptation data, ascending, in (0, 1].
        alone: losses of trainings on that data alone.
        mixed: loss of ALBAT with the smallest share.
        random: of as many random corpus rows with that share.
    """

    title: str
    shares: Sequence[float]
    alone: Sequence[Interval]
    mixed: Interval
    random: Interval


@dataclass(frozen=True)
class Prediction:
    """What mixing was said to be worth, and what it was: times the adaptation data.

    Args:
        task: its name.
        predicted: before the training.
        measured: after it.
    """

    task: str
    predicted: Interval
    measured: Interval


def learning_curves(curves: Sequence[Curve]) -> bytes:
    """Draw a panel a task: loss against the share of the data, and what ALBAT has with the least.

    Bars are 95% intervals.
    """
    return _picture(curves, _draw_curve)


def predictions(points: Sequence[Prediction]) -> bytes:
    """Draw what was predicted against what was measured, a colour a task; bars are 95% intervals.

    Both axes are logarithmic; what is below a tenth is drawn there.
    """
    return _picture([points], _draw_predictions, width=2 * _WIDTH, height=1.8 * _HEIGHT)


def _picture(
    panels: Sequence[Any],
    draw: Callable[[Any, Any], None],
    width: float = _WIDTH,
    height: float = _HEIGHT,
) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(panels), _COLUMNS)
    lines = -(-len(panels) // columns)
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 8}):
        figure = Figure((width * columns, height * lines), dpi=_DPI, layout="constrained")
        places = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axes, its in zip(places, panels, strict=False):
            axes.spines[["top", "right"]].set_visible(False)
            draw(axes, its)
        for axes in places[len(panels) :]:
            axes.remove()
        marks, labels = places[0].get_legend_handles_labels()
        figure.legend(marks, labels, loc="outside upper left", ncols=_COLUMNS, frameon=False)
        FigureCanvasAgg(figure)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _bars(values: Sequence[Interval]) -> list[list[float]]:
    """Return the distances from values to the ends of their intervals, below and above."""
    below = [max(v.value - v.low, 0.0) for v in values]
    return [below, [max(v.high - v.value, 0.0) for v in values]]


def _draw_curve(axes: Any, curve: Curve) -> None:
    x = list(curve.shares)
    bars: dict[str, Any] = {"elinewidth": 0.7, "markersize": 5}
    axes.errorbar(
        x,
        [loss.value for loss in curve.alone],
        _bars(curve.alone),
        color=_BLUE,
        marker="o",
        label="adaptation data alone",
        **bars,
    )
    axes.axhline(curve.mixed.value, color=_GREEN, linewidth=1.2, linestyle=(0, (4, 2)))
    # beside the point that has the same data, so that bars do not cover one another
    for place, loss, colour, marker, label in (
        (0.93, curve.mixed, _GREEN, "D", "ALBAT, with the smallest share"),
        (0.87, curve.random, _GRAY, "s", "random corpus rows, likewise"),
    ):
        axes.errorbar(
            [x[0] * place],
            [loss.value],
            _bars([loss]),
            color=colour,
            marker=marker,
            linestyle="none",
            label=label,
            **bars,
        )
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{share:.0%}" for share in x])
    axes.set_xticks([], minor=True)
    axes.margins(x=0.1, y=0.1)
    axes.set_title(curve.title, loc="left", color=_INK, fontweight="bold")
    axes.set_xlabel("share of the adaptation data", color=_INK)
    axes.set_ylabel("held-out loss", color=_INK)


def _draw_predictions(axes: Any, points: Sequence[Prediction]) -> None:
    least = 0.1
    for number, task in enumerate(dict.fromkeys(point.task for point in points)):
        its = [point for point in points if point.task == task]
        shown = [
            [
                Interval(value=max(v.value, least), low=max(v.low, least), high=max(v.high, least))
                for v in values
            ]
            for values in ([p.predicted for p in its], [p.measured for p in its])
        ]
        axes.errorbar(
            [v.value for v in shown[0]],
            [v.value for v in shown[1]],
            _bars(shown[1]),
            _bars(shown[0]),
            color=f"C{number % 10}",
            linestyle="none",
            marker="o",
            markersize=4,
            elinewidth=0.6,
            label=task,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    ends = axes.get_xlim(), axes.get_ylim()
    line = max(e[0] for e in ends), min(e[1] for e in ends)
    axes.plot(line, line, color=_GRAY, linewidth=0.8, linestyle=(0, (4, 2)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda times, _: f"{times:g}")
    axes.set_xlabel("predicted: worth so many times the data", color=_INK)
    axes.set_ylabel("measured", color=_INK)
