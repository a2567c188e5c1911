"""Prefect's server for one command: it ends with the command, however that ends."""

import os
import subprocess
import sys
import threading
from typing import Any

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings


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
    import uvicorn

    threading.Thread(target=_end_with_parent, daemon=True).start()
    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=port,
        log_level="error",
        lifespan="on",
    )


if __name__ == "__main__":
    serve(int(sys.argv[1]))
