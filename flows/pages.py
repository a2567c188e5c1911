"""What a run came to, on Prefect's Artifacts page: one history for each run's name."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.logging import get_run_logger

from albat_core.records.runs import ALBAT
from albat_core.redaction import redacted
from albat_core.report.content import Arm, PixelError, SelectedExample
from albat_core.report.gathering import compare_arms, headline, loss_unit
from albat_core.report.showing import most_useful, read_changes
from albat_core.report.verdict import expected, verdict
from albat_core.report.wording import (
    arm_decimals,
    between,
    caution,
    decimals,
    fixed,
    metric_decimals,
    percent,
    signed,
    told,
    whole,
)
from albat_core.runs.chain import Chain
from albat_core.stages.report import read_results
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from flows.local.showing import address_of

_LONGEST = 300  # characters of an example that are shown


def publish_run(chain: Chain, places: Mapping[str, str]) -> None:
    """Show results, verdict, selected examples and report of a run that has its report.

    Args:
        chain: of the run.
        places: where results were put, by name.
    """
    config = chain.config
    content = read_results(ArtifactStore(config.runtime.root), chain.report)
    outcome = [content.headline, caution(content.arms), content.verdict]
    _show(config.name, "verdict", create_markdown_artifact, "\n\n".join(filter(None, outcome)))
    compared = results(content.arms, content.unit)
    if content.pixel_errors:
        compared += f"\n\n{pixel_table(content.pixel_errors)}"
    _show(config.name, "results", create_markdown_artifact, compared)
    examples = selected_examples(content.selection.most_useful)
    _show(config.name, "examples", create_table_artifact, examples)
    _show(config.name, "report", create_link_artifact, link(places["report"]))


def publish_results(chain: Chain) -> None:
    """Show how the arms compare."""
    store, config = ArtifactStore(chain.config.runtime.root), chain.config
    arms, unit = (
        compare_arms(store, chain.arms.runs, config.seed),
        loss_unit(store, chain.arms.runs),
    )
    computed = config.mixture.alpha == "auto"
    outlook = expected(chain.facts(chain.estimate)) if computed else None
    outcome = [headline(arms, unit, chain.alpha, outlook), caution(arms)]
    _show(config.name, "verdict", create_markdown_artifact, "\n\n".join(filter(None, outcome)))
    _show(config.name, "results", create_markdown_artifact, results(arms, unit))


def publish_selection(chain: Chain, *, worth: bool) -> None:
    """Show the selected examples and what they are expected to be worth.

    Args:
        chain: of the run.
        worth: whether that is known where alpha is computed; else it would have to be.
    """
    store, config = ArtifactStore(chain.config.runtime.root), chain.config
    if worth and config.mixture.alpha == "auto":
        text = verdict(chain.facts(chain.estimate))
        _show(config.name, "verdict", create_markdown_artifact, text)
    examples = selected_examples(most_useful(store, chain.selection, chain.inputs.adaptation))
    _show(config.name, "examples", create_table_artifact, examples)


def publish_changes(chain: Chain, changes: ArtifactRef, places: Mapping[str, str]) -> None:
    """Show what a re-selection changed, and whether a new fine-tuning is worth it.

    Args:
        chain: of the run.
        changes: between the selections.
        places: where results were put, by name.
    """
    store, config = ArtifactStore(chain.config.runtime.root), chain.config
    page = link(places["changes"])
    text = f"{told(read_changes(store, changes))}\n[Rows that came and went]({page})\n"
    _show(config.name, "changes", create_markdown_artifact, text)


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
    lines = [
        f"| held-out answers | {title}, higher is better | 95% interval "
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


def selected_examples(examples: Sequence[SelectedExample]) -> list[dict[str, Any]]:
    """Return selected examples as rows of a table, best first, long texts cut."""
    digits = decimals((e.score for e in examples), 3)
    return [
        {
            "example": example.example_id,
            "source": example.source,
            "score": signed(example.score, digits),
            "weight": percent(example.weight),
            "text": _cut(example.text),
            "nearest of yours": example.nearest_id or "",
            "similarity": fixed(example.similarity, 2),
            "its text": _cut(example.nearest_text or ""),
        }
        for example in examples
    ]


def link(place: str) -> str:
    """Return the address of a page, local or remote; over http where `albat up` serves it."""
    if storage.is_remote(place):
        return place
    page = Path(place).resolve()
    return address_of(page) or page.as_uri()


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST].rsplit(maxsplit=1)[0] + " …"


def _show(run: str, what: str, create: Callable[..., object], content: Any) -> None:
    """Put content on the page; the run has its results also where that fails."""
    key = re.sub("[^a-z0-9]+", "-", f"{run}-{what}".lower()).strip("-")
    try:
        shown = redacted(content) if isinstance(content, str) else content
        create(shown, key=key, description=f"{what} of {run}")
    except Exception as error:
        get_run_logger().warning("%s of %s cannot be shown: %s", what, run, error)
