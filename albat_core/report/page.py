"""A report's content as one HTML page that needs nothing but a browser."""

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from albat_core.report import figures, selection_figures, wording
from albat_core.report.content import (
    NATS,
    Arm,
    Changes,
    Interval,
    ReportContent,
    Selection,
    SourceCount,
)
from albat_core.report.drawing import NARROW, WIDE
from albat_core.report.selection_figures import SourceShare

_EXCERPT = 420
"""Letters of an example shown before it is unfolded."""
_LONGEST = 12_000
"""Letters of an example shown at all: what is longer makes the page slow and is read by nobody."""
_CHARTED_SOURCES = 16
_LISTED_SOURCES = 200
_PICTURED = {n: chr(0x2400 + n) for n in range(32) if chr(n) not in "\t\n\r"} | {127: "\u2421"}
"""Characters that control a terminal and are none in HTML, as the pictures Unicode has of them."""
_PICTURED |= dict.fromkeys([*range(0x80, 0xA0), 0xFFFE, 0xFFFF], "\ufffd")
_SHOWN_EXAMPLES = 4
"""Examples of a kind shown before the rest is unfolded."""
_SHOWN_PROMPTS = 8
"""Prompts whose samples are shown before the rest is unfolded."""


@dataclass(frozen=True)
class Passage:
    """An example's text, folded if it is long."""

    excerpt: str
    """The beginning; all of it where ``text`` is empty."""
    text: str
    left_out: int
    """Letters at the end that are not shown."""


def render(content: ReportContent) -> str:
    """Return the report as one self-contained HTML page; equal content gives equal text."""
    best = best_arm(content.arms)
    best_name = best.name if best else ""
    chosen, unit = content.selection, content.unit
    sources = source_shares(chosen)
    shares = charted([share for _, share in sources])
    return _page(
        "page.html",
        content.title,
        content.created,
        report=content,
        selection=chosen,
        arms={arm.name: arm for arm in content.arms},
        best=best,
        sources=listed(sources),
        shown_prompts=_SHOWN_PROMPTS,
        digits=wording.arm_decimals(content.arms),
        score_digits=wording.decimals(chosen.candidate_scores, 3),
        counted=unit == NATS,
        explained=wording.EXPLAINED.get(unit, ""),
        longest_stage=max((stage.seconds for stage in content.stages), default=0) or 1.0,
        charts={
            "arms": [
                figures.arms(content.arms, best_name, content.unit, w) for w in (WIDE, NARROW)
            ],
            "curves": [figures.curves(content.curves, content.unit, w) for w in (WIDE, NARROW)],
            "sources": [selection_figures.sources(shares, w) for w in (WIDE, NARROW)],
            "scores": [selection_figures.scores(chosen.candidate_scores, chosen.selected_scores)],
            "weights": [
                selection_figures.weights(chosen.selected_weights, chosen.effective_sample_size)
            ],
        },
    )


def render_changes(changes: Changes, run: str, created: str) -> str:
    """Return what a selection changed as a page like the report.

    Args:
        changes: since the selection that an adapter was last trained on.
        run: its name.
        created: when, see ``made_now``.
    """
    return _page(
        "changes.html",
        f"{run}, selected again",
        created,
        changes=changes,
        score_digits=wording.decimals((e.score for e in changes.came + changes.went), 3),
    )


def _page(template: str, title: str, created: str, **content: Any) -> str:
    """Fill a template that stands in ``frame.html``."""
    environment = Environment(
        loader=PackageLoader("albat_core.report", ""),
        autoescape=True,  # every text of the data is somebody else's
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        fixed=wording.fixed,
        signed=wording.signed,
        between=wording.between,
        rounded=wording.rounded,
        whole=wording.whole,
        percent=wording.percent,
        times=wording.times,
        duration=wording.duration,
        verdict=verdict,
        caution=wording.caution,
        metric_decimals=wording.metric_decimals,
        passage=passage,
        quantity=quantity,
        digest=_digest,
        decision=wording.decision,
        changes_table=wording.changes_table,
    )
    page = environment.get_template(template).render(
        title=title,
        created=created,
        css=_own("page.css"),
        dark_css=_own("dark.css"),
        shown_examples=_SHOWN_EXAMPLES,
        **content,
    )
    return page.rstrip() + "\n"


