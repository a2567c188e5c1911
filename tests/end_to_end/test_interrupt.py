"""A run that is stopped, politely or not, goes on where it was and ends with the same adapter."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from albat_core.errors import Interrupted
from albat_core.progress import Advance, Silent, reporting_to
from albat_core.records.runs import ALBAT, LABELS
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.manifests import Manifest
from albat_core.training.checkpoint import CheckpointFile
from flows.config import load_config
from flows.running.own_process import AT_ONCE, STOPPED
from tests.end_to_end.conftest import Albat, Start
from tests.toys import rewrite, write_run
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.end_to_end

STEPS, EVALUATE_EVERY = 12, 4
STOPPING = "stopping at the next step"


class StopsAt(Silent):
    """Asks to stop once a condition on label and work done holds; notes where training began."""

    def __init__(self, condition: Callable[[str, int], bool]) -> None:
        self._condition = condition
        self.began: int | None = None

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            if label == LABELS[ALBAT] and self.began is None:
                self.began = amount
            done += amount
            if self._condition(label, done):
                raise Interrupted("stopped")

        yield advance


def without_albat(whole: RunConfig, folder: Path) -> RunConfig:
    """Return a copy of a finished run of which ALBAT's adapter, and what follows, is not made."""
    shutil.copytree(whole.runtime.root, folder / "artifacts")
    runtime = whole.runtime.model_copy(update={"root": str(folder / "artifacts")})
    config = whole.model_copy(update={"runtime": runtime, "output": str(folder / "runs")})
    chain = Chain(config)
    for ref in (chain.arms.adapter(ALBAT), chain.arms.evaluation(ALBAT), chain.report):
        assert ref is not None
        assert ref.reused
        shutil.rmtree(folder / "artifacts" / ref.stage / ref.key)
    return config


def adapter_of(config: RunConfig, ref: ArtifactRef | None = None) -> Manifest:
    """Return the manifest of ALBAT's adapter, which must be finished."""
    found = ref or Chain(config).arms.adapter(ALBAT)
    assert found is not None
    return ArtifactStore(config.runtime.root).manifest(found)


def same_adapter(one: Manifest, other: Manifest) -> bool:
    """Tell whether two adapters are equal bit for bit, and came about in the same way."""
    assert any(file.path == "adapter_model.safetensors" for file in one.files)
    return one.files == other.files and one.facts["history"] == other.facts["history"]


def checkpoints(config: RunConfig) -> list[Path]:
    return sorted(Path(config.runtime.root, "checkpoints").glob("*.safetensors"))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run, not interrupted."""
    path = write_run(tmp_path_factory.mktemp("short"), baselines=[], refit=False)
    config = load_config(str(path))
    assert (config.finetune.steps, config.finetune.evaluate_every) == (STEPS, EVALUATE_EVERY)
    assert Chain(config).report
    return config


@pytest.mark.parametrize("step", [1, 3, EVALUATE_EVERY, 6, STEPS - 1, STEPS])
def test_a_run_stopped_at_any_step_ends_the_same(
    short: RunConfig, tmp_path: Path, step: int
) -> None:
    config = without_albat(short, tmp_path)
    stopping = StopsAt(lambda label, done: label == LABELS[ALBAT] and done >= step)
    with reporting_to(stopping), pytest.raises(Interrupted):
        Chain(config).arms.adapter(ALBAT)
    (checkpoint,) = checkpoints(config)
    state = CheckpointFile(str(checkpoint)).read()
    assert state is not None
    assert state.step == step
    resumed = StopsAt(lambda *_: False)
    with reporting_to(resumed):
        ref = Chain(config).arms.adapter(ALBAT)
    assert resumed.began == step
    assert same_adapter(adapter_of(config, ref), adapter_of(short))
    assert checkpoints(config) == []


def test_a_run_stopped_while_it_validates_ends_the_same(short: RunConfig, tmp_path: Path) -> None:
    config = without_albat(short, tmp_path)
    batches = 0

    def second_validation(label: str, _: int) -> bool:
        nonlocal batches
        batches += label == ""
        return batches > 1

    with reporting_to(StopsAt(second_validation)), pytest.raises(Interrupted):
        Chain(config).arms.adapter(ALBAT)
    (checkpoint,) = checkpoints(config)
    state = CheckpointFile(str(checkpoint)).read()
    assert state is not None
    assert [seen["step"] for seen in state.history] == [0]
    assert state.step == EVALUATE_EVERY
    assert same_adapter(adapter_of(config), adapter_of(short))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run, not interrupted, that writes a checkpoint after each step."""
    training = {
        "steps": STEPS,
        "batch_size": 4,
        "evaluate_every": EVALUATE_EVERY,
        "patience": STEPS,
        "adapter": {"rank": 4, "dropout": 0.1},
    }
    folder = tmp_path_factory.mktemp("whole")
    runtime = {"root": str(folder / "artifacts"), "device": "cpu", "checkpoint_seconds": 1e-9}
    config = load_config(
        str(write_run(folder, baselines=[], refit=False, finetune=training, runtime=runtime))
    )
    assert Chain(config).report
    return config


