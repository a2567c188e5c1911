"""Processes that outlive the command that starts them, known by a mark in their environment.

Whatever they start carries the mark as well. A process number alone would not do: it may be another
process's by the time that somebody asks.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from albat_core.errors import AlbatError, ConfigError

MARK = "ALBAT_UP"
HOST = "127.0.0.1"
_RUN_ID = "PREFECT__FLOW_RUN_ID"
_PORTS_TRIED = 100
_LAST_PORT = 65535
_LAST_LINES = 15


class StartError(AlbatError):
    """A server or a worker does not start, or does not answer."""


def start(
    arguments: Sequence[str],
    mark: str,
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    kept: Sequence[int] = (),
) -> psutil.Popen:
    """Start a Python module in a session of its own, so that it stays when the terminal closes.

    Args:
        arguments: the module's name and what it is given.
        mark: what it and all its children are known by.
        environment: theirs, without the mark.
        folder: that it runs in.
        log: file that it writes to.
        kept: open files that it is given.
    """
    with log.open("wb") as written:
        return psutil.Popen(
            # -P: a folder of this package's name may lie where it runs
            [sys.executable, "-P", "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            env={**environment, MARK: mark},
            cwd=folder,
            pass_fds=tuple(kept),
            start_new_session=True,
        )


def marked(mark: str) -> list[psutil.Process]:
    """Return the processes that carry a mark."""
    return [process for process in psutil.process_iter() if _environment(process).get(MARK) == mark]


def carries(pid: int | None, mark: str) -> bool:
    """Tell whether the process of that number lives and carries a mark."""
    try:
        return pid is not None and _environment(psutil.Process(pid)).get(MARK) == mark
    except psutil.NoSuchProcess:
        return False


def runs_of(processes: Iterable[psutil.Process]) -> set[str]:
    """Return the ids of the flow runs that processes compute."""
    return {run for process in processes if (run := _environment(process).get(_RUN_ID))}


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
    except (psutil.Error, OSError):  # it has ended, or is another user's
        return {}


def stop(processes: Sequence[psutil.Process], patience: float) -> None:
    """End processes: ask them, wait so many seconds, then end those that are still there."""
    for process in processes:
        _send(process.terminate)
    _, stubborn = psutil.wait_procs(processes, timeout=patience)
    for process in stubborn:
        _send(process.kill)
    psutil.wait_procs(stubborn, timeout=patience)


def _send(signal: Callable[[], None]) -> None:
    try:
        signal()
    except psutil.NoSuchProcess:
        return


def listen(port: int) -> socket.socket:
    """Return a socket that listens at the first port from ``port`` on that nobody has.

    It listens from now on, so nobody can come between this and the server that is given it.
    """
    last = min(port + _PORTS_TRIED - 1, _LAST_PORT)
    for number in range(port, last + 1):
        if _answers(number):  # some systems let two listen at one port
            continue
        found = socket.socket()
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((HOST, number))
            found.listen(128)
        except OSError:
            found.close()
            continue
        return found
    raise ConfigError(
        f"expected a free port among {port} to {last}, found none",
        where=HOST,
        remedy="name another with --port",
    )


def _answers(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(
    ready: Callable[[], bool], process: psutil.Popen | None, seconds: float, name: str, log: Path
) -> None:
    """Wait until something is ready.

    Raises:
        StartError: the process has ended, or the time is over; says what it wrote last.
    """
    until = time.monotonic() + seconds
    while not ready():
        ended = process.poll() if process is not None else None
        if ended is not None or time.monotonic() > until:
            got = f"it ended with {ended}" if ended is not None else f"none in {seconds:.0f} s"
            raise StartError(
                f"expected a {name} that answers, {got}\n{last_lines(log)}",
                where=str(log),
                remedy="see that file; nothing of what was started is left running",
            )
        time.sleep(0.1)


def last_lines(log: Path) -> str:
    """Return the end of a log."""
    if not log.is_file():
        return ""
    lines = log.read_text("utf-8", errors="replace").splitlines()[-_LAST_LINES:]
    return "\n".join(f"    {line}" for line in lines)
