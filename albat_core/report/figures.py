"""The charts of the arms: what each came to and how it learned.

A chart shrunk to the width of a phone cannot be read, so each is drawn for the width it is given.
All are inline SVG coloured by the page.
"""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from albat_core.report import drawing, wording
from albat_core.report.content import Arm, Curve, Interval
from albat_core.report.drawing import LABEL, MUTED, PAPER, RULE, WIDE

_COLOURS = {
    "albat": drawing.ARM_ALBAT,
    "adaptation_only": drawing.ARM_ADAPTATION,
    "random": drawing.ARM_RANDOM,
    "untouched": drawing.ARM_UNTOUCHED,
    "all_data": drawing.ARM_ALL,
}
# ALBAT alone has a colour; the greys beside it are told apart by their strokes too.
_STROKES: dict[str, Any] = {"random": (0, (5, 2.5)), "all_data": (0, (1.2, 2))}
_GAP = 10.0  # pixels between an interval and its value
_FIGURE = 8.5  # pixels that a letter of a value takes at most, in bold


def _finite(interval: Interval | None) -> bool:
    return interval is not None and all(
        math.isfinite(x) for x in (interval.low, interval.value, interval.high)
    )


def _intervals(
    axes: Any,
    arms: Sequence[Arm],
    shown: Sequence[Interval | None],
    best: str,
    digits: int,
    *,
    zero: bool,
) -> None:
    """Draw one interval a row; what lies outside the axes is written at their edge."""
    left, right = axes.get_xlim()
    for row, (arm, interval) in enumerate(zip(arms, shown, strict=True)):
        if interval is None or not _finite(interval):
            nothing = "reference" if arm.name == "adaptation_only" else wording.NOTHING
            drawing.write(axes, nothing, (max(0.0, left), row), shift=(8, 0), color=MUTED)
            continue
        colour = _COLOURS.get(arm.name, drawing.ARM_OTHER)
        value = (wording.signed if zero else wording.fixed)(interval.value, digits)
        if not left <= interval.value <= right:
            beyond = interval.value < left
            drawing.write(
                axes,
                f"◂ {value}" if beyond else f"{value} ▸",
                (0.0 if beyond else 1.0, row),
                within="row",
                shift=(4 if beyond else -4, 0),
                ha="left" if beyond else "right",
                color=MUTED,
            )
            continue
        ends = [interval.low, interval.high]
        axes.plot(ends, [row, row], color=colour, linewidth=2.4, solid_capstyle="round")
        filled = arm.name == best
        axes.plot(
            [interval.value],
            [row],
            marker="o",
            markersize=11 if filled else 8.5,
            color=colour,
            markerfacecolor=colour if filled else PAPER,
            markeredgewidth=2,
            clip_on=False,
        )
        weight = "bold" if filled else "normal"
        at = _right_of(axes, interval.high, value) if zero else interval.high
        drawing.write(axes, value, (at, row), shift=(_GAP, 0), fontweight=weight)


def _right_of(axes: Any, end: float, text: str) -> float:
    """Return what a text stands right of: an interval's end, or the line at 0 that it would cross.

    Args:
        axes: whose x is data.
        end: of the interval.
        text: of figures.
    """
    left, right = axes.get_xlim()
    pixel = (right - left) / axes.get_window_extent().width
    return max(end, 0.0) if end + (2 * _GAP + _FIGURE * len(text)) * pixel > 0 else end


