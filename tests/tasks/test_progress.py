"""Progress on Prefect's pages: not too often, to the end, and beside what a terminal shows."""

import base64
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from types import SimpleNamespace
from uuid import UUID, uuid4

import numpy as np
import pytest

from albat_core.pictures import picture_pixels, png_file
from albat_core.progress import Advance, Now, Silent, reporter, reporting_to
from tasks import progress
from tasks.progress import RunReporter, report_to_run
from tests.waiting import wait_until

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

    def send(_artifact: UUID, percent: float, description: str) -> None:
        found.append((time.monotonic(), percent, description))

    run = SimpleNamespace(task_run=SimpleNamespace(flow_run_id=uuid4()))
    monkeypatch.setattr(progress, "_EVERY", EVERY)
    monkeypatch.setattr(progress, "TaskRunContext", SimpleNamespace(get=lambda: run))
    monkeypatch.setattr(progress, "_artifact_of", lambda _run: uuid4())
    monkeypatch.setattr(progress, "update_progress_artifact", send)
    return found


def test_long_work_is_shown_to_its_end_but_not_at_each_step(sent: list) -> None:
    beside = Counts()
    began = time.monotonic()
    with RunReporter(beside).track("embed", 100, "rows") as advance:
        for step in range(1, 101):
            advance(1)
            if step % 30 == 0:
                wait_until(lambda: len(sent) >= step // 30)  # noqa: B023 - called at once
    assert beside.done == 100
    assert 4 <= len(sent) <= 2 + (time.monotonic() - began) / EVERY
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
        wait_until(lambda: sent)
        if fails:
            raise ValueError
    assert sent[-1][1:] == (40 if fails else 100, "train: 4 of 10 steps")


def test_the_log_says_now_and_then_how_work_goes(
    sent: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(progress, "Now", lambda: Now(every=EVERY))
    monkeypatch.setattr(progress, "get_run_logger", lambda: SimpleNamespace(info=said.append))
    with RunReporter(Counts()).track("embed", 1000, "rows") as advance:
        advance(250)
        wait_until(lambda: len(said) > 1)
    assert all(
        re.fullmatch(r"embed: 250 of 1,000 rows, [\d,.]+ a second, .* left", t) for t in said
    )


def test_short_work_leaves_nothing(sent: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_EVERY", 3600.0)
    with RunReporter(Counts()).track("embed", 4, "rows") as advance:
        advance(4)
    assert sent == []


def test_nameless_work_leaves_nothing(sent: list) -> None:
    shown = RunReporter(Counts())
    with shown.track("", 4, "rows") as nameless, shown.track("embed", 4, "rows") as advance:
        for done in (1, 2):  # as long as what is shown meanwhile
            nameless(1)
            advance(1)
            wait_until(lambda: len(sent) >= done)  # noqa: B023 - called at once
    assert {text.partition(":")[0] for *_, text in sent} == {"embed"}


def test_a_server_that_does_not_answer_stops_no_work(
    sent: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(*_: object, **__: object) -> None:
        asked.append(1)
        raise OSError("no server")

    monkeypatch.setattr(progress, "_artifact_of", refuse)
    beside = Counts()
    with RunReporter(beside).track("embed", 10, "rows") as advance:
        advance(4)
        wait_until(lambda: len(asked) > 1)  # it is asked again
        advance(6)
    assert beside.done == 10
    assert sent == []


def test_works_side_by_side_are_shown_in_one_place(
    sent: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[UUID] = []
    monkeypatch.setattr(progress, "_artifact_of", lambda run: asked.append(run) or uuid4())
    shown = RunReporter(Counts())
    with shown.track("embed", 4, "rows") as embedded:
        embedded(1)
        with shown.track("score", 4, "rows") as scored:
            scored(3)
            both = (50, "embed: 1 of 4 rows; score: 3 of 4 rows")
            wait_until(lambda: both in [each[1:] for each in sent])
        wait_until(lambda: sent[-1][1:] == (25, "embed: 1 of 4 rows"))
        embedded(3)
    assert sent[-1][1:] == (100, "embed: 4 of 4 rows")
    with shown.track("mix", 2, "rows") as mixed:
        mixed(1)
        wait_until(lambda: sent[-1][1:] == (50, "mix: 1 of 2 rows"))
    assert len(asked) == 1


def test_whoever_shows_progress_already_goes_on() -> None:
    before, beside = reporter(), Counts()
    with reporting_to(beside):
        report_to_run()
        report_to_run()
        outer = reporter()
        assert isinstance(outer, RunReporter)
        assert outer._beside is beside
    assert reporter() is before


def test_what_is_drawn_is_an_artifact_that_holds_it(
    sent: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, str]] = []
    monkeypatch.setattr(
        progress, "create_markdown_artifact", lambda text, **its: made.append({"text": text, **its})
    )
    white, black = (png_file(np.full((8, 8, 3), grey, np.uint8)) for grey in (255, 0))
    RunReporter(Counts()).show("ALBAT, best step", 1200, [("a dog", white), ("a cat", black)])
    [artifact] = made
    picture, prompts = artifact["text"].split("\n\n")
    kind, _, content = picture.removesuffix(")").partition(",")
    assert kind == "![what was drawn](data:image/png;base64"
    pixels = picture_pixels(base64.b64decode(content))
    np.testing.assert_array_equal(pixels[:, :8], 255)
    np.testing.assert_array_equal(pixels[:, -8:], 0)
    assert artifact["key"] == "samples-albat-best-step"
    assert artifact["description"] == "ALBAT, best step, step 1,200"
    assert prompts == "1. a dog\n2. a cat"


def test_drawings_that_cannot_be_shown_stop_no_work(
    sent: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def refuse(text: str, **_: str) -> None:
        asked.append(text)
        raise OSError("no server")

    monkeypatch.setattr(progress, "create_markdown_artifact", refuse)
    RunReporter(Counts()).show("train", 1, [("a dog", png_file(np.zeros((8, 8, 3), np.uint8)))])
    assert len(asked) == 1
