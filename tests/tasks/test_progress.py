"""Progress on Prefect's pages: not too often, to the end, and beside what a terminal shows."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from types import SimpleNamespace

import pytest

from albat_core.progress import Advance, Silent, reporter, reporting_to
from tasks import progress
from tasks.progress import RunReporter, report_to_run

EVERY = 0.1


class Counts(Silent):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.done = 0

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        def advance(done: int) -> None:
            self.done += done

        yield advance


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float, str]]:
    """When what was sent to the server, inside a task's run."""
    found: list[tuple[float, float, str]] = []

    def send(percent: float, description: str) -> str:
        found.append((time.monotonic(), percent, description))
        return "id"

    monkeypatch.setattr(progress, "_EVERY", EVERY)
    monkeypatch.setattr(progress, "TaskRunContext", SimpleNamespace(get=lambda: "a run"))
    monkeypatch.setattr(progress, "create_progress_artifact", send)
    monkeypatch.setattr(progress, "update_progress_artifact", lambda _id, p, description: send(
        p, description
    ))  # fmt: skip
    return found


def work(shown: RunReporter, steps: int, seconds: float, label: str = "embed") -> None:
    with shown.track(label, steps, "rows") as advance:
        for _ in range(steps):
            time.sleep(seconds / steps)
            advance(1)


def test_long_work_is_shown_to_its_end_but_not_at_each_step(sent: list) -> None:
    beside = Counts()
    work(RunReporter(beside), 100, 6 * EVERY)
    assert beside.done == 100
    assert 2 <= len(sent) <= 8
    times, percents, texts = zip(*sent, strict=True)
    waits = [after - before for before, after in pairwise(times)]
    assert all(wait > 0.8 * EVERY for wait in waits[:-1])  # the last follows the work's end
    assert list(percents) == sorted(percents)
    assert percents[-1] == 100
    assert texts[-1] == "embed: 100 of 100 rows"


@pytest.mark.parametrize("fails", [False, True])
def test_work_that_ends_early_is_finished_unless_it_failed(sent: list, fails: bool) -> None:
    with suppress(ValueError), RunReporter(Counts()).track("train", 10, "steps") as advance:
        advance(4)
        time.sleep(3 * EVERY)
        if fails:
            raise ValueError
    assert sent[-1][1:] == (40 if fails else 100, "train: 4 of 10 steps")


def test_short_and_nameless_work_leaves_nothing(sent: list) -> None:
    work(RunReporter(Counts()), 4, EVERY / 10)
    work(RunReporter(Counts()), 4, 3 * EVERY, label="")
    assert sent == []


def test_a_server_that_does_not_answer_stops_no_work(
    sent: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no server")

    monkeypatch.setattr(progress, "create_progress_artifact", refuse)
    beside = Counts()
    work(RunReporter(beside), 10, 3 * EVERY)
    assert beside.done == 10


def test_whoever_shows_progress_already_goes_on() -> None:
    before, beside = reporter(), Counts()
    with reporting_to(beside):
        report_to_run()
        report_to_run()
        outer = reporter()
        assert isinstance(outer, RunReporter)
        assert outer._beside is beside
    assert reporter() is before