def arms(arms: Sequence[Arm], best: str, unit: str, width: int) -> Markup | None:
    """Draw every arm's held-out loss and, where there are any, its paired gain.

    Args:
        arms: from top to bottom.
        best: name of the arm that is filled.
        unit: of the losses.
        width: of the chart.

    Returns:
        None where no arm has a finite loss.
    """
    stacked = width < WIDE  # a phone has no room for long titles
    panels: list[tuple[str, list[Interval | None]]] = [
        (f"held-out loss, {unit}" + " · lower is better" * (not stacked), [a.loss for a in arms])
    ]
    digits = wording.arm_decimals(arms)
    if not any(_finite(arm.loss) for arm in arms):
        return None
    if any(_finite(arm.gain) for arm in arms if arm.name != "untouched"):
        title = "gain over adaptation only, paired · higher is better"
        panels.append((title, [a.gain for a in arms]))
    block = len(arms) * (50 if stacked else 46)
    if stacked:
        areas = [(0, 34 + i * (block + 82), width - 50, block) for i in range(len(panels))]
    else:
        areas = [(198, 34, 330, block), (590, 34, 270, block)]
    with drawing.sheet(width, areas[len(panels) - 1][1] + block + 36) as sheet:
        for number, (title, shown) in enumerate(panels):
            axes = sheet.axes(*areas[number])
            axes.set_xlim(*_reach(arms, shown, zero=number > 0))
            # Half a row around each; the names above the rows take the room above.
            axes.set_ylim(len(arms) - (0.7 if stacked else 0.5), -0.7 if stacked else -0.5)
            axes.set_yticks([])
            drawing.ticks(axes.xaxis, 5)
            drawing.heading(axes, title)
            if number > 0:
                axes.axvline(0, color=MUTED, linewidth=1)
            _intervals(axes, arms, shown, best, digits, zero=number > 0)
            if stacked or number == 0:
                for row, arm in enumerate(arms):
                    drawing.row_label(axes, arm.label, row, stacked=stacked, bold=arm.name == best)
        said = [
            f"{a.label} {wording.fixed(a.loss.value, digits)} ({wording.between(a.loss, digits)})"
            for a in arms
        ]
        described = f"Held-out loss in {unit} with 95% intervals: " + "; ".join(said) + "."
        return sheet.svg(f"arms-{width}", described, "wide" if width == WIDE else "narrow")


def _reach(
    arms: Sequence[Arm], shown: Sequence[Interval | None], *, zero: bool
) -> tuple[float, float]:
    """Return the limits of a panel; ``zero``: of gains, which are measured from 0."""
    # The untouched model loses by far; its gain is given in writing so that the others' show.
    drawn = [
        interval
        for arm, interval in zip(arms, shown, strict=True)
        if interval and _finite(interval) and not (zero and arm.name == "untouched")
    ]
    ends = [end for interval in drawn for end in (interval.low, interval.high)]
    low, high = drawing.limits([*ends, 0.0] if zero else ends, 0.06)
    if len(drawn) < sum(_finite(interval) for interval in shown):
        low -= 0.42 * (high - low)  # room for that writing, four decimals included
    return low, high + 0.1 * (high - low)  # the value stands right of its interval


def curves(curves: Sequence[Curve], unit: str, width: int) -> Markup | None:
    """Draw validation loss against step, one line an arm, named at its end.

    Args:
        curves: one an arm.
        unit: of the losses.
        width: of the chart.

    Returns:
        None where no curve has a finite validation loss.
    """
    lines = []
    for curve in curves:
        points = [
            (p.step, p.validation)
            for p in curve.points
            if p.validation is not None and math.isfinite(p.validation)
        ]
        if points:
            lines.append((curve, sorted(points)))
    if not lines:
        return None
    # An untrained adapter's loss would squeeze all that is learned into a strip at the bottom.
    losses = [
        loss for curve, points in lines for step, loss in points if step or not curve.best_step
    ] or [loss for _, points in lines for _, loss in points]
    digits = wording.loss_decimals(losses)
    left = 46 + 8 * (digits - 3)  # longer numbers stand before the axis
    right = 190 if width == WIDE else 122
    area = (left, 30, width - left - right, 300 if width == WIDE else 250)
    with drawing.sheet(width, area[3] + 76) as sheet:
        axes = sheet.axes(*area)
        axes.grid(axis="x", visible=False)
        axes.grid(axis="y", color=RULE, linewidth=1)
        last = max(points[-1][0] for _, points in lines)
        first = min(points[0][0] for _, points in lines)
        axes.set_xlim(first, last if last > first else first + 1)
        axes.set_ylim(*drawing.limits(losses, 0.05))
        drawing.ticks(axes.xaxis, 8 if width == WIDE else 4)
        drawing.ticks(axes.yaxis, 6)
        drawing.heading(axes, f"validation loss, {unit}", left)
        drawing.axis_name(axes, "step")
        # Steps before any training are the untouched model's: a line to measure the others by.
        starts = [points[0][1] for _, points in lines if points[0][0] == 0]
        if starts:
            _untouched(axes, starts[0], digits)
        for curve, points in lines:
            _line(axes, curve, points)
        _name_ends(axes, lines, (area[2], area[3]), 24 if width == WIDE else 14)
        said = [
            f"{c.label}: lowest {wording.fixed(min(loss for _, loss in points), digits)}, "
            f"best step {c.best_step}"
            for c, points in lines
        ]
        described = "Validation loss against training step. " + "; ".join(said) + "."
        return sheet.svg(f"curves-{width}", described, "wide" if width == WIDE else "narrow")


