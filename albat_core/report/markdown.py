"""Tables of the report in Markdown: for Prefect's pages, for trackers, for a model's card."""

from collections.abc import Sequence

from albat_core.records.runs import ALBAT
from albat_core.report.content import Arm, PixelError
from albat_core.report.wording import (
    arm_decimals,
    between,
    fixed,
    metric_decimals,
    signed,
    whole,
)


def results(arms: Sequence[Arm], unit: str) -> str:
    """Return the comparison of the arms as a table in Markdown."""
    digits = arm_decimals(arms)
    gains = [("gain over adaptation only", [arm.gain for arm in arms])]
    if any(arm.over_random for arm in arms):
        gains.append(("gain over random rows", [arm.over_random for arm in arms]))
    names = "".join(f" {name} | 95% interval |" for name, _ in gains)
    lines = [
        f"| held-out loss, {unit} | loss | 95% interval |{names} rows |",
        f"|---|---:|---|{'---:|---|' * len(gains)}---:|",
    ]
    for row, arm in enumerate(arms):
        compared = [each[row] for _, each in gains]
        cells = (
            f"**{arm.label}**" if arm.name == ALBAT else arm.label,
            fixed(arm.loss.value, digits),
            between(arm.loss, digits),
            *(
                said
                for gain in compared
                for said in ((signed(gain.value, digits), between(gain, digits)) if gain else "  ")
            ),
            whole(arm.adaptation_rows + arm.backbone_rows),
        )
        lines.append(f"| {' | '.join(cells)} |")
    for place, metric in enumerate(arms[0].metrics):
        lines += ["", *_metric_lines(arms, metric.title, place)]
    return "\n".join([*lines, "", "A gain above 0 is better; arms are paired by document."])


def _metric_lines(arms: Sequence[Arm], title: str, place: int) -> list[str]:
    """Return what the arms come to by a metric, given by its place in their lists."""
    digits = metric_decimals(arms, place)
    asked = "task of lm-eval" if arms[0].metrics[place].task else "held-out answers"
    lines = [
        f"| {asked} | {title}, higher is better | 95% interval "
        "| gain over adaptation only | 95% interval |",
        "|---|---:|---|---:|---|",
    ]
    for arm in arms:
        metric = arm.metrics[place]
        cells = (
            f"**{arm.label}**" if arm.name == ALBAT else arm.label,
            fixed(metric.value.value, digits),
            between(metric.value, digits),
            signed(metric.gain.value, digits) if metric.gain else "",
            between(metric.gain, digits) if metric.gain else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def pixel_table(arms: Sequence[PixelError]) -> str:
    """Return how far each arm's drawings are from held-out pictures as a table in Markdown."""
    lines = [
        "| held-out pictures, drawn anew | squared error of pixels | 95% interval "
        "| gain over adaptation only | 95% interval |",
        "|---|---:|---|---:|---|",
    ]
    for arm in arms:
        cells = (
            f"**{arm.label}**" if arm.name == ALBAT else arm.label,
            fixed(arm.error.value, 4),
            between(arm.error, 4),
            *((signed(arm.gain.value, 4), between(arm.gain, 4)) if arm.gain else "  "),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
