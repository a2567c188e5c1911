"""Prefect's server: for one command, with which it ends however that ends, or until told to."""

import logging
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

from flows.local import showing

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI


class OwnServer(SubprocessASGIServer):
    """The embedded server, in a process group of its own.

    Prefect's would get the terminal's Ctrl-C, and be gone before the run has told it of its end;
    and it would outlive a run that is killed. This one reads a pipe that ends with the run.
    """

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        return subprocess.Popen(  # noqa: S603 - all of it is our own
            # -P: a folder of this package's name may lie where the command is run
            [sys.executable, "-P", "-m", __name__, str(self.port)],
            stdin=subprocess.PIPE,
            env={
                **os.environ,
                "PREFECT_UI_ENABLED": "0",
                "PREFECT__SERVER_EPHEMERAL": "1",
                "PREFECT__SERVER_FINAL": "1",
                **get_current_settings().to_environment_variables(exclude_unset=True),
            },
            process_group=None if sys.platform == "win32" else 0,
        )


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
