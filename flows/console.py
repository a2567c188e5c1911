"""What a person sees in the terminal: progress, stages, results."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from albat_core.benchmark.arms import ARMS
from albat_core.errors import AlbatError, Interrupted
from albat_core.progress import Advance, Silent
from albat_core.records.mixtures import RowChanges
from albat_core.report.content import Interval, ReportContent
from albat_core.report.verdict import verdict
from albat_core.report.wording import arm_decimals, fixed, signed
from albat_core.runs.registry import Entry
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Manifest

_SHOWN_ROWS = 5

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        """Return the rate, or nothing while it is not known."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("", style="dim")
        return Text(f"{speed:,.{0 if speed >= 20 else 1}f} {task.fields['unit']}/s", style="dim")


class TerminalReporter:
    """Shows bars for work under way, and a line for each stage that is finished."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(style="cyan"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28, complete_style="cyan"),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._stopping = threading.Event()

    def __enter__(self) -> "TerminalReporter":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def stop(self) -> None:
        """Let work under way end at its next step."""
        if not self._stopping.is_set():
            self._stopping.set()
            console.print("[yellow]stopping at the next step; what is finished is kept[/]")

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Show a bar; see ``albat_core.progress.Reporter``."""
        task = self._progress.add_task(escape(label), total=total, unit=unit) if label else None

        def advance(done: int) -> None:
            if self._stopping.is_set():
                raise Interrupted("stopped", remedy="run the same command again to go on")
            if task is not None:
                self._progress.advance(task, done)

        try:
            yield advance
        finally:
            if task is not None:
                self._progress.remove_task(task)

    def announce(
        self, stage: str, rows: int, seconds: float, reused: bool, notes: Sequence[str]
    ) -> None:
        """Print a finished stage."""
        mark, time = ("[blue]=[/]", "reused") if reused else ("[green]✓[/]", f"{seconds:.1f} s")
        self._progress.console.print(
            f" {mark} {escape(stage):<42}[dim]{rows:>9,} rows {time:>9}[/]"
        )
        for note in notes:
            self._progress.console.print(f"     [yellow]{escape(note)}[/]")


class LineReporter(Silent):
    """Prints a line for each arm of a benchmark that is finished, from processes side by side."""

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Count arms, and nothing else."""
        finished = 0

        def advance(done: int) -> None:
            nonlocal finished
            finished += done
            if unit == ARMS:
                console.print(f" [green]✓[/] {escape(label)}: {finished} of {total} {unit}")

        yield advance


def show_error(error: AlbatError) -> None:
    """Print an error: what, where, and what to do."""
    where = f"[bold]{escape(error.where)}[/]: " if error.where else ""
    errors.print(f"[red]error:[/] {where}{escape(error.message)}")
    if error.remedy:
        errors.print(f"  [cyan]→ {escape(error.remedy)}[/]")


def show_note(note: str) -> None:
    """Print what is no mistake, but easily overlooked."""
    console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)


def _shown(interval: Interval, digits: int, number: Callable[[float, int], str] = fixed) -> str:
    low, high = number(interval.low, digits), number(interval.high, digits)
    return f"{number(interval.value, digits)} [dim]\\[{low}, {high}][/]"


def show_results(results: ReportContent) -> None:
    """Print the comparison of the arms."""
    digits = arm_decimals(results.arms)
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("held-out", no_wrap=True)
    table.add_column("loss [95%]", justify="right", no_wrap=True)
    table.add_column("gain [95%]", justify="right", no_wrap=True)
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
    console.print(f"[dim]in {escape(results.unit)}[/]")
    console.print(table)
    console.print(Panel(escape(results.headline), border_style="cyan", expand=False))


def show_verdict(facts: Mapping[str, Any]) -> None:
    """Print what the corpus is expected to be worth."""
    console.print(Panel(escape(verdict(facts)), border_style="cyan", expand=False))


def show_places(places: dict[str, str]) -> None:
    """Print where results are."""
    for name, place in places.items():
        console.print(f"  {name:<9} [cyan]{escape(place)}[/]", soft_wrap=True)


def show_artifact(ref: ArtifactRef, manifest: Manifest, store: ArtifactStore) -> None:
    """Print what an artifact is."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    size = sum(file.bytes for file in manifest.files)
    entries = {
        "artifact": str(ref),
        "folder": store.place(ref),
        "made": f"{manifest.created}, in {manifest.seconds:.1f} s",
        "rows": f"{manifest.rows:,}",
        "size": f"{size:,} bytes in {len(manifest.files)} files",
        "stage version": str(manifest.stage_version),
        **{f"config.{k}": str(v) for k, v in manifest.config.items()},
        **{f"input.{k}": str(v) for k, v in manifest.inputs.items()},
        **{f"fact.{k}": str(v) for k, v in manifest.facts.items() if k != "history"},
        "libraries": ", ".join(f"{k} {v}" for k, v in manifest.versions.items()),
    }
    for name, value in entries.items():
        table.add_row(name, escape(value))
    console.print(table)
    console.print(f"\n[bold]{'sha256':<64}  {'bytes':>15}  file[/]", soft_wrap=True)
    for file in manifest.files:  # no table, which would cut digests in a narrow terminal
        console.print(f"{file.sha256}  {file.bytes:>15,}  {escape(file.path)}", soft_wrap=True)


def show_adapters(entries: Sequence[Entry], aliases: Mapping[str, str]) -> None:
    """Print adapters, a line each."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for name in ("adapter", "made", "alpha", "rows", "loss [95%]", "gain [95%]", "alias"):
        right = name in ("alpha", "rows") or name.endswith("]")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for entry in entries:
        meant = [n for n, key in aliases.items() if key == entry.adapter.key]
        table.add_row(
            escape(entry.name),
            entry.created[:16].replace("T", " "),
            f"{entry.alpha:.2f}",
            f"{entry.adaptation_rows + entry.backbone_rows:,}",
            _shown(entry.loss, 4) if entry.loss else "not evaluated",
            _shown(entry.gain, 4, signed) if entry.gain else "",
            escape(", ".join(n for n in meant if n.startswith(f"{entry.run}@"))),
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
