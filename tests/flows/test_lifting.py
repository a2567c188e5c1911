"""How flows are made."""

from types import ModuleType

import pytest
from prefect import Flow, Task

from flows import albat, efficacy, watching
from tasks.stages import TASKS


@pytest.mark.parametrize("module", [albat, efficacy, watching])
def test_no_flow_keeps_its_result_with_prefect(module: ModuleType) -> None:
    made = [each for each in vars(module).values() if isinstance(each, Flow | Task)]
    assert made
    assert all(each.persist_result is False for each in made)


def test_no_task_keeps_its_result_with_prefect() -> None:
    assert all(task.persist_result is False for task in TASKS.values())
