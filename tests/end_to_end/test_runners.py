"""The same flow in threads and in processes of a Dask or Ray cluster: the same artifacts."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from albat_core.devices import lent_device
from albat_core.runs.chain import Chain
from albat_core.stages.report import export_run
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from flows.config import load_config
from flows.running.runners import tasks_on
from tasks import stages
from tasks.caching import lift
from tests.end_to_end.conftest import Albat, Run, Start
from tests.toys import rewrite, write_run
from tests.waiting import wait_until

pytestmark = pytest.mark.end_to_end


@pytest.mark.parametrize("runner", ["threads", "devices", "dask", "ray"])
def test_each_runner_makes_the_same_artifacts(
    runner: str, start: Start, first: Run, tmp_path: Path
) -> None:
    if runner in ("dask", "ray"):
        pytest.importorskip(f"prefect_{runner}")
    path = first.path.with_name(f"{runner}.yaml")
    path.write_text(first.path.read_text())
    how = {"devices": 2} if runner == "devices" else {"runner": runner}
    runtime = {"root": str(tmp_path / "artifacts"), "device": "cpu"} | how
    run = start(rewrite(path, {"runtime": runtime, "output": str(tmp_path / "runs")}))
    assert {*run.manifests()} == {*first.manifests()}
    for label in first.labels - {"report"}:  # which tells times
        for mine, other in zip(run.refs(label), first.refs(label), strict=True):
            assert run.store.manifest(mine).files == first.store.manifest(other).files, label


def meet(number: int, folder: str, runtime: Runtime) -> tuple[int, str]:
    """Wait for the other task, each with a device; return which process has which."""
    with lent_device(runtime) as device:
        Path(folder, str(number)).touch()
        wait_until(lambda: len(list(Path(folder).iterdir())) == runtime.devices)
        return os.getpid(), str(device)


def test_each_task_has_a_device_of_its_own(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lifted: Any = lift(meet, "meet")
    monkeypatch.setitem(stages.TASKS, meet, lifted)
    monkeypatch.setitem(stages._ON_DEVICE, meet, lifted)

    @flow
    def both() -> list[tuple[int, str]]:
        runtime = Runtime(device="cpu", devices=2)
        with tasks_on(runtime) as execute:
            given = {"folder": str(tmp_path), "runtime": runtime}
            started = [execute(meet, number=n, **given) for n in range(2)]
            return [each.result() for each in started]

    places = both()
    assert len({process for process, _ in places} - {os.getpid()}) == 2
    assert [device for _, device in places] == ["cpu", "cpu"]


def test_runs_side_by_side_share_the_work(prefect_server: str, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    both = [Albat(path, tmp_path / name, prefect_server) for name in ("one", "other")]
    ends = [run.ended() for run in both]
    assert [code for code, _, _ in ends] == [0, 0], ends
    store = ArtifactStore(load_config(str(path)).runtime.root)
    for ref in store.all_refs():
        folder = Path(store.root, ref.stage, ref.key)
        attempts = [entry for entry in folder.iterdir() if entry.is_dir()]
        assert len(attempts) == 1, ref
        assert store.changed_files(ref) == []


def test_runs_of_one_name_may_end_at_once(first: Run, tmp_path: Path) -> None:
    chain, output = Chain(first.config), str(tmp_path / "runs" / "toy")
    ended = (chain.artifacts, chain.report, output, first.config.runtime)
    with ThreadPoolExecutor(4) as pool:
        places = [*pool.map(lambda _: export_run(*ended), range(16))]
    assert places == 16 * [places[0]]
    assert [entry.name for entry in (tmp_path / "runs").iterdir()] == ["toy"]
    kept = first.store.folder(first.refs("write mixture: ALBAT")[0])
    written = Path(places[0]["mixture"])
    assert {f.name: f.read_bytes() for f in written.glob("*.*")} == {
        f.name: f.read_bytes() for f in kept.glob("*.*")
    }
