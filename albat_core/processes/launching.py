"""Starts the processes of a group, follows them to their end, and ends them where one fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from pydantic_core import to_jsonable_python

from albat_core import errors
from albat_core.devices import cores_in_use
from albat_core.errors import AlbatError, Interrupted, ProcessError
from albat_core.processes.group import PeerLostError
from albat_core.progress import Advance, track

Said = dict[str, Any]
"""What a process tells: of its progress, then that it has ``made`` or ``failed``."""

_GRACE = 2.0  # seconds in which others may say first what it was that failed


def run_together(call: partial[Any], devices: Sequence[str]) -> Any:
    """Make a call in processes of this machine, one a device; they take its steps together.

    Each is a new Python that imports the function by its name. They end with this process,
    however it ends.

    Args:
        call: of a function of a module, whose arguments are given by name, as JSON says them; its
            first is the group, which each process has its own place in.
        devices: one for each process, as torch names them.

    Returns:
        what the function returned in the main process, as JSON says it.

    Raises:
        ProcessError: a process ended before it was done.
        AlbatError: what the function raised.
    """
    arguments = to_jsonable_python(call.keywords, inf_nan_mode="constants")
    name = f"{call.func.__module__}:{call.func.__qualname__}"
    with tempfile.TemporaryDirectory(prefix="albat-") as folder, ExitStack() as stack:
        members = []
        for rank, device in enumerate(devices):
            group = {"rank": rank, "size": len(devices), "device": device, "folder": folder}
            members.append(_Member(rank, len(devices), device))
            stack.callback(members[-1].end)
            members[-1].tell({"group": group, "function": name, "arguments": arguments})
        return _followed(members)


class _Member:
    """A process of a group, as whoever started it sees it."""

    def __init__(self, rank: int, size: int, device: str) -> None:
        self.rank = rank
        self.name = f"process {rank + 1} of {size} on {device}"
        self.pipe, its = Pipe()
        threads = max(cores_in_use() // size, 1)
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        with its:
            self._process = subprocess.Popen(  # noqa: S603 - this project's own module
                [sys.executable, "-m", "albat_core.processes.member", str(its.fileno())],
                env=environment,
                pass_fds=[its.fileno()],
                process_group=0,  # a terminal's Ctrl-C is for who started it
            )

    def tell(self, message: Said) -> None:
        try:
            self.pipe.send_bytes(json.dumps(message).encode())
        except OSError:  # it is gone, which is seen where it is followed
            return

    def lost(self) -> ProcessError:
        """Return the error that says how it ended."""
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return ProcessError(
            f"expected {self.name} to end its work, it ended with {how}",
            where=self.name,
            remedy="run the same command again: a training goes on from its last checkpoint; "
            "where memory was short, take fewer devices (runtime.training_devices)",
        )

    def end(self) -> None:
        """End it, whatever it is at: files are whole or not there."""
        self._process.kill()
        self._process.wait()
        self.pipe.close()


def _followed(members: Sequence[_Member]) -> Any:
    """Show the main process' progress; return what it made once all are done."""
    at_work: dict[Any, _Member] = {member.pipe: member for member in members}
    made: Any = None
    failures: list[tuple[bool, Exception]] = []
    with ExitStack() as progress:
        advances: list[tuple[Advance, ExitStack]] = []
        while at_work:
            ready = wait([*at_work], timeout=_GRACE if failures else None)
            if not ready:
                break
            for pipe in ready:
                assert isinstance(pipe, Connection)
                member = at_work[pipe]
                try:
                    said = json.loads(pipe.recv_bytes())
                except (EOFError, OSError):
                    said = {"failed": None}
                if said.keys() & {"made", "failed"}:
                    del at_work[pipe]
                if "failed" in said:
                    failures.append(_failure(member, said["failed"]))
                elif "made" in said:
                    made = said["made"] if member.rank == 0 else made
                elif not failures:
                    member.tell({"go_on": _show(said, advances, progress)})
    for knows_why in (True, False):
        for knows, error in failures:
            if knows == knows_why:
                raise error
    return made


def _show(said: Said, advances: list[tuple[Advance, ExitStack]], progress: ExitStack) -> bool:
    """Show what the main process says of its progress; return False where a person asked to stop.

    Lines are opened and closed in turn.
    """
    if "track" in said:
        line = progress.enter_context(ExitStack())
        advances.append((line.enter_context(track(*said["track"])), line))
    elif "advance" in said:
        try:
            advances[-1][0](said["advance"])
        except Interrupted:
            return False
    else:
        advances.pop()[1].close()
    return True


def _failure(member: _Member, said: Said | None) -> tuple[bool, Exception]:
    """Return what a process failed of, and whether it is more than that another was gone."""
    if said is None:
        return True, member.lost()
    kind = getattr(errors, said["kind"], None)
    if isinstance(kind, type) and issubclass(kind, AlbatError):
        error: AlbatError = kind(said["message"], said["where"], said["remedy"])
        error.add_note(f"in {member.name}")
        return True, error
    told = f"expected {member.name} to end its work, it raised {said['kind']}: {said['message']}"
    unknown = ProcessError(told, where=member.name)
    unknown.add_note(said["trace"])
    return said["kind"] != PeerLostError.__name__, unknown
