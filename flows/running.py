"""How a command runs flows in its own process: environment, server, and how it is stopped."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

AT_ONCE = "stopped at once; what was finished is kept"

# Set before Prefect is imported. An address of a server that a person set is left alone.
_PREFECT_SETTINGS = {
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
}


def prepare_environment(verbose: bool = False) -> None:
    """Set what Prefect and the libraries read from the environment, where it is not set."""
    settings = dict(_PREFECT_SETTINGS)
    if verbose:
        settings["PREFECT_LOGGING_LEVEL"] = "INFO"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    # threads that spin for long while they wait are slow where cores are shared, those that never
    # do where they are not
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    ignore_warnings()
    loopback = "127.0.0.1,localhost"
    for name in ("NO_PROXY", "no_proxy"):  # a proxy must not stand before the embedded server
        there = os.environ.get(name, "")
        if "127.0.0.1" not in there:
            os.environ[name] = f"{there},{loopback}" if there else loopback


def ignore_warnings() -> None:
    """Drop what libraries say to each other: it is not for the person at the terminal."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


@contextmanager
def embedded_server() -> Iterator[Callable[[], None]]:
    """Start Prefect's server, unless one is configured; what is given waits until it answers.

    It starts beside the imports and checks that a run begins with, which take as long.
    """
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY
    from prefect.settings.context import temporary_settings

    from flows.server import OwnServer

    if PREFECT_API_URL.value() is not None:
        yield lambda: None
        return
    server = OwnServer()
    starting = threading.Thread(target=server.start, daemon=True)
    starting.start()
    try:
        # the heartbeat is for workers' runs; here its thread would hold every end for a second
        with temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield starting.join
    finally:
        if starting.is_alive():  # a mistake ended the run before the server answered
            if server.server_process is not None:
                server.server_process.kill()
        else:
            APILogHandler().flush()  # or its worker looks for a server that is gone, for a minute
            server.stop()


@contextmanager
def stop_on_ctrl_c(reporter: Any) -> Iterator[None]:
    """End at the next step on the first Ctrl-C (or SIGTERM), at once on the second."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, stop_at_once)
        reporter.stop()

    def stop_at_once(*_: object) -> None:
        # no thread can be made to end, so the process does; files are whole or not there
        print(AT_ONCE, file=sys.stderr)
        os._exit(130)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def dask_setup(worker: object) -> None:
    """Prepare a process of a Dask cluster on this machine; Dask looks for this name."""
    del worker
    ignore_warnings()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C: the run ends its processes
    logging.getLogger("distributed").setLevel(logging.ERROR)
