"""What Prefect's pages show of a run: its results, and why it failed."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterName,
)

from albat_core.errors import TrainingError
from albat_core.progress import Silent, reporting_to, track
from albat_core.records.selections import read_selection
from albat_core.store.stage import Runtime
from flows.running.runners import tasks_on
from tasks import stages
from tasks.caching import lift
from tests.end_to_end.conftest import Run, Start
from tests.toys import rewrite, write_run
from tests.waiting import PATIENCE, wait_until

WORKS = ("embed words", "score words")
PROGRESS = ArtifactFilter(type=ArtifactFilterType(any_=["progress"]))

pytestmark = pytest.mark.end_to_end


def shown(key: str) -> str:
    """Return the content of the newest artifact of a key."""
    artifact = Artifact.get(key)
    assert artifact is not None, key
    return str(artifact.data)


def test_a_run_shows_what_it_came_to(start: Start, copied: Run) -> None:
    run = start(rewrite(copied.path, {"name": "Pages.of_a-run"}))
    results = shown("pages-of-a-run-results")
    loss = run.manifest("evaluate: ALBAT").facts["loss"]
    (row,) = [line for line in results.splitlines() if line.startswith("| **ALBAT**")]
    assert float(row.split("|")[2]) == pytest.approx(loss, abs=0.01)
    assert "adaptation data only" in shown("pages-of-a-run-verdict")
    assert Path(run.result.places["report"]).as_uri() in shown("pages-of-a-run-report")
    rows = json.loads(shown("pages-of-a-run-examples"))
    (ref,) = run.refs("select")
    selected = read_selection(run.store, ref).sort_by([("score", "descending")])
    assert {row["example"] for row in rows} <= set(selected["example_id"].to_pylist())
    best = max(selected["score"].to_pylist())
    assert float(rows[0]["score"].replace("−", "-")) == pytest.approx(best, abs=1e-3)


def test_a_failed_run_says_why(start: Start, tmp_path: Path) -> None:
    training = {"batch_size": 4, "learning_rate": 1e30}
    with pytest.raises(TrainingError) as raised:
        start(write_run(tmp_path, name="fails", surrogate=training))
    named = FlowRunFilter(name=FlowRunFilterName(any_=["fails"]))
    messages: list[str | None] = []
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(flow_run_filter=named)

        def noted() -> bool:
            tasks = client.read_task_runs(flow_run_filter=named, limit=200)
            messages[:] = [t.state.message for t in tasks if t.state and t.state.is_failed()]
            return bool(messages)

        wait_until(noted)  # a moment later
    assert messages == [str(raised.value)]
    assert run.state is not None
    assert run.state.message == str(raised.value)
    assert "expected a finite loss, got" in messages[0]
    assert "lower this training's learning_rate" in messages[0]


def progress() -> list[Any]:
    """Return the progress artifacts of the work below."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=PROGRESS)
    return [each for each in found if str(each.description).partition(":")[0] in WORKS]


def test_long_works_are_shown_one_after_another_by_one_artifact(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(work: str, runtime: Runtime) -> int:
        with track(work, 5, "rows") as advance:
            for done in (2, 4):  # first it is made, then it is updated
                advance(2)
                text = [f"{work}: {done} of 5 rows"]
                wait_until(lambda: [a.description for a in progress()] == text)  # noqa: B023
            advance(1)
        return 5

    monkeypatch.setitem(stages.TASKS, compute, lift(compute, "compute"))

    @flow
    def long() -> list[int]:
        runtime = Runtime(device="cpu")
        with tasks_on(runtime) as execute:
            return [execute(compute, work=work, runtime=runtime).result() for work in WORKS]

    with reporting_to(Silent()):
        assert long() == [5, 5]
    wait_until(lambda: [each.data for each in progress()] == [100])
    [ended] = progress()
    assert ended.task_run_id is not None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tasks_on_a_gpu_run_one_at_a_time(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    meeting, lock, alone = threading.Barrier(3), threading.Lock(), []

    def compute(number: int, runtime: Runtime) -> int:
        if device == "cpu":
            meeting.wait(PATIENCE)  # all three are under way at once
            return number
        alone.append(lock.acquire(blocking=False))
        time.sleep(0.3)  # time for another to come in
        lock.release()
        return number

    lifted: Any = lift(compute, "compute")
    monkeypatch.setitem(stages.TASKS, compute, lifted)
    monkeypatch.setitem(stages._ON_DEVICE, compute, lifted)

    @flow
    def three() -> list[int]:
        runtime = Runtime(device=device, workers=3)
        with tasks_on(runtime) as execute:
            started = [execute(compute, number=n, runtime=runtime) for n in range(3)]
            return [each.result() for each in started]

    assert three() == [0, 1, 2]
    assert device == "cpu" or alone == [True, True, True]
