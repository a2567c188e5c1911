"""Processes that compute together: they end together, and one that is gone is named."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from albat_core.errors import InputError, ProcessError
from albat_core.processes.group import ProcessGroup
from albat_core.processes.launching import run_together
from albat_core.progress import Silent, reporting_to, track
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


def ranks_added(group: ProcessGroup, folder: Path) -> list[float]:
    """Note this process, and add up what each brings."""
    (folder / str(group.rank)).write_text(str(os.getpid()))
    brought = torch.tensor([1.0, float(group.rank), torch.get_num_threads()])
    with track("adding", 1, "sums") as advance:
        found: list[float] = group.sum(brought).tolist()
        advance(1)
    return [*found, *group.from_main(lambda: brought.double().numpy() + 7, (3,)).tolist()]


def waits(group: ProcessGroup, folder: Path, dies: int | None, raises: bool) -> None:
    """Exchange sums forever; one process may end amid it."""
    (folder / str(group.rank)).write_text(str(os.getpid()))
    for step in range(10**9):
        if step == 3 and group.rank == dies:
            if raises:
                raise InputError("expected rows, got none", where="a file", remedy="add some")
            os.kill(os.getpid(), signal.SIGKILL)
        group.sum(torch.ones(1))
        time.sleep(0.01)


def noted(folder: Path) -> list[int]:
    return [int(p.read_text()) for p in folder.iterdir() if p.read_text()]


def gone(folder: Path) -> bool:
    return not any(psutil.pid_exists(number) for number in noted(folder))


def test_processes_exchange_sums_and_show_the_progress_of_one(tmp_path: Path) -> None:
    shown: list[tuple[object, ...]] = []

    class Shows(Silent):
        def track(self, *line: object) -> object:
            shown.append(line)
            return super().track(*line)

    with reporting_to(Shows()):
        made = run_together(partial(ranks_added, folder=tmp_path), ["cpu", "cpu"])
    assert made == [2.0, 1.0, 2.0, 8.0, 7.0, 8.0]
    assert shown == [("adding", 1, "sums")]
    assert len(set(noted(tmp_path)) - {os.getpid()}) == 2
    assert gone(tmp_path)


@pytest.mark.parametrize("raises", [False, True], ids=["killed", "raises"])
def test_a_process_that_is_gone_is_named_and_ends_the_others(tmp_path: Path, raises: bool) -> None:
    call = partial(waits, folder=tmp_path, dies=1, raises=raises)
    kind, words = (InputError, "expected rows") if raises else (ProcessError, "signal SIGKILL")
    with pytest.raises(kind, match=words) as caught:
        run_together(call, ["cpu", "cpu"])
    assert "process 2 of 2 on cpu" in f"{caught.value} {getattr(caught.value, '__notes__', '')}"
    assert gone(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_processes_end_with_who_started_them(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "from functools import partial; from pathlib import Path\n"
        "from albat_core.processes.launching import run_together\n"
        "from tests.core.test_processes import waits\n"
        f"call = partial(waits, folder=Path({str(tmp_path)!r}), dies=None, raises=False)\n"
        "run_together(call, ['cpu', 'cpu'])\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: len(noted(tmp_path)) == 2)
        parent.send_signal(number)
        assert parent.wait() == -number
        wait_until(lambda: gone(tmp_path))
    finally:
        parent.kill()
