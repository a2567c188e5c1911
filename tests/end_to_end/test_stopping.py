"""Benchmarks and verdicts that are stopped, however: soon, without a child left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from albat_core.training.checkpoint import CheckpointFile
from flows.running.own_process import STOPPED
from tests.toys import write_run
from tests.waiting import wait_until

pytestmark = pytest.mark.end_to_end

WITHIN = 10.0  # seconds from the signal until all processes are gone
PARALLEL = 2
TOO_MANY = 1_000_000  # steps: it trains when the signal comes


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks that take for ever."""
    folder = tmp_path_factory.mktemp("benchmark")
    run = yaml.safe_load(write_run(folder).read_text())
    for training in ("finetune", "surrogate"):
        run[training] |= {"steps": TOO_MANY, "evaluate_every": TOO_MANY}
    run["runtime"]["checkpoint_seconds"] = 0.5
    adaptation = run.pop("adaptation")
    gentle = {"learning_rate": 0.001}
    situations = {
        "plants": {"adaptation": adaptation},
        "gentle": {"adaptation": adaptation, "finetune": gentle, "surrogate": gentle},
    }
    path = folder / "benchmark.yaml"
    benchmark = {"seeds": [0], "shares": [], "parallel": PARALLEL, "run": run}
    path.write_text(yaml.safe_dump(benchmark | {"situations": situations}, sort_keys=False))
    return path


def steps(benchmark: Path) -> list[int]:
    """Return the steps that the trainings under way have kept, in order of their files."""
    files = sorted(benchmark.with_name("artifacts").glob("checkpoints/*.safetensors"))
    states = [CheckpointFile(str(file)).read() for file in files]
    return [state.step for state in states if state is not None]


@dataclass
class Command:
    """A command in a process group of its own, as a terminal makes it.

    Args:
        process: its.
        said: where it writes.
    """

    process: subprocess.Popen
    said: Path

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def family(self) -> list[psutil.Process]:
        """Return it, all that it started, and what these did."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def computing(self) -> list[psutil.Process]:
        """Return the processes that tasks run in."""
        return [p for p in self.family() if "spawn_main" in " ".join(p.cmdline())]


@contextmanager
def started(
    *arguments: object, home: Path, folder: Path, program: Sequence[str] = ("-m", "flows.cli")
) -> Iterator[Command]:
    """Run the command; whatever of it is left at the end, is ended."""
    said = folder / "said.txt"
    own = {"OMP_NUM_THREADS": "1", "PREFECT_HOME": str(home)}
    with said.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            env={k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | own,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    command = Command(process, said)
    try:
        yield command
    finally:
        if not command.has_ended():
            for one in command.family():
                one.kill()
            process.wait()


def stopped(number: signal.Signals, whom: str, command: Command) -> tuple[int, str]:
    """Send a signal, see that all processes are gone in time; return exit code and what it said."""
    family = [one for one in command.family() if one.pid != command.process.pid]
    until = time.monotonic() + WITHIN
    (os.kill if whom == "parent" else os.killpg)(command.process.pid, number)
    code = command.process.wait(WITHIN)
    _, left = psutil.wait_procs(family, timeout=until - time.monotonic())
    for one in left:
        one.kill()
    assert not left, left
    return code, command.said.read_text()


@pytest.mark.parametrize(
    ("number", "whom"),
    [
        (signal.SIGINT, "group"),
        (signal.SIGTERM, "parent"),
        (signal.SIGKILL, "parent"),
    ],
)
def test_a_benchmark_stops_with_all_its_processes_and_goes_on(
    number: signal.Signals, whom: str, benchmark: Path, home: Path, tmp_path: Path
) -> None:
    before = steps(benchmark)
    out = ("--out", tmp_path)
    with started("bench", "efficacy", benchmark, *out, home=home, folder=tmp_path) as command:

        def trains_further() -> bool:
            assert not command.has_ended(), command.said.read_text()
            now = steps(benchmark)
            return len(now) == PARALLEL and all(
                there > was for there, was in zip(now, before or [0] * PARALLEL, strict=True)
            )

        wait_until(trains_further, pause=0.2)
        assert len(command.computing()) == PARALLEL
        reached = steps(benchmark)
        code, said = stopped(number, whom, command)
    assert code == (-number if number == signal.SIGKILL else 130), said
    assert all(now >= was for now, was in zip(steps(benchmark), reached, strict=True))
    assert "Traceback" not in said
    assert "resource_tracker" not in said
    assert [line for line in said.splitlines() if "stop" in line] == (
        [] if number == signal.SIGKILL else [STOPPED]
    )


HOLDS = """
import sys, time
from pathlib import Path
from albat_core.progress import track
from albat_core.runs.chain import Chain
from flows.cli import main

began, steps = Path(sys.argv.pop()), sys.argv.pop()

def hold(self):
    with track("estimate", 1, "row") as advance:
        began.touch()
        while True:
            time.sleep(0.1)
            if steps == "steps":
                advance(0)

Chain.estimate = property(hold)
main()
"""


@pytest.mark.parametrize("comes", ["steps", "no steps"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_verdict_stops_even_where_no_step_comes(
    number: signal.Signals, comes: str, tmp_path: Path
) -> None:
    began, run = tmp_path / "began", write_run(tmp_path / "run")
    arguments = ("check", "--verdict", run, comes, began)
    with started(*arguments, home=tmp_path, folder=tmp_path, program=("-c", HOLDS)) as command:
        wait_until(lambda: began.exists() or command.has_ended())
        code, said = stopped(number, "group", command)
    assert code == 130, said
    assert said.splitlines()[-1] == STOPPED
    assert "Traceback" not in said
