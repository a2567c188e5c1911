"""What commands tell a person: results, verdict, costs, artifacts, adapters."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.panel import Panel
from rich.table import Table

from albat_core.records.mixtures import RowChanges
from albat_core.report.content import Interval, PixelError, ReportContent
from albat_core.report.verdict import verdict_beforehand
from albat_core.report.wording import (
    NOTHING,
    arm_decimals,
    caution,
    decimals,
    duration,
    fixed,
    loss_decimals,
    metric_decimals,
    rounded,
    signed,
    whole,
)
from albat_core.runs.registry import Entry, flattened
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.manifests import Manifest
from flows.console import console, escape, in_bytes

if TYPE_CHECKING:
    from albat_core.runs.cost import StageCost

_SHOWN_ROWS = 5
_SHOWN_VALUES = 8


def _shown(interval: Interval, digits: int, number: Callable[[float, int], str] = fixed) -> str:
    low, high = number(interval.low, digits), number(interval.high, digits)
    return f"{number(interval.value, digits)} [dim]\\[{low}, {high}][/]"


def show_results(results: ReportContent) -> None:
    """Print the comparison of the arms."""
    digits = arm_decimals(results.arms)
    table = _arms_table("held-out", "loss")
    table.add_column("rows", justify="right", no_wrap=True)
    for arm in results.arms:
        table.add_row(
            escape(arm.label),
            _shown(arm.loss, digits),
            _shown(arm.gain, digits, signed) if arm.gain else "",
            f"{arm.adaptation_rows + arm.backbone_rows:,}",
            style="bold cyan" if arm.name == "albat" else "",
        )
    console.print()
    console.print(f"[dim]in {escape(results.unit)}, lower is better[/]")
    console.print(table)
    for place, metric in enumerate(results.arms[0].metrics):
        console.print(_metric_table(results, metric.title, place))
    if results.pixel_errors:
        _show_pixel_errors(results.pixel_errors)
    console.print(Panel(escape(results.headline), border_style="cyan", expand=False))
    if few := caution(results.arms, results.pixel_errors):
        console.print(f"[yellow]{escape(few)}[/]")


def _arms_table(arms: str, value: str) -> Table:
    """Return a table of arms: single spaces, so that four decimals fit into 80 columns."""
    table = Table(
        box=None, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold"
    )
    table.add_column(arms, no_wrap=True)
    table.add_column(f"{escape(value)} \\[95%]", justify="right", overflow="fold")
    table.add_column("gain [95%]", justify="right", no_wrap=True)
    return table


def _metric_table(results: ReportContent, title: str, place: int) -> Table:
    """Return what the arms come to by a metric, given by its place in their lists."""
    digits = metric_decimals(results.arms, place)
    table = _arms_table("higher is better", title)
    for arm in results.arms:
        metric = arm.metrics[place]
        table.add_row(
            escape(arm.label),
            _shown(metric.value, digits),
            _shown(metric.gain, digits, signed) if metric.gain else "",
            style="bold cyan" if arm.name == "albat" else "",
        )
    return table


def _show_pixel_errors(arms: Sequence[PixelError]) -> None:
    """Print how far each arm's drawings are from held-out pictures."""
    table = _arms_table("drawn anew", "error")
    for arm in arms:
        table.add_row(
            escape(arm.label),
            _shown(arm.error, 4),
            _shown(arm.gain, 4, signed) if arm.gain else "",
            style="bold cyan" if arm.name == "albat" else "",
        )
    console.print()
    console.print(f"[dim]{arms[0].pictures} held-out pictures, squared error of pixels, 0 to 1[/]")
    console.print(table)


def show_verdict(facts: Mapping[str, Any]) -> None:
    """Print whether the corpus is expected to be worth anything, before the run."""
    console.print(Panel(escape(verdict_beforehand(facts)), border_style="cyan", expand=False))


