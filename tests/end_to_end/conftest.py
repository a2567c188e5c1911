"""What whole runs share: one Prefect server, a finished toy run, and ways to compare runs."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
import s3fs

from albat_core.runs.config import RunConfig
from albat_core.runs.goals import Outcome
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.manifests import Manifest
from flows.albat import albat
from flows.config import load_config
from flows.running.own_process import prepare_environment
from tests.end_to_end.s3_server import Served, served
from tests.toys import rewrite, write_run
from tests.waiting import PATIENCE


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start Prefect's embedded server once for all tests; gives its address."""
    before = dict(os.environ)
    prepare_environment()
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_LOGGING_LEVEL,
        PREFECT_RESULTS_LOCAL_STORAGE_PATH,
        PREFECT_SERVER_ANALYTICS_ENABLED,
    )
    from prefect.settings.context import temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    settings = {
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # its thread holds every end for a second
        PREFECT_LOGGING_LEVEL: "CRITICAL",
        PREFECT_RESULTS_LOCAL_STORAGE_PATH: tmp_path_factory.mktemp("results"),
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
    }
    with temporary_settings(settings), prefect_test_harness(server_startup_timeout=int(PATIENCE)):
        yield str(PREFECT_API_URL.value())
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def home(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's home for commands that start their own server, with a database that was made."""
    from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL

    folder = tmp_path_factory.mktemp("prefect")
    made = str(PREFECT_SERVER_DATABASE_CONNECTION_URL.value()).partition("///")[2]
    with (
        closing(sqlite3.connect(made)) as source,
        closing(sqlite3.connect(folder / "prefect.db")) as copy,
    ):
        source.backup(copy)
    return folder


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve an empty bucket, which the usual variables name."""
    with served(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.variables.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
        s3fs.S3FileSystem.clear_instance_cache()


Files = dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Run:
    """A run that was carried to its end.

    Args:
        path: its configuration file.
        config: what that says.
        result: what the flow gave.
    """

    path: Path
    config: RunConfig
    result: Outcome

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.config.runtime.root)

    def refs(self, label: str) -> tuple[ArtifactRef, ...]:
        """Return the artifacts of a stage, by its label."""
        return next(stage.refs for stage in self.result.stages if stage.label == label)

    def manifest(self, label: str) -> Manifest:
        """Return the manifest of a stage that makes one artifact."""
        (ref,) = self.refs(label)
        return self.store.manifest(ref)

    @property
    def computed(self) -> set[str]:
        """Labels of the stages of which something had to be computed."""
        return {stage.label for stage in self.result.stages if not stage.reused}

    @property
    def labels(self) -> set[str]:
        return {stage.label for stage in self.result.stages}

    def files(self) -> Files:
        """Return all files of all artifacts: inode, time of change and size, by path."""
        root = Path(self.config.runtime.root)
        found = {}
        for file in sorted(root.rglob("*")):
            name = file.relative_to(root).as_posix()
            if file.is_file() and not name.startswith("latest/"):
                stat = file.stat()
                found[name] = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        return found

    def manifests(self) -> dict[str, Manifest]:
        """Return every finished artifact's manifest, by stage and key."""
        return {str(ref): self.store.manifest(ref) for ref in self.store.all_refs()}


Start = Callable[[Path], Run]


@pytest.fixture(scope="session")
def start(prefect_server: str) -> Start:
    """Run the whole chain as a flow."""

    def run(path: Path) -> Run:
        config = load_config(str(path))
        return Run(path=path, config=config, result=albat(config))

    return run


@pytest.fixture(scope="session")
def first(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A toy run from nothing, which no test changes."""
    return start(write_run(tmp_path_factory.mktemp("first")))


@pytest.fixture
def copied(first: Run, tmp_path: Path) -> Run:
    """The finished run with inputs and artifacts of the test's own; not run again yet."""
    return copy_of(first, tmp_path)


def copy_of(first: Run, place: Path) -> Run:
    """Copy a finished run with its inputs and artifacts."""
    folder = place / "copy"
    shutil.copytree(first.path.parent, folder)
    runtime = first.config.runtime.model_dump(mode="json") | {"root": str(folder / "artifacts")}
    path = rewrite(
        folder / "run.yaml", {"runtime": runtime, "output": str(folder / "runs"), "name": "copy"}
    )
    return Run(path=path, config=load_config(str(path)), result=first.result)


HOLDS = """
import sys, time
from pathlib import Path
from albat_core.training.checkpoint import CheckpointFile
from flows.cli import main

write, go = CheckpointFile.write, Path(sys.argv.pop())

def write_and_hold(self, state):
    write(self, state)
    while not go.exists():
        time.sleep(0.01)

CheckpointFile.write = write_and_hold
main()
"""


class Albat:
    """`albat run` as its own process, in a process group as a terminal makes it.

    Args:
        path: configuration.
        home: of Prefect.
        server: address of a server that runs; none: the command starts its own.
        go: file that training waits for when it has written its first checkpoint.
    """

    def __init__(
        self, path: Path, home: Path, server: str | None = None, go: Path | None = None
    ) -> None:
        self._out = path.with_name(f"{uuid4().hex}.out")
        program = ["-c", HOLDS] if go else ["-m", "flows.cli"]
        own = {"OMP_NUM_THREADS": "1", "PREFECT_HOME": str(home)}
        if server:
            own["PREFECT_API_URL"] = server
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, *program, "run", str(path), *([str(go)] if go else [])],
                env={k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | own,
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self._out.read_text()

    def wait_until(self, condition: Callable[[], object]) -> None:
        until = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                pytest.fail(self.process.communicate()[1] + self.said)
            time.sleep(0.02)

    def ended(self) -> tuple[int, str, str]:
        """Return exit code, output and errors, which end only with its last child."""
        _, err = self.process.communicate(timeout=PATIENCE)
        out = self.said
        assert "Traceback" not in out + err
        return self.process.returncode, out, err
