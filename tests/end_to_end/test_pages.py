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
    until, messages = time.monotonic() + 30, []
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(flow_run_filter=named)
        while not messages and time.monotonic() < until:  # tasks are noted a moment later
            tasks = client.read_task_runs(flow_run_filter=named, limit=200)
            messages = [t.state.message for t in tasks if t.state and t.state.is_failed()]
    assert messages == [str(raised.value)]
    assert run.state is not None
    assert run.state.message == str(raised.value)
    assert "expected a finite loss, got" in messages[0]
    assert "lower this training's learning_rate" in messages[0]


def test_long_work_is_shown_while_it_lasts(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(runtime: Runtime) -> list[str]:
        with track("embed words", 5, "rows") as advance, get_client(sync_client=True) as client:
            for _ in range(5):
                time.sleep(0.5)
                advance(1)
            return [str(a.description) for a in client.read_artifacts(artifact_filter=PROGRESS)]

    monkeypatch.setitem(stages.TASKS, compute, lift(compute, "compute"))

    @flow
    def long() -> list[str]:
        runtime = Runtime(device="cpu")
        with tasks_on(runtime) as execute:
            [seen] = execute(compute, [()], (runtime,))
        return seen

    with reporting_to(Silent()):
        [seen] = [text for text in long() if text.startswith("embed words")]
    assert seen in {f"embed words: {n} of 5 rows" for n in (1, 2, 3, 4)}
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=PROGRESS)
    (ended,) = [a for a in found if str(a.description).startswith("embed words")]
    assert ended.data == 100
    assert ended.task_run_id is not None


def test_tasks_on_a_gpu_run_one_at_a_time(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, under_way, most = threading.Lock(), 0, 0

    def compute(number: int, runtime: Runtime) -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.3)
        with lock:
            under_way -= 1
        return number

    lifted: Any = lift(compute, "compute")
    monkeypatch.setitem(stages.TASKS, compute, lifted)
    monkeypatch.setitem(stages._ON_DEVICE, compute, lifted)

    @flow
    def three(device: str) -> list[int]:
        runtime = Runtime(device=device, workers=3)
        with tasks_on(runtime) as execute:
            return execute(compute, [(n,) for n in range(3)], (runtime,))

    assert three("cpu") == [0, 1, 2]
    assert most > 1
    most = 0
    assert three("cuda") == [0, 1, 2]
    assert most == 1