def show_costs(costs: Sequence["StageCost"], device: str) -> None:
    """Print what each stage of a run will take."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("stage", no_wrap=True)
    for title in ("time, up to", "memory"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column(overflow="fold", style="dim")
    for cost in costs:
        memory = in_bytes(cost.bytes) if cost.bytes else NOTHING
        table.add_row(cost.name, duration(cost.seconds), memory, cost.of)
    console.print(table)
    console.print(
        f"[dim]measured on {escape(device)} with a full batch of each; most trainings end before "
        "their last step; samples, answers and tasks are not counted[/]"
    )


def show_artifact(ref: ArtifactRef, manifest: Manifest, store: ArtifactStore) -> None:
    """Print what an artifact is."""
    size = in_bytes(sum(file.bytes for file in manifest.files))
    about = {
        "artifact": str(ref),
        "folder": store.place(ref),
        "made": f"{manifest.created[:16].replace('T', ' ')} UTC, in {duration(manifest.seconds)}",
        "rows": whole(manifest.rows),
        "size": f"{size} in {len(manifest.files)} file{'s' if len(manifest.files) > 1 else ''}",
        "with": ", ".join(f"{k} {v}" for k, v in manifest.versions.items()),
        "stage version": str(manifest.stage_version),
    }
    facts = {k: v for k, v in manifest.facts.items() if k != "history"}
    parts = {
        "": about,
        "settings": dict(flattened(manifest.config)),
        "made from": _named(manifest.inputs),
        "what came of it": _named(facts),
    }
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, entries in parts.items():
        if title and entries:
            table.add_row()
            table.add_row(f"[bold]{title}[/]")
        for name, value in entries.items():
            shown = value if not title else in_words(value, exact=title == "settings")
            table.add_row(escape(name), escape(shown))
    console.print(table)
    console.print(f"\n[bold]{'sha256':<64}  {'bytes':>15}  file[/]", soft_wrap=True)
    for file in manifest.files:  # no table, which would cut digests in a narrow terminal
        console.print(f"{file.sha256}  {file.bytes:>15,}  {escape(file.path)}", soft_wrap=True)


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by names that are words."""
    return {name.replace("_", " ").replace(".", ", "): v for name, v in flattened(values)}


def in_words(value: Any, *, exact: bool) -> str:
    """Return a value of a manifest as people write it.

    Args:
        value: a number, a text, or a list of them.
        exact: whether numbers keep all of their digits, as those of settings.
    """
    if value is None or value in ((), [], {}, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and not exact:
        return whole(value) if isinstance(value, int) else rounded(value)
    if isinstance(value, list | tuple):
        first = ", ".join(in_words(each, exact=exact) for each in value[:_SHOWN_VALUES])
        more = len(value) - _SHOWN_VALUES
        return f"{first} and {more:,} more" if more > 0 else first
    return str(value)


def show_adapters(entries: Sequence[Entry], aliases: Mapping[str, str]) -> None:
    """Print adapters, a line each; names are folded where the terminal is narrow."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("adapter", overflow="fold")
    table.add_column("made", no_wrap=True)
    table.add_column("alpha", justify="right", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("gain [95%]", justify="right", no_wrap=True)
    titles = list(dict.fromkeys(metric.title for entry in entries for metric in entry.metrics))
    for title in titles:
        table.add_column(escape(title), justify="right", overflow="fold")
    table.add_column("alias", overflow="fold")
    for entry in entries:
        meant = [n for n, key in aliases.items() if key == entry.adapter.key]
        loss, gain = entry.loss, entry.gain
        found = {metric.title: metric.value.value for metric in entry.metrics}
        digits = loss_decimals([loss.value]) if loss else 0
        if gain:
            digits = max(digits, decimals([gain.high - gain.low], 1))
        table.add_row(
            escape(entry.name),
            entry.created[:10],
            f"{entry.alpha:.2f}",
            fixed(loss.value, digits) if loss else "",
            _shown(gain, digits, signed) if gain else "" if loss else "not evaluated",
            *(fixed(found[t]) if t in found else "" for t in titles),
            escape(
                ", ".join(f"@{n.partition('@')[2]}" for n in meant if n.startswith(f"{entry.run}@"))
            ),
        )
    console.print(table)


def show_difference(
    before: Entry,
    after: Entry,
    settings: Mapping[str, tuple[Any, Any]],
    rows: Mapping[str, RowChanges],
) -> None:
    """Print how two adapters differ."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="bold")
    table.add_column("")
    table.add_column(escape(before.name), overflow="fold")
    table.add_column(escape(after.name), overflow="fold")
    for name in ("loss", "gain"):
        values = [getattr(entry, name) for entry in (before, after)]
        table.add_row(name, *(_shown(v, 4) if v else "not evaluated" for v in values))
    sides = [{m.title: m.value for m in entry.metrics} for entry in (before, after)]
    for title in dict.fromkeys([*sides[0], *sides[1]]):
        shown = (_shown(its[title], 4) if title in its else "not measured" for its in sides)
        table.add_row(escape(f"{title} (higher is better)"), *shown)
    table.add_row("alpha", f"{before.alpha:.3f}", f"{after.alpha:.3f}")
    for name, (old, new) in settings.items():
        table.add_row(escape(name), escape(str(old)), escape(str(new)))
    console.print(table)
    for role, change in rows.items():
        console.print(
            f"\n{role} rows: [green]{len(change.entered):,} in[/], "
            f"[red]{len(change.left):,} out[/], {change.stayed:,} stay"
        )
        for mark, ids in (("[green]+[/]", change.entered), ("[red]-[/]", change.left)):
            for example in ids[:_SHOWN_ROWS]:
                console.print(f"  {mark} {escape(example)}", soft_wrap=True)
            if len(ids) > _SHOWN_ROWS:
                console.print(f"    [dim]and {len(ids) - _SHOWN_ROWS:,} more[/]")
