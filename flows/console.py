"""What a person sees in the terminal: progress, stages, results."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape as _escape
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
from rich.text import Text

from albat_core.benchmark.arms import ARMS, TASKS
from albat_core.errors import AlbatError, Interrupted
from albat_core.progress import Advance, Drawn, Now, Reporter, Silent
from albat_core.redaction import redacted
from albat_core.report.wording import duration, pace, progress

_FOUND = 5.0  # seconds within which a benchmark's task was found finished, not computed
_CONTROLS = {n: chr(0x2400 + n) for n in range(32) if chr(n) not in "\t\n"} | {127: "\u2421"}
_CONTROLS |= dict.fromkeys(range(0x80, 0xA0), "\ufffd")
"""What would move the cursor or colour the terminal, as the pictures Unicode has of it."""

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def escape(text: str) -> str:
    """Return a text as it stands, with neither markup, control characters nor secrets."""
    return _escape(redacted(text).translate(_CONTROLS))


def in_bytes(count: int) -> str:
    """Return a size as people read it."""
    return decimal(count)


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        """Return the rate, or nothing while it is not known."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("", style="dim")
        return Text(f"{speed:,.{0 if speed >= 20 else 1}f} {task.fields['unit']}/s", style="dim")


def _refuse_to_go_on(stopping: threading.Event) -> None:
    if stopping.is_set():
        raise Interrupted("stopped", remedy="run the same command again to go on")


class TerminalReporter:
    """Shows bars for work under way, and a line for each stage that is finished.

    What is no terminal gets a line now and then in place of a bar.
    """

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
        now, so_far = Now(), 0

        def advance(done: int) -> None:
            nonlocal so_far
            _refuse_to_go_on(self._stopping)
            if task is None:
                return
            self._progress.advance(task, done)
            so_far += done
            if now.is_due() and not console.is_terminal:
                said = pace(label, so_far, total, unit, now.seconds)
                console.print(f"   {escape(said)}", soft_wrap=True)

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

    def show(self, label: str, step: int, drawn: Sequence[Drawn]) -> None:
        """Show nothing: a terminal has no pictures."""


class Held(Silent):
    """Keeps what is to be told, until it is known that it is."""

    def __init__(self) -> None:
        self._held: list[tuple[str, int, float, bool, Sequence[str]]] = []

    def announce(
        self, stage: str, rows: int, seconds: float, reused: bool, notes: Sequence[str]
    ) -> None:
        """Keep a finished stage."""
        self._held.append((stage, rows, seconds, reused, notes))

    def tell(self, reporter: Reporter) -> None:
        """Tell another all that was kept, in its order."""
        for its in self._held:
            reporter.announce(*its)


class LineReporter(Silent):
    """Prints lines of a benchmark, from processes side by side.

    One for each arm and each task that is finished, now and then one of what is under way, and one
    where a task fails.
    """

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._now = Now()
        self._task = ""

    def stop(self) -> None:
        """Let work under way end at its next step, without a word: processes would each say it."""
        self._stopping.set()

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Count; see ``albat_core.progress.Reporter``."""
        finished, computed, began = 0, 0, time.monotonic()
        said = began
        if unit == ARMS:
            self._task = f"{label}: "

        def advance(done: int) -> None:
            nonlocal finished, computed, said
            _refuse_to_go_on(self._stopping)
            finished += done
            now = time.monotonic()
            if unit in (ARMS, TASKS):
                computed += done * (now - said > _FOUND)
                said = now
                left = ""
                if unit == TASKS and computed and finished < total:
                    left = f", {duration((total - finished) * (now - began) / computed)} left"
                words = progress(label, finished, total, unit)
                console.print(f" [green]✓[/] {escape(words)}{left}", soft_wrap=True)
            elif label and self._now.is_due():
                words = pace(label, finished, total, unit, now - began)
                console.print(f"   {escape(self._task + words)}", soft_wrap=True)

        try:
            yield advance
        except AlbatError as error:
            if unit == ARMS and not isinstance(error, Interrupted):
                words = f"{label} failed, the others go on: {error.message}"
                console.print(f" [red]✗[/] {escape(words)}", soft_wrap=True)
            raise


def show_error(error: AlbatError) -> None:
    """Print an error: what, where, and what to do."""
    where = f"[bold]{escape(error.where)}[/]: " if error.where else ""
    errors.print(f"[red]error:[/] {where}{escape(error.message)}", soft_wrap=True)
    if error.remedy:
        errors.print(f"  [cyan]→ {escape(error.remedy)}[/]", soft_wrap=True)


def show_note(note: str) -> None:
    """Print what is no mistake, but easily overlooked."""
    console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)


def show_places(places: dict[str, str]) -> None:
    """Print where results are."""
    for name, place in places.items():
        console.print(f"  {name:<9} [cyan]{escape(place)}[/]", soft_wrap=True)
