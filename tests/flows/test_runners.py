"""Where tasks run: mistakes found beforehand, GPUs, and processes that are gone."""

from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from typing import Any

import pytest
from prefect import Task
from prefect.settings import PREFECT_API_URL
from prefect.settings.context import temporary_settings

from albat_core.errors import ConfigError, ProcessError
from albat_core.stages.embed import embed_part
from albat_core.store.stage import Runtime
from flows.running import runners
from flows.running.runners import check_runner
from tasks.stages import GPU


def refused(runtime: Runtime) -> str:
    with pytest.raises(ConfigError) as raised:
        check_runner(runtime)
    assert raised.value.remedy
    return str(raised.value)


def test_threads_have_no_cluster() -> None:
    check_runner(Runtime())
    assert "runtime.cluster: expected no cluster" in refused(Runtime(cluster="tcp://host:8786"))


def test_a_runner_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "find_spec", lambda _name: None)
    assert "install albat[dask]" in refused(Runtime(runner="dask"))


def test_a_cluster_needs_a_server_that_it_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "find_spec", lambda _name: object())
    runtime = Runtime(runner="ray", cluster="ray://host:10001")
    with temporary_settings({PREFECT_API_URL: None}):
        assert "set PREFECT_API_URL" in refused(runtime)
    with temporary_settings({PREFECT_API_URL: "http://server:4200/api"}):
        check_runner(runtime)


def test_ray_has_no_training_on_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "find_spec", lambda _name: object())
    check_runner(Runtime(runner="dask", training_devices=2))
    assert "got 2" in refused(Runtime(runner="ray", training_devices=2))


def test_devices_are_of_this_run_s_own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "find_spec", lambda _name: object())
    check_runner(Runtime(devices=2))
    for runner in ("dask", "ray"):
        assert "runtime.workers" in refused(Runtime(runner=runner, devices=2))


class Runner(nullcontext[None]):
    """Notes what is submitted, and gives a result for it."""

    def __init__(self, *raised: BaseException) -> None:
        super().__init__()
        self.tags: list[set[str]] = []
        self._raised = list(raised)

    def submit(self, task: Task[..., Any], _parameters: dict[str, Any]) -> Any:
        self.tags.append(task.tags)
        return self

    def result(self, **_how: Any) -> Any:
        if self._raised:
            raise self._raised.pop(0)  # as Prefect does where it is no task's own
        return "its result"


def submitted(runner: Any, limited: bool) -> Any:
    given = ("part", "label", None, "backbone", "config", Runtime())
    with runners._executing(runner, limited) as execute:
        return execute(embed_part, *given)  # type: ignore[arg-type]


@pytest.mark.parametrize("limited", [True, False])
def test_only_a_server_that_others_use_holds_tasks_to_one_a_gpu(
    monkeypatch: pytest.MonkeyPatch, limited: bool
) -> None:
    limits: list[int] = []
    monkeypatch.setattr(runners, "_hold_to_one_a_device", lambda: limits.append(1))
    monkeypatch.setattr("tasks.stages._takes_gpu", lambda _runtime: True)
    runner = Runner()
    submitted(runner, limited)
    assert (runner.tags, limits) == (([{GPU}], [1]) if limited else ([set()], []))


def test_a_process_that_was_killed_is_told_with_a_remedy() -> None:
    with pytest.raises(ProcessError, match="expected a process to end its task") as raised:
        submitted(Runner(BrokenProcessPool("terminated abruptly")), limited=False).result()
    assert "memory" in raised.value.remedy


def test_a_wait_that_ends_with_its_task_is_asked_again_once() -> None:
    """distributed reads a variable that it has not set yet."""
    lost = UnboundLocalError("result")
    waits = (TimeoutError(), lost, TimeoutError())
    assert submitted(Runner(*waits), limited=False).result() == "its result"
    with pytest.raises(UnboundLocalError):
        submitted(Runner(lost, lost), limited=False).result()