def _visible(value: Any) -> Any:
    """Return what is printed in a page, control characters as pictures of them."""
    if not isinstance(value, str):
        return value
    shown = value.translate(_PICTURED)
    return Markup(shown) if isinstance(value, Markup) else shown  # noqa: S704 - as it was


def best_arm(arms: Sequence[Arm]) -> Arm | None:
    """Return the arm of the lowest finite loss.

    Training on all of the adaptation data is what the others are measured against, not one of
    them: it comes first only if nothing else was run.
    """
    ranked = [arm for arm in arms if math.isfinite(arm.loss.value)]
    return min(ranked, key=lambda arm: (arm.name == "all_data", arm.loss.value), default=None)


def verdict(gain: Interval | None) -> str:
    """Return ``better``, ``worse`` or ``even``: which side of 0 the whole interval lies on."""
    if gain is None:
        return ""
    return "better" if gain.low > 0 else "worse" if gain.high < 0 else "even"


def source_shares(selection: Selection) -> list[tuple[SourceCount, SourceShare]]:
    """Return each source with its shares, the largest weight first."""
    rows = sum(source.corpus for source in selection.sources)
    shares = []
    for source in selection.sources:
        corpus = source.corpus / rows if rows else 0.0
        enrichment = source.weight / corpus if corpus else None
        share = SourceShare(source.source, corpus, source.weight, enrichment)
        shares.append((source, share))
    return sorted(shares, key=lambda pair: (-pair[1].weight, -pair[1].corpus, pair[1].source))


def charted(shares: Sequence[SourceShare]) -> list[SourceShare]:
    """Return the shares to draw: the first few, the many small ones taken together."""
    if len(shares) <= _CHARTED_SOURCES:
        return list(shares)
    return [*shares[: _CHARTED_SOURCES - 1], _together(shares[_CHARTED_SOURCES - 1 :])]


def listed(
    sources: Sequence[tuple[SourceCount, SourceShare]],
) -> list[tuple[SourceCount, SourceShare]]:
    """Return the sources of the table: the first ones, the many small ones taken together."""
    if len(sources) <= _LISTED_SOURCES:
        return list(sources)
    rest = sources[_LISTED_SOURCES - 1 :]
    share = _together([share for _, share in rest])
    counts = [source for source, _ in rest]
    together = SourceCount(
        source=share.source,
        corpus=sum(c.corpus for c in counts),
        candidates=sum(c.candidates for c in counts),
        selected=sum(c.selected for c in counts),
        weight=share.weight,
    )
    return [*sources[: _LISTED_SOURCES - 1], (together, share)]


def _together(shares: Sequence[SourceShare]) -> SourceShare:
    corpus, weight = sum(s.corpus for s in shares), sum(s.weight for s in shares)
    enrichment = weight / corpus if corpus else None
    return SourceShare(f"{len(shares):,} other sources", corpus, weight, enrichment)


def passage(text: str) -> Passage:
    """Return a text as it is shown: whole if short, else its beginning and the rest to unfold."""
    if len(text) <= _EXCERPT * 1.25:  # folding away a few words helps nobody
        return Passage(text, "", 0)
    beginning = text[:_EXCERPT]
    space = beginning.rfind(" ", _EXCERPT // 2)
    excerpt = (beginning[:space] if space > 0 else beginning).rstrip() + " …"
    return Passage(excerpt, text[:_LONGEST], max(0, len(text) - _LONGEST))


def quantity(value: str | int | float) -> str:
    """Return a value of an open list: whole numbers in full, others rounded, words as they are."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return wording.whole(value)
    return wording.fixed(value) if abs(value) <= 1 else wording.rounded(value)  # shares: 1.000


def _digest(script: str) -> str:
    """Return the digest by which the page's policy lets its own script run and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _own(name: str) -> Markup:
    """Return a style sheet of this package, to stand in the page as it is."""
    text = files(__package__ or "").joinpath(name).read_text(encoding="utf-8")
    return Markup(text.strip())  # noqa: S704 - this package's own file
