"""Work in a process of its own, forked after the imports so that it costs little, and killed."""

import json
import logging
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from albat_core.errors import AlbatError

PATIENCE = 240.0
"""Seconds after which a child counts as one that hangs."""
_FORGETS = "Traceback (most recent call last)"
_WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Moment:
    """When a child is killed: after some seconds, or just before one of its writes.

    Args:
        seconds: since it began.
        write: how many files and folders were made, renamed or removed by then.
    """

    seconds: float | None = None
    write: int | None = None

    def __str__(self) -> str:
        return f"write {self.write}" if self.write is not None else f"{self.seconds:.2f} s"


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Args:
        seconds: that it took.
        killed: whether it was killed.
        gave: what its work returned, as JSON has it.
        writes: files and folders that it made, renamed or removed.
        told: warnings, and the error it ended with, as a person sees them.
        failed: whether it ended with an error that says what to do.
        broke: what no person should see: a traceback's last line, or that it hangs.
    """

    seconds: float
    killed: bool = False
    gave: Any = None
    writes: int = 0
    told: tuple[str, ...] = ()
    failed: bool = False
    broke: str = ""

    @property
    def finished(self) -> bool:
        """Whether its work was done to its end."""
        return not (self.killed or self.failed or self.broke)


def in_child(work: Callable[[], Any], kill: Moment | None = None) -> Ended:
    """Do work in a forked process, and wait for it or kill it.

    Args:
        work: returns what JSON can say.
        kill: when it gets SIGKILL; none: it is left alone.
    """
    reads, writes = os.pipe()
    with tempfile.TemporaryFile() as printed:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os.close(reads)
            _be_child(work, writes, printed.fileno(), kill.write if kill else None)
        os.close(writes)
        limit = kill.seconds if kill and kill.seconds is not None else PATIENCE
        said, late = _answer(reads, began + limit)
        if late:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        seconds = time.monotonic() - began
        printed.seek(0)
        shown = printed.read().decode(errors="replace")
    if said is None:
        if late and limit == PATIENCE:
            return Ended(seconds, broke=f"hangs for {PATIENCE:.0f} seconds")
        if late or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            return Ended(seconds, killed=True)  # late: at its end, perhaps, with nobody to tell
        return Ended(seconds, broke=f"ended with {status}: {shown.strip()[-200:]}")
    if _FORGETS in shown and not said["broke"]:
        said["broke"] = shown.strip().splitlines()[-1]
    said["told"] = tuple(said["told"])
    return Ended(seconds, **said)


def _answer(reads: int, until: float) -> tuple[dict[str, Any] | None, bool]:
    """Return what a child says at its end, and whether it had not by then."""
    content = b""
    with os.fdopen(reads, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(until - time.monotonic(), 0))[0]:
            block = pipe.read(1 << 16)
            if not block:
                return (json.loads(content) if content else None), False
            content += block
    return None, True


def _be_child(work: Callable[[], Any], told: int, printed: int, kill_at: int | None) -> None:
    """Do the work and end the process; never returns."""
    said: dict[str, Any] = {"told": []}
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    count = _count_writes(kill_at)
    listener = _Listener(said["told"])
    logging.getLogger("albat_core").addHandler(listener)
    logging.getLogger("flows").addHandler(listener)
    random.seed()
    try:
        said |= {"gave": work(), "broke": ""}
    except AlbatError as error:
        said["told"].insert(0, str(error))
        said |= {"failed": True, "broke": ""}
    except BaseException as error:
        traceback.print_exc()
        said["broke"] = f"{type(error).__name__}: {error}"
    said["writes"] = count[0]
    try:
        content = json.dumps(said).encode()
        sys.stderr.flush()
        while content:
            content = content[os.write(told, content) :]
    finally:
        os._exit(0)


class _Listener(logging.Handler):
    """Keeps warnings, which a terminal shows."""

    def __init__(self, told: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        self._told.append(record.getMessage())


def _count_writes(kill_at: int | None) -> list[int]:
    """Count what this process does to files from now on; it is killed before one of these."""
    count = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & _WRITE_FLAGS:
                return
        elif event not in _WRITES:
            return
        count[0] += 1
        if count[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def flip(file: Path, bit: int) -> None:
    """Flip a bit of a file, as a disk does: its time stays."""
    state = file.stat()
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
