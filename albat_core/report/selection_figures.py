"""The charts of the selection: its sources, scores and weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from albat_core.report import drawing, wording
from albat_core.report.drawing import HALF, INK, LABEL, MUTED, PAPER, POOL, SOFT, WIDE

_HISTOGRAM_BARS = 44
_DRAWN_WEIGHTS = 300


@dataclass(frozen=True)
class SourceShare:
    """A source's share of the corpus and of the selected weight, both in [0, 1]."""

    source: str
    corpus: float
    weight: float
    enrichment: float | None
    """Share of the weight over share of the corpus; None where the corpus has no row of it."""


def sources(shares: Sequence[SourceShare], width: int) -> Markup | None:
    """Draw each source's share of the corpus against its share of the selected weight.

    Returns:
        None where there is no source.
    """
    if not shares:
        return None
    stacked = width < WIDE
    step = 44 if stacked else 29
    block = step * len(shares)
    left = 0 if stacked else 208
    with drawing.sheet(width, block + 74) as sheet:
        axes = sheet.axes(left, 34, width - left - 66, block)
        axes.set_xlim(-0.01, 1.06 * max(max(s.corpus, s.weight, 0.01) for s in shares))
        axes.set_ylim(len(shares) - (0.7 if stacked else 0.5), -0.7 if stacked else -0.5)
        axes.set_yticks([])
        drawing.ticks(axes.xaxis, 4 if stacked else 7)
        axes.xaxis.set_major_formatter(lambda x, _: wording.percent(x))
        heading = {"within": "axes", "ha": "right", "color": MUTED, "fontsize": LABEL - 1}
        drawing.write(axes, "enriched", (1.0, 1.0), shift=(60, 16), **heading)
        for row, share in enumerate(shares):
            gained = share.weight >= share.corpus
            ends = [share.corpus, share.weight]
            line, stroke = (drawing.ARM_ALBAT, 2.2) if gained else (MUTED, 1.0)
            axes.plot(ends, [row, row], color=line, linewidth=stroke, solid_capstyle="round")
            dot = {"marker": "o", "markeredgewidth": 2, "clip_on": False}
            axes.plot([share.corpus], [row], color=MUTED, mfc=PAPER, markersize=8, **dot)
            axes.plot([share.weight], [row], color=drawing.ARM_ALBAT, markersize=9, **dot)
            drawing.row_label(axes, share.source, row, stacked=stacked, bold=False)
            much = share.enrichment is not None and share.enrichment >= 1
            drawing.write(
                axes,
                wording.times(share.enrichment),
                (1.0, row),
                within="row",
                shift=(60, 0),
                ha="right",
                color=INK if much else MUTED,
                fontweight="bold" if much else "normal",
            )
        said = [
            f"{s.source} {wording.percent(s.corpus)} of the corpus, "
            f"{wording.percent(s.weight)} of the weight"
            for s in shares
        ]
        described = "Where the selected weight comes from: " + "; ".join(said) + "."
        return sheet.svg(f"sources-{width}", described, "wide" if width == WIDE else "narrow")


def scores(candidates: Sequence[float], selected: Sequence[float]) -> Markup | None:
    """Draw how the scores of all candidates and of the selected ones are distributed.

    Returns:
        None where no candidate has a finite score.
    """
    pool = np.asarray(candidates, np.float64)
    chosen = np.asarray(selected, np.float64)
    pool, chosen = pool[np.isfinite(pool)], chosen[np.isfinite(chosen)]
    if not pool.size:
        return None
    # A few extreme scores would squeeze all others into one bar: they count in the outermost.
    ends = [
        *np.quantile(pool, [0.002, 0.998]),
        *(np.quantile(c, 0.998) for c in [chosen] if c.size),
    ]
    edges = np.linspace(*drawing.limits(map(float, ends), 0.02), _HISTOGRAM_BARS + 1)
    with drawing.sheet(HALF, 270) as sheet:
        axes = sheet.axes(0, 30, HALF - 14, 190)
        for values, edge, fill in ((pool, MUTED, POOL), (chosen, drawing.ARM_ALBAT, SOFT)):
            if not values.size:
                continue
            counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
            heights = counts / values.size
            axes.stairs(heights, edges, fill=True, color=fill, linewidth=0)
            axes.stairs(heights, edges, color=edge, linewidth=1.6)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        axes.set_yticks([])
        drawing.ticks(axes.xaxis, 6)
        drawing.heading(axes, "share of rows")
        drawing.axis_name(axes, "score")
        described = f"Scores. {pool.size} candidates, median {wording.rounded(_median(pool))}"
        if chosen.size:
            described += f"; {chosen.size} selected, median {wording.rounded(_median(chosen))}"
        return sheet.svg("scores", described + ".", "half")


def _median(values: Any) -> float:
    return float(np.median(values))


def weights(selected: Sequence[float], effective: float) -> Markup | None:
    """Draw the selected rows' weights, heaviest first, against equal ones, and mark the ESS.

    Returns:
        None where nothing was selected.
    """
    ordered = np.sort(np.asarray(selected, np.float64))[::-1]
    if not ordered.size or not np.isfinite(ordered).all() or ordered.sum() <= 0:
        return None
    rows = int(ordered.size)
    relative = ordered / ordered.mean()
    # A hundred thousand rows draw no finer a line than a few hundred do.
    at = np.unique(np.linspace(0, rows - 1, min(rows, _DRAWN_WEIGHTS)).round().astype(int))
    with drawing.sheet(HALF, 270) as sheet:
        axes = sheet.axes(36, 30, HALF - 50, 190)
        edges = np.append(at, rows).astype(float)
        axes.stairs(relative[at], edges, fill=True, color=SOFT, linewidth=0)
        axes.stairs(relative[at], edges, color=drawing.ARM_ALBAT, linewidth=1.8, baseline=None)
        axes.set_xlim(0, rows)
        axes.set_ylim(0, max(1.5, 1.05 * float(relative[0])))
        axes.grid(axis="x", visible=False)
        axes.axhline(1, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        known = math.isfinite(effective) and 0 < effective <= rows
        before = known and effective > 0.6 * rows  # words stand where they do not cross the line
        right = {"ha": "right", "fontsize": LABEL - 1, "color": MUTED}
        drawing.write(
            axes, "equal weights", (effective if before else rows, 1.0), shift=(-7, 10), **right
        )
        if known:
            axes.axvline(effective, color=INK, linewidth=1.4)
            drawing.write(
                axes,
                f"ESS {wording.whole(effective)}",
                (effective, axes.get_ylim()[1]),
                shift=(-7 if before else 7, -10),
                ha="right" if before else "left",
                fontweight="bold",
            )
        drawing.ticks(axes.xaxis, 5)
        drawing.ticks(axes.yaxis, 5)
        axes.xaxis.set_major_formatter(lambda x, _: wording.whole(x))
        axes.yaxis.set_major_formatter(lambda y, _: f"×{y:g}")
        drawing.heading(axes, "weight against an equal share", 36)
        name = "selected rows, heaviest first"
        drawing.axis_name(axes, name)
        described = (
            f"Weights of {rows} selected rows, heaviest first. The heaviest has "
            f"{wording.rounded(float(relative[0]))} times an equal share; together they count "
            f"as {wording.whole(effective)} equal rows."
        )
        return sheet.svg("weights", described, "half")