def servers_of(process: int) -> list[int]:
    """Return the servers that a command started."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    rows = re.findall(r"^ *(\d+) +(\d+) (.*)$", listed.stdout, re.MULTILINE)
    return [int(pid) for pid, parent, args in rows if "server" in args and int(parent) == process]


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def stopped_by(number: signal.Signals, path: Path, config: RunConfig, home: Path) -> Albat:
    """Run the command and send a signal to its process group, as a terminal does, as it trains."""
    go = path.with_suffix(".go")
    command = Albat(path, home, go=go)
    command.wait_until(lambda: checkpoints(config))
    (server,) = servers_of(command.process.pid)
    os.killpg(command.process.pid, number)
    if number != signal.SIGKILL:
        command.wait_until(lambda: STOPPING in command.said)
    go.touch()
    command.process.wait(PATIENCE)
    wait_until(lambda: not is_alive(server))
    (checkpoint,) = checkpoints(config)
    state = CheckpointFile(str(checkpoint)).read()
    assert state is not None
    assert 0 < state.step < STEPS
    assert not Path(config.output).exists()
    store = ArtifactStore(config.runtime.root)
    assert all(store.changed_files(ref) == [] for ref in store.all_refs())
    return command


def file_for(config: RunConfig, whole: RunConfig) -> Path:
    """Write a configuration beside the whole run's inputs, with the copy's places."""
    beside = Path(whole.runtime.root).parent
    path = shutil.copy(beside / "run.yaml", beside / f"{Path(config.output).parent.name}.yaml")
    places = {"runtime": config.runtime.model_dump(mode="json"), "output": config.output}
    return rewrite(Path(path), places)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_same_command_goes_on_after_ctrl_c(
    number: signal.Signals, whole: RunConfig, home: Path, prefect_server: str, tmp_path: Path
) -> None:
    config = without_albat(whole, tmp_path)
    path = file_for(config, whole)
    code, out, err = stopped_by(number, path, config, home).ended()
    assert code == 130
    assert f"{STOPPING}; what is finished is kept" in out
    assert STOPPED in err

    code, out, err = Albat(path, home, prefect_server).ended()
    assert code == 0, err
    assert "ALBAT reaches" in out
    assert checkpoints(config) == []
    assert same_adapter(adapter_of(config), adapter_of(whole))
    exported = Path(config.output, config.name, "adapter", "adapter_model.safetensors")
    (digest,) = (f.sha256 for f in adapter_of(whole).files if f.path == exported.name)
    assert storage.digest(exported) == digest


def test_a_run_that_was_killed_goes_on(
    whole: RunConfig, home: Path, start: Start, tmp_path: Path
) -> None:
    config = without_albat(whole, tmp_path)
    path = file_for(config, whole)
    code, _, _ = stopped_by(signal.SIGKILL, path, config, home).ended()
    assert code == -signal.SIGKILL

    run = start(path)
    assert f"fine-tune: {LABELS[ALBAT]}" in run.computed
    assert "fine-tune: surrogate" not in run.computed
    assert checkpoints(config) == []
    assert same_adapter(adapter_of(config), adapter_of(whole))


def test_a_run_whose_server_was_killed_goes_on(
    whole: RunConfig, home: Path, tmp_path: Path
) -> None:
    config = without_albat(whole, tmp_path)
    path = file_for(config, whole)
    go = path.with_suffix(".go")
    command = Albat(path, home, go=go)
    command.wait_until(lambda: checkpoints(config))
    (server,) = servers_of(command.process.pid)
    os.kill(server, signal.SIGKILL)
    command.wait_until(lambda: set(servers_of(command.process.pid)) - {server})
    go.touch()
    code, out, err = command.ended()
    assert code == 0, err
    assert "ALBAT reaches" in out
    assert "error" not in (out + err).lower()


TERMINATED = """
import os, signal, sys
from contextlib import contextmanager
from flows.cli import main
from flows.running import own_process

answer, when = own_process.own_answer_to_sigterm, sys.argv.pop()

@contextmanager
def amid_prefects():
    if when == "before":
        os.kill(os.getpid(), signal.SIGTERM)
    with answer():
        yield
    os.kill(os.getpid(), signal.SIGTERM)

own_process.own_answer_to_sigterm = amid_prefects
main()
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_sigterm_that_prefect_answers_ends_without_a_traceback(
    when: str, whole: RunConfig, prefect_server: str, tmp_path: Path
) -> None:
    path = file_for(without_albat(whole, tmp_path), whole)
    ended = subprocess.run(
        [sys.executable, "-c", TERMINATED, "embed", str(path), when],
        env={**os.environ, "PREFECT_API_URL": prefect_server},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert ended.returncode == 130, ended.stderr
    assert STOPPED in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


STOPS_TWICE = """
import os, signal, time
from flows.running.own_process import stop_on_ctrl_c

class Reporter:
    def stop(self):
        print("first", flush=True)
        os.kill(os.getpid(), signal.SIGINT)

with stop_on_ctrl_c(Reporter()):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3600)
"""


def test_a_second_ctrl_c_ends_at_once() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", STOPS_TWICE],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert ended.returncode == 130
    assert ended.stdout == "first\n"
    assert ended.stderr == f"{AT_ONCE}\n"
