"""What `albat up` starts, used as a person and a producer of data use it; all data is on S3."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import s3fs

from albat_core.runs.config import RunConfig
from albat_core.runs.registry import Registry
from albat_core.runs.reselection import Watches, data_fingerprint
from albat_core.store.artifacts import ArtifactStore
from flows.config import load_config
from flows.local import deploying
from flows.local.processes import marked, stop
from flows.local.production import Up
from tests.end_to_end.s3_server import BUCKET, KEYS, Served, needs_rclone
from tests.toys import topic_rows, write_jsonl, write_run
from tests.waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.end_to_end, needs_rclone]
ROOT = Path(__file__).parents[2]
HOME = f"s3://{BUCKET}/toy"
FLOWS = {
    "albat",
    "from_file",
    "embed",
    "select",
    "mix",
    "finetune",
    "evaluate",
    "watch-adaptation",
    "reselect",
}
OVER = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Deployed:
    """The command, run in a folder of its own, and the API of the server that it started.

    Args:
        folder: to run in.
        variables: of the environment, which give access to the data.
    """

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.folder = folder
        self.variables = variables
        self.client = httpx.Client(timeout=PATIENCE, trust_env=False)

    def albat(self, *arguments: str) -> str:
        """Run the command to its end; return what it printed."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AWS_"))}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"OMP_NUM_THREADS": "1", "COLUMNS": "300", "PYTHONPATH": os.pathsep.join(paths)}
        own |= {"XDG_CACHE_HOME": str(self.folder / "cache")}
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "flows.cli", *arguments],
            cwd=self.folder,
            env=kept | own | self.variables,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,  # more than it gives its parts
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    @property
    def state(self) -> Up:
        return Up.model_validate_json((self.folder / ".albat-up" / "up.json").read_text())

    def get(self, path: str) -> Any:
        """Return what the API says."""
        return self._ask("GET", path).raise_for_status().json()

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Ask the API for what a body names, or to change something."""
        return self._ask("POST", path, json=body)

    def _ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        """Ask the API, again where its database is busy, as Prefect's client does."""
        answers: list[httpx.Response] = []

        def answered() -> bool:
            answers.append(self.client.request(method, f"{self.state.api}{path}", **given))
            return answers[-1].status_code != 503

        wait_until(answered, 0.3)
        return answers[-1]

    def trigger(self, name: str, **parameters: Any) -> httpx.Response:
        """Start a deployment as the form does."""
        deployment = self.get(f"/deployments/name/{name}")["id"]
        return self.post(f"/deployments/{deployment}/create_flow_run", parameters=parameters)

    def runs(self, flow: str) -> list[dict[str, Any]]:
        """Return all runs of a flow."""
        named = {"flows": {"name": {"any_": [flow]}}}
        return list(self.post("/flow_runs/filter", **named).raise_for_status().json())

    def ended(self, flow: str, count: int) -> list[dict[str, Any]]:
        """Wait until so many runs of a flow have ended; return them."""

        def found() -> list[dict[str, Any]]:
            return [run for run in self.runs(flow) if run["state_type"] in OVER]

        wait_until(lambda: len(found()) >= count, 0.3)
        return found()

    def reselected(self, count: int) -> None:
        """Wait until all looks have ended, and see that they started so many re-selections."""
        ended = self.ended("reselect", count)
        wait_until(lambda: not any(map(under_way, self.runs("watch-adaptation"))), 0.3)
        assert len(self.runs("reselect")) == count
        assert {run["state_type"] for run in ended} <= {"COMPLETED"}, [r["state"] for r in ended]

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Return everything of a kind that the server keeps."""
        found: list[dict[str, Any]] = []
        while page := self.post(f"/{kind}/filter", offset=len(found)).raise_for_status().json():
            found += page
        return found


@pytest.fixture(scope="module")
def deployed(s3: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Everything that `albat up` starts; nothing of it outlives the tests."""
    found = Deployed(tmp_path_factory.mktemp("deployed"), s3.variables)
    try:
        found.albat("up", "--port", "0")
        yield found
    finally:
        file = found.folder / ".albat-up" / "up.json"
        if file.is_file():
            stop(marked(found.state.mark), 5)


