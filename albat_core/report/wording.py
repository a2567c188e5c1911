"""Numbers in the words of the report; what is not there or not finite is a dash."""

import math
from collections.abc import Iterable, Sequence
from statistics import median

from albat_core.report.content import NATS, Arm, Changes, Interval, PixelError

NOTHING = "–"

_FEW_DOCUMENTS = 10
"""Held-out documents below which a bootstrap over them is not relied on."""

EXPLAINED = {
    NATS: "How surprised the model is by the next token, on average; lower is better. Perplexity "
    "is the same number on another scale: e to the power of the loss. A gain of 0.10 nats makes "
    "the held-out text about 10% more probable per token.",
    "squared error per latent value": "How far the model is off when it tells noise from picture, "
    "on average over noise levels; lower is better. Every arm meets the same noise. Much of this "
    "loss no model can avoid, so small gains may be plain to see in what is drawn: look at the "
    "samples too.",
}
"""What a unit of loss means."""


def decimals(values: Iterable[float | None], significant: int) -> int:
    """Return the digits behind the point that show numbers of this size, 3 to 9.

    Args:
        values: numbers that are written alike; what is not finite or 0 does not count.
        significant: digits that their median gets, the first that is not 0 included.
    """
    sizes = [abs(v) for v in values if v is not None and math.isfinite(v) and v]
    if not sizes:
        return 3
    return min(max(significant - 1 - math.floor(math.log10(median(sizes))), 3), 9)


def loss_decimals(losses: Iterable[float | None]) -> int:
    """Return the digits behind the point of losses: 2.521, 0.08342."""
    return decimals(losses, 4)


def arm_decimals(arms: Iterable[Arm]) -> int:
    """Return the digits behind the point of arms' losses and gains, so many that intervals show."""
    arms = list(arms)
    widths = [a.gain.high - a.gain.low for a in arms if a.gain is not None]
    return max(loss_decimals(a.loss.value for a in arms), decimals(widths, 1))


def metric_decimals(arms: Iterable[Arm], place: int) -> int:
    """Return the digits behind the point of what arms' metric at a place of their lists says."""
    return decimals((arm.metrics[place].value.value for arm in arms), 3)


def in_unit(value: float, unit: str, digits: int) -> str:
    """Return ``2.521 nats per token`` or ``0.08342 (squared error per latent value)``."""
    counted = unit.startswith("nats")
    return f"{fixed(value, digits)} {unit}" if counted else f"{fixed(value, digits)} ({unit})"


def fixed(value: float | None, digits: int = 3) -> str:
    """Return ``2.521``, with a true minus sign."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """Return ``+0.241``, ``−0.020`` or ``0.000``."""
    text = fixed(value, digits)
    return f"+{text}" if text.strip("0.,") and text[0] not in f"−{NOTHING}" else text


def between(interval: Interval | None, digits: int = 3) -> str:
    """Return ``2.471 to 2.569``: words, because a dash between negative numbers misleads."""
    if interval is None or not (math.isfinite(interval.low) or math.isfinite(interval.high)):
        return NOTHING
    return f"{fixed(interval.low, digits)} to {fixed(interval.high, digits)}"


def rounded(value: float | None) -> str:
    """Return a number that may have any size with three significant digits."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if abs(value) >= 1e7:
        power = math.floor(math.log10(abs(value)))
        return f"{fixed(value / 10.0**power, 1)}e{power}"
    if abs(value) >= 999.5:
        return fixed(value, 0)
    return f"{value:#.3g}".rstrip(".").replace("-", "−")  # 12.0, not 12


def whole(value: int | float | None) -> str:
    """Return ``45,310``."""
    return fixed(value, 0)


def percent(share: float | None) -> str:
    """Return ``62%``, ``4.1%`` or ``0.31%``: two digits that say something."""
    if share is None or not math.isfinite(share):
        return NOTHING
    size = abs(share)
    if 0.99 < size < 1:
        return fixed(math.floor(1000 * share) / 10, 1) + "%"  # nearly all is not all
    digits = 0 if size >= 0.1 or size == 0 else 1 if size >= 0.01 else 2
    if 0 < size < 0.00005:
        return "< 0.01%"
    return fixed(100 * share, digits) + "%"


