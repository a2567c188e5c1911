"""Trackers, one class a file: the table, and how a run's work is followed by those it names.

Nothing of them is part of a key, and no run ends by them: each has a thread of its own, which is
waited for a while at the end of a training, and what goes wrong there is told once. The libraries'
own clients are used: accelerate's trackers log nothing before its state of distributed processes is
made, and keep MLflow's run for the whole process, where trainings run side by side.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, WithJsonSchema

from albat_core.errors import MissingDependencyError
from albat_core.redaction import redacted
from albat_core.trackers.base import Picture, Results, Tracker
from albat_core.trackers.mlflow import Mlflow
from albat_core.trackers.tensorboard import TensorBoard
from albat_core.trackers.trackio import Trackio
from albat_core.trackers.wandb import WeightsAndBiases

logger = logging.getLogger(__name__)

TRACKERS: dict[str, type[Tracker]] = {
    tracker.name: tracker for tracker in (Mlflow, TensorBoard, Trackio, WeightsAndBiases)
}
"""The trackers by the name that settings have."""

_PATIENCE = 60.0  # seconds that the end of a training waits for a tracker
_LESS = 5.0  # that it waits for one which has failed before
_told: set[str] = set()


def _known(value: str) -> str:
    if value not in TRACKERS:
        raise ValueError(f"expected one of {', '.join(TRACKERS)}")
    return value


TrackerName = Annotated[
    str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": [*TRACKERS]})
]
"""A setting that names a tracker."""


class Tracking(BaseModel):
    """Where a run's work is shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    to: tuple[TrackerName, ...] = ()
    """The trackers."""
    project: str = ""
    """What holds all of a run there: its name."""
    folder: str = ""
    """The run's output, for trackers that write files."""


UNTRACKED = Tracking()


def check_tracker(name: str, folder: str) -> None:
    """Look, without network, whether a tracker could be used.

    Args:
        name: of the table.
        folder: the run's output.

    Raises:
        MissingDependencyError: its library is not installed.
        ConfigError: it lacks something else.
    """
    tracker = TRACKERS[name]
    if find_spec(tracker.library) is None:
        raise MissingDependencyError(
            f"expected the library {tracker.library}, which is not installed",
            where=f"tracking: {name}",
            remedy="pip install 'albat[tracking]'",
        )
    tracker.check(folder)


class Followed:
    """Work that is followed by trackers; nothing is started before there is something to show."""

    def __init__(self, followers: list["_Follower"]) -> None:
        self._followers = followers

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve.

        Args:
            values: by the curve's name.
            step: >= the one before.
        """

        def log(tracker: Tracker) -> None:
            last = tracker.last
            new = {n: v for n, v in values.items() if step > last.get(n, tracker.before)}
            if new:
                tracker.log(new, step)
                last |= dict.fromkeys(new, step)

        self._tell(log)

    def show(self, pictures: Sequence[Picture], step: int) -> None:
        """Show pictures that were drawn at a step, >= the one before."""

        def show(tracker: Tracker) -> None:
            if step >= max(tracker.last.values(), default=tracker.before):
                tracker.show(pictures, step)

        self._tell(show)

    def keep(self, results: Results) -> None:
        """Keep what a run came to, where that is not kept yet."""

        def keep(tracker: Tracker) -> None:
            if tracker.before < 0 and not tracker.last.keys() & results.figures.keys():
                tracker.keep(results)

        self._tell(keep)

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for follower in self._followers:
            follower.tell(call)


@contextmanager
def followed_by(tracking: Tracking, run: str, key: str) -> Iterator[Followed]:
    """Let trackers follow what is done in this context.

    Args:
        tracking: which, and where.
        run: what is done, in words.
        key: of the artifact that it makes: work of the same key goes on where it was.
    """
    followers = [_Follower(name, tracking, run, key) for name in tracking.to]
    failed = True
    try:
        yield Followed(followers)
        failed = False
    finally:
        for follower in followers:
            follower.end(failed=failed)


class _Follower:
    """A tracker in a thread of its own: it may be slow, or wait for a server that is gone."""

    def __init__(self, name: str, tracking: Tracking, run: str, key: str) -> None:
        self._name, self._of = name, (tracking.project, run, key, tracking.folder)
        self._calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._failed = False
        self._thread: threading.Thread | None = None

    def tell(self, call: Callable[[Tracker], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, daemon=True)
            self._thread.start()
        if self._thread.is_alive():  # else it has failed
            self._calls.put(call)

    def end(self, *, failed: bool) -> None:
        if self._thread is None:
            return
        self._failed = failed
        self._calls.put(None)
        self._thread.join(_LESS if self._name in _told else _PATIENCE)
        if self._thread.is_alive():
            self._warn(f"no answer after {_PATIENCE:.0f} seconds")

    def _follow(self) -> None:
        try:
            tracker = TRACKERS[self._name](*self._of)
            while (call := self._calls.get()) is not None:
                call(tracker)
            tracker.finish(failed=self._failed)
        except Exception as error:  # whatever it is, the run goes on
            self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, what: str) -> None:
        if self._name not in _told:
            _told.add(self._name)
            told = "tracking by %s failed (%s); the run goes on, and has all in its own report"
            logger.warning(told, self._name, redacted(what))
