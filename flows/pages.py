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

from albat_core.redaction import redacted
from albat_core.report.content import SelectedExample
from albat_core.report.gathering import compare_arms, headline, loss_unit
from albat_core.report.markdown import pixel_table, results
from albat_core.report.showing import most_useful, read_changes
from albat_core.report.verdict import expected, verdict
from albat_core.report.wording import (
    caution,
    decimals,
    fixed,
    percent,
    signed,
    told,
)
from albat_core.runs.chain import Chain
from albat_core.stages.report import read_results
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from flows.local.showing import address_of
from flows.running.own_process import was_asked_again

_LONGEST = 300  # characters of an example that are shown
_Page = tuple[str, Callable[..., object], Any]
"""What it is, what makes an artifact of it, and its content."""


def publish_run(chain: Chain, places: Mapping[str, str]) -> None:
    """Show results, verdict, selected examples and report of a run that has its report.

    Args:
        chain: of the run.
        places: where results were put, by name.
    """
    config = chain.config
    content = read_results(ArtifactStore(config.runtime.root), chain.report)
    outcome = [content.headline, caution(content.arms, content.pixel_errors), content.verdict]
    compared = results(content.arms, content.unit)
    if content.pixel_errors:
        compared += f"\n\n{pixel_table(content.pixel_errors)}"
    _show(
        config.name,
        ("verdict", create_markdown_artifact, "\n\n".join(filter(None, outcome))),
        ("results", create_markdown_artifact, compared),
        ("examples", create_table_artifact, selected_examples(content.selection.most_useful)),
        ("report", create_link_artifact, link(places["report"])),
    )


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
    _show(
        config.name,
        ("verdict", create_markdown_artifact, "\n\n".join(filter(None, outcome))),
        ("results", create_markdown_artifact, results(arms, unit)),
    )


def publish_selection(chain: Chain, *, worth: bool) -> None:
    """Show the selected examples and what they are expected to be worth.

    Args:
        chain: of the run.
        worth: whether that is known where alpha is computed; else it would have to be.
    """
    store, config = ArtifactStore(chain.config.runtime.root), chain.config
    examples = selected_examples(most_useful(store, chain.selection, chain.inputs.adaptation))
    pages: list[_Page] = [("examples", create_table_artifact, examples)]
    if worth and config.mixture.alpha == "auto":
        text = verdict(chain.facts(chain.estimate))
        pages.insert(0, ("verdict", create_markdown_artifact, text))
    _show(config.name, *pages)


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
    _show(config.name, ("changes", create_markdown_artifact, text))


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


def _show(run: str, *pages: _Page) -> None:
    """Put content on pages; the run has its results also where that fails.

    Where the server did not answer for as long as Prefect asks, the rest is not asked for: each
    would take as long again.
    """
    for what, create, content in pages:
        key = re.sub("[^a-z0-9]+", "-", f"{run}-{what}".lower()).strip("-")
        try:
            shown = redacted(content) if isinstance(content, str) else content
            create(shown, key=key, description=f"{what} of {run}")
        except Exception as error:
            get_run_logger().warning("%s of %s cannot be shown: %s", what, run, error)
            if was_asked_again(error):
                break
