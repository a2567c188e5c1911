"""What `albat up` starts, used as a person and a producer of data use it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from albat_core.artifacts import ArtifactStore
from albat_core.config import RunConfig
from albat_core.registry import Registry
from albat_core.reselection import Watches, data_fingerprint
from flows.config import load_config
from flows.processes import marked, stop
from flows.production import Up
from tests.toys import topic_rows, write_jsonl, write_run

pytestmark = pytest.mark.end_to_end
ROOT = Path(__file__).parents[2]
FLOWS = {"albat", "embed-corpus", "select", "finetune", "evaluate", "watch-adaptation", "reselect"}


class Deployed:
    """The command, run in a folder of its own, and the API of the server that it started.

    Args:
        folder: to run in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client = httpx.Client(timeout=30, trust_env=False)

    def albat(self, *arguments: str) -> str:
        """Run the command to its end; return what it printed."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"OMP_NUM_THREADS": "1", "COLUMNS": "300", "PYTHONPATH": os.pathsep.join(paths)}
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "flows.cli", *arguments],
            cwd=self.folder,
            env=kept | own,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    @property
    def state(self) -> Up:
        return Up.model_validate_json((self.folder / ".albat-up" / "up.json").read_text())

    def get(self, path: str) -> Any:
        """Return what the API says."""
        return self.client.get(f"{self.state.api}{path}").raise_for_status().json()

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Ask the API."""
        return self.client.post(f"{self.state.api}{path}", json=body)

    def trigger(self, name: str, config: dict[str, Any]) -> httpx.Response:
        """Start a deployment as the form does."""
        deployment = self.get(f"/deployments/name/{name}")["id"]
        return self.post(
            f"/deployments/{deployment}/create_flow_run", parameters={"config": config}
        )

    def runs(self, flow: str) -> list[dict[str, Any]]:
        """Return all runs of a flow."""
        named = {"flows": {"name": {"any_": [flow]}}}
        return list(self.post("/flow_runs/filter", **named).raise_for_status().json())

    def ended(self, flow: str, count: int) -> list[dict[str, Any]]:
        """Wait until so many runs of a flow have ended; return them."""

        def found() -> list[dict[str, Any]]:
            over = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
            return [run for run in self.runs(flow) if run["state_type"] in over]

        until(lambda: len(found()) >= count, 120)
        return found()


def until(holds: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Everything that `albat up` starts; nothing of it outlives the tests."""
    found = Deployed(tmp_path_factory.mktemp("deployed"))
    try:
        found.albat("up", "--port", "4711")
        yield found
    finally:
        file = found.folder / ".albat-up" / "up.json"
        if file.is_file():
            stop(marked(found.state.mark), 5)


@pytest.fixture(scope="module")
def run(deployed: Deployed) -> RunConfig:
    """A toy run whose changed data is acted on at once."""
    again = {"settle_seconds": 0.01, "threshold": 0.01}
    return load_config(str(write_run(deployed.folder, reselection=again)))


def test_everything_that_a_person_starts_is_deployed(deployed: Deployed) -> None:
    there = deployed.post("/deployments/filter").raise_for_status().json()
    assert {each["name"] for each in there} == FLOWS
    assert all(each["enforce_parameter_schema"] for each in there)
    assert deployed.client.get(deployed.state.ui).status_code == 200
    looks = {"deployments": {"name": {"any_": ["watch-adaptation"]}}}
    until(lambda: deployed.post("/flow_runs/filter", **looks).json(), 30)  # scheduled ones


def test_a_bad_value_is_refused_before_a_run_starts(deployed: Deployed, run: RunConfig) -> None:
    config = run.model_dump(mode="json")
    config["retrieval"]["neighbours"] = 0
    refused = deployed.trigger("albat/albat", config)
    assert refused.status_code == 409
    assert "config.retrieval.neighbours" in refused.text
    assert deployed.runs("albat") == []


def test_a_run_then_new_data_then_the_end(deployed: Deployed, run: RunConfig) -> None:
    store, watches = ArtifactStore(run.runtime.root), Watches(run.runtime.root)
    deployed.trigger("albat/albat", run.model_dump(mode="json")).raise_for_status()
    [ended] = deployed.ended("albat", 1)
    assert ended["state_type"] == "COMPLETED", ended["state"]
    [entry] = Registry(store).entries("toy")
    assert store.find(entry.adapter)
    assert entry.name in deployed.albat("list", "--root", run.runtime.root)

    deployed.albat("watch", "run.yaml")
    [first] = deployed.ended("reselect", 1)
    assert first["state_type"] == "COMPLETED", first["state"]

    adaptation = Path(run.adaptation[0].paths[0])
    rows = topic_rows("plants", 40, seed=1) + topic_rows("ships", 4, seed=7)
    write_jsonl(adaptation, rows)
    embedded = embeddings(store)
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda _: deployed.albat("notify", str(adaptation)), range(10)))
    deployed.ended("reselect", 2)
    until(lambda: all(not under_way(look) for look in deployed.runs("watch-adaptation")), 120)
    assert len(deployed.runs("reselect")) == 2
    acted = watches.acted("toy")
    assert acted is not None
    assert acted.fingerprint == data_fingerprint(run)
    assert embedded
    assert embeddings(store) == embedded  # of the corpus, which has not changed
    _, second = Registry(store).entries("toy")
    assert second.parent == entry.adapter.key
    assert second.adaptation_rows > entry.adaptation_rows

    mark = deployed.state.mark
    assert "stopped" in deployed.albat("down")
    assert marked(mark) == []


def under_way(look: dict[str, Any]) -> bool:
    """Tell whether a look that was not put on the schedule has yet to end."""
    return not look["auto_scheduled"] and look["state_type"] not in ("COMPLETED", "FAILED")


def embeddings(store: ArtifactStore) -> dict[str, str]:
    """Return when each of the corpus embeddings was made."""
    refs = [ref for ref in store.all_refs() if ref.stage == "embeddings"]
    return {ref.key: store.manifest(ref).created for ref in refs}