@pytest.fixture(scope="module")
def run(s3: Served, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A toy run, all of it on S3, whose changed data is acted on at once."""
    folder = tmp_path_factory.mktemp("inputs")
    columns = {"id_column": "id", "document_column": "doc"}
    runtime = {"root": f"{HOME}/artifacts", "device": "cpu", "workers": 2}
    write_run(
        folder,
        adaptation={"path": "adaptation/*.jsonl", **columns},
        output=f"{HOME}/runs",
        reselection={"settle_seconds": 0.01, "threshold": 0.01},
        runtime=runtime,
    )
    write_jsonl(folder / "adaptation" / "plants.jsonl", topic_rows("plants", 40, seed=1))
    s3.client().put(str(folder), HOME, recursive=True)
    return load_config(f"{HOME}/run.yaml")


def test_everything_that_a_person_starts_is_deployed(deployed: Deployed) -> None:
    there = deployed.all("deployments")
    assert {each["name"] for each in there} == FLOWS
    assert all(each["enforce_parameter_schema"] for each in there)
    assert deployed.client.get(deployed.state.ui).status_code == 200
    looks = {"deployments": {"name": {"any_": ["watch-adaptation"]}}}
    wait_until(lambda: deployed.post("/flow_runs/filter", **looks).json(), 0.3)  # scheduled ones


def test_a_bad_value_is_refused_before_a_run_starts(deployed: Deployed, run: RunConfig) -> None:
    config = run.model_dump(mode="json")
    config["retrieval"]["neighbours"] = 0
    refused = deployed.trigger("albat/albat", config=config)
    assert refused.status_code == 409
    assert "config.retrieval.neighbours" in refused.text
    assert deployed.runs("albat") == []


def test_what_a_person_gave_the_runs_environment_is_kept(deployed: Deployed) -> None:
    pool = f"{deployed.state.api}/work_pools/albat"
    template = deployed.get("/work_pools/albat")["base_job_template"]
    template["variables"]["properties"]["env"]["default"] = {"OWN": "kept"}
    template["variables"]["properties"]["command"]["default"] = "of an older version"
    changed = {"base_job_template": template}
    wait_until(lambda: deployed.client.patch(pool, json=changed).is_success, 0.3)
    asyncio.run(deploying.prepare(deployed.state.api, own=True))  # as `albat up` does again
    fields = deployed.get("/work_pools/albat")["base_job_template"]["variables"]["properties"]
    assert fields["env"]["default"] == {"OWN": "kept"}
    assert "flows.local.launching" in fields["command"]["default"]


def test_a_run_then_new_data_then_the_end(deployed: Deployed, run: RunConfig, s3: Served) -> None:
    store, bucket = ArtifactStore(run.runtime.root), s3.client()
    deployed.trigger("albat/albat", config=run.model_dump(mode="json")).raise_for_status()
    [ended] = deployed.ended("albat", 1)
    assert ended["state_type"] == "COMPLETED", ended["state"]
    [first] = Registry(store).entries("toy")
    assert store.find(first.adapter)
    assert bucket.exists(f"{HOME}/runs/toy/adapter/adapter_model.safetensors")
    assert first.name in deployed.albat("list", "--root", run.runtime.root)
    embedded = embeddings(store)
    assert embedded

    deployed.albat("watch", f"{HOME}/run.yaml")
    deployed.ended("watch-adaptation", 1)
    deployed.reselected(0)  # it goes on from the finished run
    put_rows(bucket, "ships")
    deployed.trigger(deploying.WATCH, root=run.runtime.root).raise_for_status()
    deployed.reselected(1)
    _, second = Registry(store).entries("toy")
    assert second.parent == first.adapter.key
    assert second.adaptation_rows > first.adaptation_rows

    put_rows(bucket, "stars")
    deployed.albat("notify", f"{HOME}/adaptation")
    asyncio.run(nine_more(deployed.state.api))
    deployed.reselected(2)
    *_, third = Registry(store).entries("toy")
    assert third.parent == second.adapter.key
    assert third.adaptation_rows > second.adaptation_rows
    acted = Watches(run.runtime.root).acted("toy")
    assert acted is not None
    assert acted.fingerprint == data_fingerprint(run)
    assert embeddings(store) == embedded  # of the corpus, which has not changed

    assert said(deployed, s3, "toy") >= {"artifacts", "flow_runs", "logs", "prefect.db"}
    assert said(deployed, s3, KEYS[1]) == set()
    mark = deployed.state.mark
    assert "stopped" in deployed.albat("down")
    assert marked(mark) == []


def put_rows(bucket: s3fs.S3FileSystem, topic: str) -> None:
    """Add a file to the adaptation data."""
    lines = [json.dumps(row) for row in topic_rows(topic, 4, seed=7)]
    bucket.pipe(f"{HOME}/adaptation/{topic}.jsonl", "\n".join(lines).encode())


async def nine_more(api: str) -> None:
    """Notify as the command does, nine times at once."""
    await asyncio.gather(*(deploying.notify(api, f"{HOME}/adaptation") for _ in range(9)))


def under_way(look: dict[str, Any]) -> bool:
    """Tell whether a look that was not put on the schedule has yet to end."""
    return not look["auto_scheduled"] and look["state_type"] not in OVER


def embeddings(store: ArtifactStore) -> dict[str, str]:
    """Return when each of the corpus embeddings was made."""
    refs = [ref for ref in store.all_refs() if ref.stage == "embeddings"]
    return {ref.key: store.manifest(ref).created for ref in refs}


def said(deployed: Deployed, s3: Served, word: str) -> set[str]:
    """Return where a word is found: in what the server tells, its database, logs and the bucket."""
    kinds = ("artifacts", "flow_runs", "task_runs", "logs", "deployments", "work_pools")
    files = [file for root in (deployed.folder, s3.folder) for file in root.rglob("*")]
    return {kind for kind in kinds if word in json.dumps(deployed.all(kind))} | {
        file.name for file in files if file.is_file() and word.encode() in file.read_bytes()
    }
