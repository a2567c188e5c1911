"""How flows are made."""

from types import ModuleType, SimpleNamespace

import pytest
from prefect import Flow, Task
from prefect.exceptions import Pause

from flows import albat, efficacy, watching
from flows.local.deploying import crashed_runs
from flows.running import lifting
from flows.running.lifting import as_flow
from tasks.stages import TASKS


@pytest.mark.parametrize("module", [albat, efficacy, watching])
def test_no_flow_keeps_its_result_with_prefect(module: ModuleType) -> None:
    made = [each for each in vars(module).values() if isinstance(each, Flow | Task)]
    assert made
    assert all(each.persist_result is False for each in made)


def test_a_run_that_is_paused_says_a_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one the automation, which last heard a heartbeat, would call it crashed."""
    told: list[tuple[str, dict]] = []
    monkeypatch.setattr(lifting, "emit_event", lambda name, its, related: told.append((name, its)))
    monkeypatch.setattr(lifting, "flow_run", SimpleNamespace(id="of-mine", tags=["albat"]))

    def work() -> None:
        raise Pause("paused on the page")

    with pytest.raises(Pause):
        as_flow(work, "run").fn()
    assert told == [("prefect.flow-run.left", {"prefect.resource.id": "prefect.flow-run.of-mine"})]
    (silent, _) = crashed_runs()
    assert silent.trigger.expect == {"prefect.flow-run.*"}  # such a word is one


def test_no_task_keeps_its_result_with_prefect() -> None:
    assert all(task.persist_result is False for task in TASKS.values())
