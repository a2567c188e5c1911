"""Progress of a run on Prefect's pages, beside what a terminal shows."""

import base64
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.context import TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from albat_core.pictures import side_by_side
from albat_core.progress import Advance, Drawn, Now, Reporter, report_to, reporter
from albat_core.redaction import redacted
from albat_core.report.wording import duration, pace, progress, whole

logger = logging.getLogger(__name__)

_EVERY = 1.0  # seconds between updates; each takes the server some 20 ms
_SIDE = 320  # pixels of a picture on a page
_PATIENCE = 5.0  # seconds that the end of a task waits for a server that does not answer


class RunReporter:
    """Shows long work of a task as a progress artifact, and what comes of it in the run's log.

    The log has a line for each stage that is finished, and now and then one for work under way.

    Args:
        beside: who is told too, and alone outside of runs.
    """

    def __init__(self, beside: Reporter) -> None:
        self._beside = beside

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Keep an artifact up to date; see ``albat_core.progress.Reporter``."""
        with self._beside.track(label, total, unit) as advance:
            if not label or TaskRunContext.get() is None:
                yield advance
                return
            shown = _Shown(label, total, unit)

            def both(done: int) -> None:
                shown.advance(done)
                advance(done)

            try:
                yield both
                shown.finished = True
            finally:
                shown.end()

    def announce(
        self, stage: str, rows: int, seconds: float, reused: bool, notes: Sequence[str]
    ) -> None:
        """Log a finished stage."""
        self._beside.announce(stage, rows, seconds, reused, notes)
        try:
            log = get_run_logger()
        except MissingContextError:
            return
        took = "reused" if reused else duration(seconds)
        log.info("; ".join([f"{stage}: {whole(rows)} rows, {took}", *notes]))

    def show(self, label: str, step: int, drawn: Sequence[Drawn]) -> None:
        """Show what was drawn as an artifact of the task, those of before beside it."""
        self._beside.show(label, step, drawn)
        if TaskRunContext.get() is None:
            return
        shown = threading.Thread(
            target=copy_context().run, args=(_show_drawn, label, step, drawn), daemon=True
        )
        shown.start()
        shown.join(_PATIENCE)


def _show_drawn(label: str, step: int, drawn: Sequence[Drawn]) -> None:
    """Make an artifact that holds the pictures themselves, in a row."""
    content = base64.b64encode(side_by_side([png for _, png in drawn], _SIDE)).decode()
    prompts = "\n".join(f"{n}. {redacted(prompt)}" for n, (prompt, _) in enumerate(drawn, 1))
    key = re.sub("[^a-z0-9]+", "-", f"samples-{label}".lower()).strip("-")
    try:
        create_image_artifact(
            f"data:image/png;base64,{content}",
            key=key,
            description=f"{label}, step {whole(step)}\n\n{prompts}",
        )
    except Exception as error:  # whatever it is, the work itself goes on
        logger.debug("samples are not shown: %s", error)


class _Shown:
    """One piece of work as an artifact: made after a second, updated each second and at its end.

    That is done in a thread of its own, so that no work is held up by the server; what takes less
    than a second leaves nothing. Work that ends before its last unit, as a training that no longer
    improves does, is finished all the same.
    """

    def __init__(self, label: str, total: int, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self.finished = False
        self._done = 0
        self._sent: tuple[int, bool] | None = None
        self._artifact: UUID | None = None
        self._ended = threading.Event()
        self._now = Now()
        # the thread must know the run that the artifact belongs to
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._follow,), daemon=True
        )
        self._thread.start()

    def advance(self, done: int) -> None:
        self._done += done

    def end(self) -> None:
        self._ended.set()
        self._thread.join(_PATIENCE)

    def _follow(self) -> None:
        while not self._ended.wait(_EVERY):
            self._send()
            if self._now.is_due():
                self._log()
        if self._artifact is not None:
            self._send()

    def _log(self) -> None:
        said = pace(self._label, self._done, self._total, self._unit, self._now.seconds)
        with suppress(MissingContextError):
            get_run_logger().info(said)

    def _send(self) -> None:
        done, finished = self._done, self.finished
        if (done, finished) == self._sent:
            return
        percent = 100.0 if finished else min(100 * done / max(self._total, 1), 100.0)
        text = progress(self._label, done, self._total, self._unit)
        try:
            if self._artifact is None:
                created: Any = create_progress_artifact(percent, description=text)
                self._artifact = created
            else:
                update_progress_artifact(self._artifact, percent, description=text)
        except Exception as error:  # whatever it is, the work itself goes on
            logger.debug("progress is not shown: %s", error)
        else:
            self._sent = done, finished


def report_to_run() -> None:
    """Send progress of this process to the runs that it works for too."""
    if not isinstance(reporter(), RunReporter):
        report_to(RunReporter(reporter()))
