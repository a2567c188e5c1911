"""What is shown of work under way where there is no terminal."""

import io

import pytest
from rich.console import Console

from albat_core.benchmark.arms import ARMS, TASKS
from albat_core.errors import InputError, Interrupted
from albat_core.progress import Now
from albat_core.report.wording import pace
from flows import console


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_stand_for_bars_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    shown = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    monkeypatch.setattr(console, "console", shown)
    monkeypatch.setattr(console, "Now", lambda: Now(every=0))
    with (
        console.TerminalReporter() as reporter,
        reporter.track("embed [corpus]", 400, "rows") as advance,
    ):
        advance(100)
        advance(100)
    lines = [line for line in shown.file.getvalue().splitlines() if "a second" in line]
    if terminal:
        assert lines == []
        return
    assert [line.split(",")[0].strip() for line in lines] == [
        "embed [corpus]: 100 of 400 rows",
        "embed [corpus]: 200 of 400 rows",
    ]


def test_a_benchmark_tells_what_is_under_way_and_how_long_all_of_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = Console(file=io.StringIO(), width=200)
    at = [0.0]
    monkeypatch.setattr(console, "console", shown)
    monkeypatch.setattr(console.time, "monotonic", lambda: at[0])
    reporter = console.LineReporter()
    with reporter.track("text", 4, TASKS) as task, reporter.track("near, seed 0", 2, ARMS) as arm:
        with reporter.track("train", 100, "steps") as advance:
            for seconds in (20, 40, 50, 80):  # said after 30 seconds, and 30 after that
                at[0] = seconds
                advance(10)
        arm(1)
        task(1)  # computed, in 80 seconds
        task(1)  # found finished: says nothing of the pace
        at[0] = 160
        task(1)
        at[0] = 200
        task(1)
    assert [line.strip() for line in shown.file.getvalue().splitlines()] == [
        "near, seed 0: train: 20 of 100 steps, 0.500 a second, 2 min 40 s left",
        "near, seed 0: train: 40 of 100 steps, 0.500 a second, 2 min 00 s left",
        "✓ near, seed 0: 1 of 2 arms",
        "✓ text: 1 of 4 tasks and seeds, 4 min 00 s left",
        "✓ text: 2 of 4 tasks and seeds, 2 min 40 s left",
        "✓ text: 3 of 4 tasks and seeds, 1 min 20 s left",
        "✓ text: 4 of 4 tasks and seeds",
    ]


def test_a_benchmark_tells_of_a_task_that_fails_while_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(console, "console", shown)
    reporter = console.LineReporter()
    for error in (InputError("expected rows, got none"), Interrupted("stopped")):
        with (
            pytest.raises(type(error)),
            reporter.track("near, seed 0", 2, ARMS),
            reporter.track("train", 100, "steps"),
        ):
            raise error
    said = "✗ near, seed 0 failed, the others go on: expected rows, got none"
    assert shown.file.getvalue().split("\n") == [f" {said}", ""]


def test_it_is_said_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    at = [0.0]
    monkeypatch.setattr("albat_core.progress.time.monotonic", lambda: at[0])
    now = Now(every=30)
    found = []
    for seconds in (1, 29, 30, 31, 61, 62, 95):
        at[0] = seconds
        found.append(now.is_due())
    assert found == [False, False, True, False, True, False, True]
    assert now.seconds == 95


@pytest.mark.parametrize(
    ("done", "seconds", "said"),
    [
        (1200, 60.0, "embed: 1,200 of 20,000 rows, 20.0 a second, 15 min 40 s left"),
        (0, 60.0, "embed: 0 of 20,000 rows"),
        (20000, 100.0, "embed: 20,000 of 20,000 rows, 200 a second, 0.0 s left"),
    ],
)
def test_pace_in_words(done: int, seconds: float, said: str) -> None:
    assert pace("embed", done, 20_000, "rows", seconds) == said
