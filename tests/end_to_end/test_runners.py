"""The same flow in threads and in processes of a Dask or Ray cluster: the same artifacts."""

from pathlib import Path

import pytest

from tests.end_to_end.conftest import Run, Start
from tests.toys import rewrite

pytestmark = pytest.mark.end_to_end


@pytest.mark.parametrize("runner", ["threads", "dask", "ray"])
def test_each_runner_makes_the_same_artifacts(
    runner: str, start: Start, first: Run, tmp_path: Path
) -> None:
    if runner != "threads":
        pytest.importorskip(f"prefect_{runner}")
    path = first.path.with_name(f"{runner}.yaml")
    path.write_text(first.path.read_text())
    runtime = {"root": str(tmp_path / "artifacts"), "device": "cpu", "runner": runner}
    run = start(rewrite(path, {"runtime": runtime, "output": str(tmp_path / "runs")}))
    assert {*run.manifests()} == {*first.manifests()}
    for label in first.labels - {"report"}:  # which tells times
        for mine, other in zip(run.refs(label), first.refs(label), strict=True):
            assert run.store.manifest(mine).files == first.store.manifest(other).files, label