def times(factor: float | None) -> str:
    """Return ``×9.4``, ``×0.31`` or, where there is next to nothing, ``< ×0.01``."""
    if factor is None or not math.isfinite(factor):
        return NOTHING
    if 0 < factor < 0.01:
        return "< ×0.01"
    digits = 0 if factor >= 100 or factor == 0 else 1 if factor >= 1 else 2
    return "×" + fixed(factor, digits)


def duration(seconds: float | None) -> str:
    """Return ``0.4 s``, ``48 s``, ``3 min 05 s`` or ``1 h 04 min``."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def progress(label: str, done: int, total: int, unit: str) -> str:
    """Return ``embed: 1,200 of 20,000 rows``."""
    return f"{label}: {whole(done)} of {whole(total)} {unit}"


def pace(label: str, done: int, total: int, unit: str, seconds: float) -> str:
    """Return ``embed: 1,200 of 20,000 rows, 34.5 a second, 9 min 05 s left``.

    Args:
        label: names the work.
        done: units so far.
        total: of them.
        unit: what they are.
        seconds: since it began.
    """
    words = progress(label, done, total, unit)
    if not done or seconds <= 0:
        return words
    left = duration((total - done) * seconds / done)
    return f"{words}, {rounded(done / seconds)} a second, {left} left"


def caution(arms: Sequence[Arm], drawn: Sequence[PixelError] = ()) -> str | None:
    """Return a warning where too few documents are held out for intervals to be relied on.

    Args:
        arms: what is shown of them.
        drawn: their errors in held-out pictures.
    """
    documents = min((arm.documents for arm in arms), default=_FEW_DOCUMENTS)
    if documents >= _FEW_DOCUMENTS:
        return _caution_of_few(arms, drawn)
    if documents == 1:
        held_out = "1 document is held out, so no interval can say how sure these numbers are"
    else:
        held_out = (
            f"only {documents} documents are held out, and intervals from so few are mostly too "
            "narrow"
        )
    return (
        f"Caution: {held_out}. Hold out {_FEW_DOCUMENTS} or more (split.test, heldout) before "
        "relying on a difference."
    )


def _caution_of_few(arms: Sequence[Arm], drawn: Sequence[PixelError]) -> str | None:
    """Return the same where only answers or drawings are of few of the held-out documents."""
    answered = [m.documents for arm in arms for m in arm.metrics if m.documents is not None]
    shown = [each.documents for each in drawn if each.documents is not None]
    for what, counts, remedy in (
        ("answers", answered, "prompts in them, evaluation.answers, evaluation.task_limit"),
        ("drawings", shown, "samples.heldout"),
    ):
        if counts and (least := min(counts)) < _FEW_DOCUMENTS:
            documents = "1 held-out document" if least == 1 else f"{least} held-out documents"
            return (
                f"Caution: {what} are of {documents} only, and their intervals are mostly too "
                f"narrow. Have {_FEW_DOCUMENTS} or more ({remedy}) before relying on a difference."
            )
    return None


def decision(changes: Changes) -> str:
    """Return in a sentence whether what a selection changed is worth a new fine-tuning."""
    decided = "a new fine-tuning is worth it" if changes.worth else "no new fine-tuning is needed"
    return (
        f"{changes.moved:.1%} of the objective's weight is on other rows than before "
        f"(reselection.threshold: {changes.threshold:.1%}): {decided}."
    )


def changes_table(changes: Changes) -> list[tuple[str, ...]]:
    """Return what a selection changed as rows of a table, the first of them its heading."""
    roles = (("Adaptation rows", changes.adaptation), ("Selected rows", changes.backbone))
    values = (
        ("Mixing weight α", fixed, *changes.alpha),
        ("Predicted data multiplier", times, *changes.multiplier),
    )
    return [
        ("", "Before", "Out", "In", "Now"),
        *(
            (name, *map(whole, (rows.before, len(rows.left), len(rows.entered), rows.now)))
            for name, rows in roles
        ),
        *(
            (name, say(old), "", "", say(new))
            for name, say, old, new in values
            if old is not None or new is not None
        ),
    ]


def told(changes: Changes) -> str:
    """Return what a selection changed, as Markdown."""
    heading, *rows = (f"| {' | '.join(row)} |" for row in changes_table(changes))
    return "\n".join([decision(changes), "", heading, "|---|---:|---:|---:|---:|", *rows, ""])


def markdown_cell(name: str) -> str:
    """Return a name as a cell of a table in Markdown has it."""
    return " ".join(name.split()).replace("|", r"\|")
