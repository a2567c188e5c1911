"""A sheet to draw on with matplotlib, given out as inline SVG that the page colours."""

import io
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Colours that stand for a CSS variable of the page. Matplotlib knows only real colours and the
# page wants to recolour a chart in the dark, so each of these is exchanged in the finished SVG.
INK = "#a1ba00"
MUTED = "#a1ba01"
RULE = "#a1ba02"
PAPER = "#a1ba03"
POOL = "#a1ba04"
SOFT = "#a1ba05"
ARM_ALBAT = "#a1ba10"
ARM_ADAPTATION = "#a1ba11"
ARM_RANDOM = "#a1ba12"
ARM_UNTOUCHED = "#a1ba13"
ARM_ALL = "#a1ba14"
ARM_OTHER = "#a1ba15"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    PAPER: "--paper",
    POOL: "--pool",
    SOFT: "--accent-soft",
    ARM_ALBAT: "--arm-albat",
    ARM_ADAPTATION: "--arm-adaptation",
    ARM_RANDOM: "--arm-random",
    ARM_UNTOUCHED: "--arm-untouched",
    ARM_ALL: "--arm-all",
    ARM_OTHER: "--arm-other",
}

WIDE, HALF, NARROW = 920, 390, 350
"""Widths of a chart in CSS pixels: the page's, that of one chart of two, a phone's."""

LABEL = 13.0
"""Size of a label in CSS pixels; ticks are one smaller."""

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "albat",  # else the ids inside the SVG differ at every drawing
    "text.parse_math": False,  # a `$` in a source's name is a dollar
    "font.family": "DejaVu Sans",  # comes with matplotlib, so equal everywhere; never shown
}
# Matplotlib's settings belong to the process: one drawing at a time.
_LOCK = threading.RLock()

_TAG = re.compile(r"<[^<>]+>")
_ID = re.compile(r'\sid="([^"]+)"')
_REFERENCE = re.compile(r'(url\(#|href="#)([^)"]+)')
_FAMILY = re.compile(r"font-family: [^;\"]+;? ?")
# Matplotlib 3.10 writes weight, size and family in one; later releases write them one by one.
_SHORTHAND = re.compile(r"font: (\d+ )?([\d.]+px) [^;\"]+")
_COLOUR = re.compile("|".join(_VARIABLES))


class Sheet:
    """A figure measured in CSS pixels from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width = width
        self.height = height
        # At 72 dots an inch matplotlib's point is one unit of the SVG, one CSS pixel.
        self._figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self._figure.patch.set_visible(False)

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Return bare axes: no frame, no background, pale grid along x."""
        axes = self._figure.add_axes(
            (
                left / self.width,
                1 - (top + height) / self.height,
                width / self.width,
                height / self.height,
            )
        )
        axes.patch.set_visible(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0, pad=6, labelsize=LABEL - 1, labelcolor=MUTED)
        axes.grid(axis="x", color=RULE, linewidth=1)
        axes.set_axisbelow(True)
        return axes

    def svg(self, name: str, description: str, kind: str) -> Markup:
        """Return what was drawn as an ``<svg>`` element to stand in a page.

        Args:
            name: prefix of its ids, unique in the page.
            description: what the chart says, for whoever does not see it.
            kind: CSS class beside ``chart``.
        """
        canvas: Any = FigureCanvasSVG(self._figure)
        drawn = io.StringIO()
        with warnings.catch_warnings():
            # The page's fonts show the text; that matplotlib's has no such letter is no matter.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            canvas.print_svg(drawn, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        size = f'viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}"'
        opening = f'<svg class="chart {escape(kind)}" role="img" {size} height="{self.height:g}"'
        body = _inline(drawn.getvalue(), name)
        label = escape(description)
        return Markup(f'{opening} aria-label="{label}">{body}</svg>')  # noqa: S704 - escaped above


@contextmanager
def sheet(width: float, height: float) -> Iterator[Sheet]:
    """Give a sheet to draw on, under this module's settings whatever the process has set."""
    with _LOCK, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield Sheet(width, height)


def _inline(document: str, name: str) -> str:
    """Return the inside of an SVG document, fit to stand in a page beside others."""
    body = document[document.index(">", document.index("<svg")) + 1 : document.rindex("</svg>")]
    # Its style sheet would rule the whole page; page.css says the same of charts alone.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    kept = {target for _, target in _REFERENCE.findall(body)}

    def clean(found: re.Match[str]) -> str:
        tag = _ID.sub(lambda i: f' id="{name}-{i[1]}"' if i[1] in kept else "", found[0])
        tag = _REFERENCE.sub(rf"\1{name}-\2", tag).replace("xlink:href", "href")
        tag = _FAMILY.sub("", _SHORTHAND.sub(_separate, tag))
        return _COLOUR.sub(lambda c: f"var({_VARIABLES[c[0]]})", tag)

    # Only inside tags: matplotlib escapes the text between them, and text may say anything.
    return re.sub(r"\s*\n\s*", "\n", _TAG.sub(clean, body))


