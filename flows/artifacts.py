"""What a run came to, on Prefect's Artifacts page: one history for each run's name."""

import re
from collections.abc import Mapping, Sequence

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from albat_core.artifacts import ArtifactStore
from albat_core.chain import Chain
from albat_core.report.content import Arm, SelectedExample
from albat_core.report.gathering import MAIN, compare_arms, headline, loss_unit
from albat_core.report.showing import most_useful
from albat_core.report.wording import (
    arm_decimals,
    between,
    decimals,
    fixed,
    percent,
    signed,
    whole,
)
from albat_core.report.writing import read_results
from albat_core.verdict import verdict

_LONGEST = 600  # characters of an example that are shown


def publish_run(chain: Chain, places: Mapping[str, str]) -> None:
    """Show results, verdict, selected examples and places of a run that has its report."""
    config = chain.config
    content = read_results(ArtifactStore(config.runtime.root), chain.report)
    _show(config.name, "results", results_text(content.arms, content.unit))
    if content.verdict:
        _show(config.name, "verdict", content.verdict)
    _show(config.name, "examples", examples_text(content.selection.most_useful))
    _show(config.name, "places", places_text(places))


def publish_results(chain: Chain) -> None:
    """Show how the arms compare."""
    store, config = ArtifactStore(chain.config.runtime.root), chain.config
    arms = compare_arms(store, chain.arms, config.seed)
    _show(config.name, "results", results_text(arms, loss_unit(store, chain.arms)))


def publish_selection(chain: Chain, *, worth: bool) -> None:
    """Show selected examples and, where it was computed, what they are expected to be worth.

    Args:
        chain: of the run.
        worth: whether the verdict is shown too, where alpha is computed; else it is computed.
    """
    store, config = ArtifactStore(chain.config.runtime.root), chain.config
    if worth and config.mixture.alpha == "auto":
        _show(config.name, "verdict", verdict(chain.facts(chain.mixing)))
    examples = most_useful(store, chain.selection, chain.adaptation)
    _show(config.name, "examples", examples_text(examples))


def results_text(arms: Sequence[Arm], unit: str) -> str:
    """Return the comparison of the arms as Markdown: the headline and a table."""
    digits = arm_decimals(arms)
    lines = [
        f"**{headline(arms, unit)}**",
        "",
        f"| held-out loss, {unit} | loss | 95% interval | gain | 95% interval | rows |",
        "|---|---:|---|---:|---|---:|",
    ]
    for arm in arms:
        gain = ("", "") if arm.gain is None else (
            signed(arm.gain.value, digits),
            between(arm.gain, digits),
        )  # fmt: skip
        cells = (
            f"**{arm.label}**" if arm.name == MAIN else arm.label,
            fixed(arm.loss.value, digits),
            between(arm.loss, digits),
            *gain,
            whole(arm.adaptation_rows + arm.backbone_rows),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Gains are over adaptation data only; above 0 is better."])


def examples_text(examples: Sequence[SelectedExample]) -> str:
    """Return selected examples as Markdown, best first, long ones cut."""
    digits = decimals((e.score for e in examples), 3)
    parts = ["The selected examples with the highest scores, each with the nearest of yours."]
    for place, example in enumerate(examples, start=1):
        told = [
            f"from {example.source}",
            f"score {signed(example.score, digits)}",
            f"weight {percent(example.weight)}",
            f"similarity {fixed(example.similarity, 2)}",
        ]
        parts.append(f"### {place}. `{example.example_id}`")
        parts.append(", ".join(told))
        parts.append(_fenced(example.text))
        if example.nearest_text:
            parts += [f"Near `{example.nearest_id}`:", _fenced(example.nearest_text)]
    return "\n\n".join(parts)


def places_text(places: Mapping[str, str]) -> str:
    """Return where results are as Markdown; browsers open web addresses only from such a page."""
    web = ("http://", "https://")
    shown = {n: place if place.startswith(web) else f"`{place}`" for n, place in places.items()}
    return "\n".join(f"- {name}: {place}" for name, place in shown.items())


def _fenced(text: str) -> str:
    """Return a text as it is, in a code block that it cannot end."""
    if len(text) > _LONGEST:
        text = text[:_LONGEST].rsplit(maxsplit=1)[0] + " …"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(longest + 1, 3)
    return f"{fence}text\n{text}\n{fence}"


def _show(run: str, what: str, text: str) -> None:
    """Put a text on the page; the run has its results also where that fails."""
    key = re.sub("[^a-z0-9]+", "-", f"{run}-{what}".lower())
    try:
        create_markdown_artifact(text, key=key, description=f"{what} of {run}")
    except Exception as error:
        get_run_logger().warning("%s of %s cannot be shown: %s", what, run, error)
