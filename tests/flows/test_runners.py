"""Mistakes in where tasks are to run, found before anything is computed."""

import pytest
from prefect.settings import PREFECT_API_URL
from prefect.settings.context import temporary_settings

from albat_core.errors import ConfigError
from albat_core.store.stage import Runtime
from flows.running import runners
from flows.running.runners import check_runner


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