def _separate(font: re.Match[str]) -> str:
    weight = f"font-weight: {font[1].strip()}; " if font[1] else ""
    return f"{weight}font-size: {font[2]}"


def write(axes: Any, text: str, at: tuple[float, float], **style: Any) -> None:
    """Write one line of text at a point of the axes.

    Args:
        axes: where to.
        text: taken as it is, whatever it says.
        at: the point, in the units of ``within``.
        style: matplotlib's text properties; besides ``within`` (``data``, ``axes`` or
            ``row``: x as share of the axes, y in data), ``shift`` (x, y) in pixels, y upward.
    """
    within = style.pop("within", "data")
    coordinates = {
        "data": "data",
        "axes": "axes fraction",
        "row": axes.get_yaxis_transform(),
    }[within]
    shift = style.pop("shift", (0.0, 0.0))
    defaults = {"fontsize": LABEL, "color": INK, "va": "center_baseline", "ha": "left"}
    axes.annotate(
        text,
        xy=at,
        xycoords=coordinates,
        xytext=shift,
        textcoords="offset points",
        annotation_clip=False,
        **(defaults | style),
    )


def heading(axes: Any, text: str, left: float = 0.0) -> None:
    """Write what the axes show above them, ``left`` pixels to the left of their edge."""
    write(axes, text, (0.0, 1.0), within="axes", shift=(-left, 16), color=MUTED, fontsize=LABEL - 1)


def axis_name(axes: Any, text: str) -> None:
    """Write what the x axis is below its ticks."""
    style = {"ha": "center", "color": MUTED, "fontsize": LABEL - 1}
    write(axes, text, (0.5, 0.0), within="axes", shift=(0, -36), **style)


def row_label(axes: Any, text: str, row: int, *, stacked: bool, bold: bool) -> None:
    """Write a row's name: left of the axes, or above the row where there is no room."""
    style = {"within": "row", "fontweight": "bold" if bold else "normal"}
    if stacked:
        name = one_line(text, 38)
        write(axes, name, (0.0, float(row)), shift=(0, 16), **style)
        return
    lines = two_lines(text, 25)
    for number, line in enumerate(lines):
        up = 8 * (len(lines) - 1 - 2 * number)
        write(axes, line, (0.0, float(row)), shift=(-18, up), ha="right", **style)


def ticks(axis: Any, count: int) -> None:
    """Have at most ``count`` round ticks on an axis, written out in full."""
    axis.set_major_locator(MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10]))
    axis.get_major_formatter().set_useOffset(False)
    axis.get_major_formatter().set_scientific(False)


def one_line(text: str, letters: int) -> str:
    """Return ``text`` on one line without control characters, cut to ``letters``."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= letters else line[: letters - 1].rstrip() + "…"


def two_lines(text: str, letters: int) -> list[str]:
    """Return ``text`` on at most two lines of ``letters``, broken between words if it can be."""
    line = one_line(text, 2 * letters)
    if len(line) <= letters:
        return [line]
    cut = line.rfind(" ", 0, letters + 1)
    cut = cut if cut > 0 else letters
    return [line[:cut].rstrip(), one_line(line[cut:], letters)]


def limits(values: Iterable[float], room: float) -> tuple[float, float]:
    """Return the range of the values with ``room`` times its length left on either side."""
    values = list(values)
    low, high = min(values), max(values)
    span = (high - low) or max(abs(high), 1.0) * 0.1
    return low - room * span, high + room * span


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return the positions moved as little as can be to stand ``gap`` apart in [low, high].

    Order is kept, and the sum of squared moves is least. Where there is no room for all, the
    gap is made smaller.
    """
    if len(positions) > 1:
        gap = min(gap, (high - low) / (len(positions) - 1))
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    # With i gaps taken off the i-th, "a gap apart" becomes "not descending": isotonic regression,
    # solved by merging neighbours that descend into blocks at their mean.
    blocks: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        mean, size = positions[i] - rank * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, members = blocks.pop()
            mean = (before * members + mean * size) / (members + size)
            size += members
        blocks.append((mean, size))
    room = high - gap * max(len(positions) - 1, 0)
    levels = [min(max(mean, low), room) for mean, size in blocks for _ in range(size)]
    placed = [0.0] * len(positions)
    for rank, i in enumerate(order):
        placed[i] = levels[rank] + rank * gap
    return placed
