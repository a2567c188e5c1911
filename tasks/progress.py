"""Progress of a run on Prefect's pages, beside what a terminal shows."""

import base64
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from statistics import fmean
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
)
from prefect.client.schemas.sorting import ArtifactSort
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
    """Shows long work of tasks as a run's one progress artifact, and what comes of it in its log.

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
            if not label or (task := TaskRunContext.get()) is None:
                yield advance
                return
            run = task.task_run.flow_run_id or task.task_run.id
            shown = _Shown(_BOARDS.setdefault(run, _Board(run)), label, total, unit)

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
    """Make an artifact that holds the pictures themselves, in a row.

    It is one of text: an artifact that is a picture has its address below, here all of its content.
    """
    content = base64.b64encode(side_by_side([png for _, png in drawn], _SIDE)).decode()
    prompts = "\n".join(f"{n}. {redacted(prompt)}" for n, (prompt, _) in enumerate(drawn, 1))
    key = re.sub("[^a-z0-9]+", "-", f"samples-{label}".lower()).strip("-")
    try:
        create_markdown_artifact(
            f"![what was drawn](data:image/png;base64,{content})\n\n{prompts}",
            key=key,
            description=f"{label}, step {whole(step)}",
        )
    except Exception as error:  # whatever it is, the work itself goes on
        logger.debug("samples are not shown: %s", error)


class _Board:
    """A flow's run's one artifact: what this process has under way for it, and the mean of how far.

    Processes that work for the same run share the artifact; it shows what the last of them told.

    Args:
        run: of the flow.
    """

    def __init__(self, run: UUID) -> None:
        self.works: list[_Shown] = []
        self._run = run
        self._artifact: UUID | None = None
        self._sent: tuple[float, str] | None = None
        self._sending = threading.Lock()

    def send(self) -> None:
        with self._sending:
            works = [*self.works]
            percent = fmean(work.percent for work in works)
            said = percent, "; ".join(work.text for work in works)
            if said == self._sent:
                return
            if self._artifact is None:
                self._artifact = _artifact_of(self._run)
            update_progress_artifact(self._artifact, percent, description=said[1])
            self._sent = said
            for work in works:
                work.was_shown = True


_BOARDS: dict[UUID, _Board] = {}


def _artifact_of(run: UUID) -> UUID:
    """Return a run's progress artifact: the first that was made, where two processes made one."""
    its = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[run]), type=ArtifactFilterType(any_=["progress"])
    )

    def first(client: SyncPrefectClient) -> UUID | None:
        there = client.read_artifacts(artifact_filter=its, sort=ArtifactSort.CREATED_DESC)
        return there[-1].id if there else None

    with get_client(sync_client=True) as client:
        if there := first(client):
            return there
        made: Any = create_progress_artifact(0.0)
        there = first(client) or made
        if there != made:
            client.delete_artifact(made)
        return there


class _Shown:
    """One piece of work on its run's board: put there after a second, and told of until its end.

    That is done in a thread of its own, so that no work is held up by the server; what takes less
    than a second leaves nothing. Work that ends before its last unit, as a training that no longer
    improves does, is finished all the same.
    """

    def __init__(self, board: _Board, label: str, total: int, unit: str) -> None:
        self._board, self._label, self._total, self._unit = board, label, total, unit
        self.finished = self.was_shown = False
        self._done = 0
        self._ended = threading.Event()
        self._now = Now()
        board.works.append(self)
        # the thread must know the run that the artifact belongs to
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._follow,), daemon=True
        )
        self._thread.start()

    @property
    def percent(self) -> float:
        return 100.0 if self.finished else min(100 * self._done / max(self._total, 1), 100.0)

    @property
    def text(self) -> str:
        return progress(self._label, self._done, self._total, self._unit)

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
        if self.was_shown:
            self._send()
        self._board.works.remove(self)

    def _log(self) -> None:
        said = pace(self._label, self._done, self._total, self._unit, self._now.seconds)
        with suppress(MissingContextError):
            get_run_logger().info(said)

    def _send(self) -> None:
        try:
            self._board.send()
        except Exception as error:  # whatever it is, the work itself goes on
            logger.debug("progress is not shown: %s", error)


def report_to_run() -> None:
    """Send progress of this process to the runs that it works for too."""
    if not isinstance(reporter(), RunReporter):
        report_to(RunReporter(reporter()))