def _untouched(axes: Any, loss: float, digits: int) -> None:
    """Draw the untouched model's loss; one that lies above the axes is written at their edge."""
    style = {"ha": "right", "fontsize": LABEL - 1, "color": MUTED}
    if loss > axes.get_ylim()[1]:
        beyond = f"untouched {wording.fixed(loss, digits)} ▴"
        drawing.write(axes, beyond, (1.0, 1.0), within="axes", shift=(-2, -8), **style)
        return
    axes.axhline(loss, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
    drawing.write(axes, "untouched", (1.0, loss), within="row", shift=(-2, -10), **style)


def _line(axes: Any, curve: Curve, points: list[tuple[int, float]]) -> None:
    """Draw a curve and ring its best step."""
    colour = _COLOURS.get(curve.arm, drawing.ARM_OTHER)
    front = curve.arm == "albat"
    steps, losses = zip(*points, strict=True)
    axes.plot(
        steps,
        losses,
        color=colour,
        linewidth=2.6 if front else 1.8,
        linestyle=_STROKES.get(curve.arm, "-"),
        marker="o" if len(points) == 1 else None,
        zorder=4 if front else 3,
    )
    best = [point for point in points if point[0] == curve.best_step]
    if best:
        axes.plot(
            *best[0],
            marker="o",
            markersize=9.5 if front else 8.5,
            color=colour,
            markerfacecolor=PAPER,
            markeredgewidth=2.2,
            clip_on=False,
            zorder=5,
        )


def _name_ends(
    axes: Any,
    lines: Sequence[tuple[Curve, list[tuple[int, float]]]],
    size: tuple[float, float],
    letters: int,
) -> None:
    """Write each curve's name right of the axes, level with its end unless another is there."""
    width, height = size
    low, high = axes.get_ylim()
    ends = [(points[-1][1] - low) / (high - low) * height for _, points in lines]
    folded = [drawing.two_lines(curve.label, letters) for curve, _ in lines]
    gap = 18.0 if all(len(name) == 1 for name in folded) else 34.0
    left, right = axes.get_xlim()
    scale = width / (right - left)
    levels = drawing.spread(ends, gap, 0, height)
    for (curve, points), end, at, name in zip(lines, ends, levels, folded, strict=True):
        colour = _COLOURS.get(curve.arm, drawing.ARM_OTHER)
        y = low + at / height * (high - low)
        if abs(at - end) > 2 or points[-1][0] < right:
            axes.annotate(
                "",
                xy=points[-1],
                xytext=((right - points[-1][0]) * scale + 6, at - end),
                textcoords="offset points",
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkA": 0},
            )
        bold = "bold" if curve.arm == "albat" else "normal"
        for number, line in enumerate(name):
            up = 8 * (len(name) - 1 - 2 * number)
            drawing.write(axes, line, (right, y), shift=(8, up), color=colour, fontweight=bold)
