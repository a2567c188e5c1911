"""Prefect's server: for one command, with which it ends however that ends, or until told to."""

import atexit
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import httpx
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import (
    PREFECT_HOME,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    get_current_settings,
)

from flows.local import showing
from flows.local.processes import StartError

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI


_STARTS_AGAIN = 3
_LAST_BYTES = 1000  # of what a server wrote that did not start


class OwnServer(SubprocessASGIServer):
    """The embedded server, in a process group of its own.

    Prefect's would get the terminal's Ctrl-C, and be gone before the run has told it of its end;
    and it would outlive a run that is killed. This one reads a pipe that ends with the run. Where
    it is killed itself it starts again: the run waits for it that long.
    """

    _log: IO[bytes]

    def start(self, timeout: int | None = None) -> None:
        """Start it, unless it runs, and wait until it answers.

        Args:
            timeout: seconds for that; none: as Prefect's settings say.

        Raises:
            StartError: it does not answer; says what it wrote last.
        """
        if self.running:
            return
        self.running = True
        self.port = self.port or self.find_available_port()
        # tracebacks of requests that are tried again are not for the person at the terminal
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - kept as long as the server
        atexit.register(self.stop)
        seconds = timeout or PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
        with _one_at_a_time():
            process = self.server_process = self._run_uvicorn_command()
            until = time.monotonic() + seconds
            while not self._answers():
                ended = process.poll()
                if ended is not None or time.monotonic() > until:
                    got = f"it ended with {ended}" if ended is not None else f"none in {seconds} s"
                    said = self._last_words()
                    self.stop()
                    raise StartError(
                        f"expected a Prefect server that answers, {got}{said}",
                        where=str(PREFECT_HOME.value()),
                        remedy="run again, when the machine is less busy; where its database is "
                        "broken, set PREFECT_HOME to another folder",
                    )
                time.sleep(0.1)
        threading.Thread(target=self._keep, daemon=True).start()

    def stop(self) -> None:
        """End it, for good."""
        self.running = False  # before it ends, or it would be started again
        super().stop()

    def _keep(self) -> None:
        """Start it again at the same address where it ends before its time."""
        for _ in range(_STARTS_AGAIN):
            process = self.server_process
            if process is None:
                return
            process.wait()
            if not self.running:
                return
            self.server_process = self._run_uvicorn_command()

    def _answers(self) -> bool:
        try:
            answer = httpx.get(f"{self.api_url}/health", trust_env=False)
        except httpx.TransportError:
            return False
        return answer.is_success

    def _last_words(self) -> str:
        self._log.seek(max(self._log.seek(0, os.SEEK_END) - _LAST_BYTES, 0))
        return "".join(
            f"\n    {line}" for line in self._log.read().decode(errors="replace").splitlines()
        )

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        return subprocess.Popen(  # noqa: S603 - all of it is our own
            # -P: a folder of this package's name may lie where the command is run
            [sys.executable, "-P", "-m", __name__, str(self.port)],
            stdin=subprocess.PIPE,
            stderr=self._log,
            env={
                **os.environ,
                "PREFECT_UI_ENABLED": "0",
                "PREFECT__SERVER_EPHEMERAL": "1",
                "PREFECT__SERVER_FINAL": "1",
                **get_current_settings().to_environment_variables(exclude_unset=True),
            },
            process_group=None if sys.platform == "win32" else 0,
        )


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let servers of one home start one after the other: each looks whether to make its database.

    Two that make it at once end with pages of traceback.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    home = PREFECT_HOME.value()
    home.mkdir(parents=True, exist_ok=True)
    with (home / "albat-start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with this process, however that ends
        yield


def _end_with_parent() -> None:
    """Wait for the pipe's end; what was to be stored is stored by then, or lost with the run."""
    sys.stdin.buffer.read()
    os._exit(0)


def serve(port: int) -> None:
    """Serve on this machine alone, until the parent process ends."""
    # told to end amid a request, it gives a connection back that is cancelled: pages of traceback,
    # though what was asked for is stored before that
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _server(host="127.0.0.1", port=port, log_level="error").run()


def serve_on(listening: socket.socket) -> None:
    """Serve on a socket that listens already, until told to end."""
    # a browser's open page must not hold the end
    _server(log_level="warning", timeout_graceful_shutdown=3).run([listening])


def _server(**options: Any) -> "uvicorn.Server":
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config("flows.local.server:served", factory=True, lifespan="on", **options)
    )


def served() -> "FastAPI":
    """Return Prefect's server, with the pages of runs where `albat up` has a folder of them."""
    from prefect.server.api.server import create_app

    app = create_app()
    if folder := os.environ.get(showing.SETTING):
        app.router.routes.insert(
            0, showing.pages_in(folder)
        )  # before Prefect's own, which take all
    return app


if __name__ == "__main__":
    if sys.argv[1] == "--socket":
        serve_on(socket.socket(fileno=int(sys.argv[2])))
    else:
        serve(int(sys.argv[1]))
