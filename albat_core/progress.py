"""Progress of long work: the core tells a reporter, whoever shows it installs one."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from albat_core.redaction import redacted

Advance = Callable[[int], None]
Drawn = tuple[str, bytes]
"""A prompt, and what was drawn of it: a PNG file."""

_WAITED = threading.local()


@contextmanager
def waiting() -> Iterator[None]:
    """Count the time of this context as waited for others, not as work of this thread."""
    began = time.perf_counter()
    try:
        yield
    finally:
        _WAITED.seconds = waited_seconds() + time.perf_counter() - began


def waited_seconds() -> float:
    """Return how long this thread has waited for others so far, in seconds."""
    return float(getattr(_WAITED, "seconds", 0.0))


class Now:
    """Tells, of work under way, when to say again how it goes.

    Args:
        every: seconds between.
    """

    def __init__(self, every: float = 30.0) -> None:
        self._every = every
        self._began = self._said = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the work began."""
        return time.monotonic() - self._began

    def is_due(self) -> bool:
        """Tell whether it is time; once each time."""
        now = time.monotonic()
        due = now - self._said >= self._every
        if due:
            self._said = now
        return due


class Reporter(Protocol):
    """Shows progress; called from several threads at once."""

    def track(self, label: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Show work of ``total`` ``unit``s; what it gives is called with each amount done.

        It may raise ``Interrupted`` from that call, where a person asked to stop.
        """

    def announce(
        self, stage: str, rows: int, seconds: float, reused: bool, notes: Sequence[str]
    ) -> None:
        """Show that a stage is finished, after so many seconds of this run.

        Notes say what it did that a person would not expect, such as rows that were skipped.
        """

    def show(self, label: str, step: int, drawn: Sequence[Drawn]) -> None:
        """Show what was drawn at a step of work under way."""


class Silent:
    """Shows nothing."""

    def track(self, label: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Count for nobody."""
        del label, total, unit
        return nullcontext(lambda _done: None)

    def announce(
        self, stage: str, rows: int, seconds: float, reused: bool, notes: Sequence[str]
    ) -> None:
        """Tell nobody."""

    def show(self, label: str, step: int, drawn: Sequence[Drawn]) -> None:
        """Show nobody."""


_reporter: Reporter = Silent()


def report_to(reporter: Reporter) -> None:
    """Send all progress of this process to ``reporter`` from now on."""
    global _reporter  # noqa: PLW0603 - worker threads must see it too, so no context variable
    _reporter = reporter


def reporter() -> Reporter:
    """Return what shows progress of this process."""
    return _reporter


@contextmanager
def reporting_to(reporter: Reporter) -> Iterator[None]:
    """Send all progress of this process to ``reporter`` while the context lasts."""
    before = _reporter
    report_to(reporter)
    try:
        yield
    finally:
        report_to(before)


def track(label: str, total: int, unit: str) -> AbstractContextManager[Advance]:
    """Open a progress line, see ``Reporter.track``."""
    return _reporter.track(redacted(label), total, unit)


def track_long(label: str, total: int, unit: str, least: int) -> AbstractContextManager[Advance]:
    """Open a progress line for work of more than ``least`` units, show nothing of less."""
    return track(label, total, unit) if total > least else Silent().track(label, total, unit)


def announce(
    stage: str, rows: int, seconds: float, reused: bool, notes: Sequence[str] = ()
) -> None:
    """Tell that a stage is finished, see ``Reporter.announce``."""
    _reporter.announce(stage, rows, seconds, reused, [redacted(note) for note in notes])


def show(label: str, step: int, drawn: Sequence[Drawn]) -> None:
    """Show what was drawn at a step of work under way, see ``Reporter.show``."""
    _reporter.show(redacted(label), step, drawn)
