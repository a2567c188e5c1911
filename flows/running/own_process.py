"""How a command runs flows in its own process: environment, server, and how it is stopped."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

AT_ONCE = "stopped at once; what was finished is kept"

# Set before Prefect is imported. An address of a server that a person set is left alone.
_PREFECT_SETTINGS = {
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
}
PROCESS_SETTINGS = {
    # threads that spin for long while they wait are slow where cores are shared, those that never
    # do where they are not
    "GOMP_SPINCOUNT": "1000",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
}
"""What holds in every process that computes; a worker's runs have it from `prefect.yaml`."""


def prepare_environment(verbose: bool = False) -> None:
    """Set what Prefect and the libraries read from the environment, where it is not set."""
    settings = _PREFECT_SETTINGS | PROCESS_SETTINGS
    if verbose:
        settings["PREFECT_LOGGING_LEVEL"] = "INFO"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    ignore_warnings()
    spare_loopback(os.environ)


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Let no proxy stand before a server on this machine."""
    for name in ("NO_PROXY", "no_proxy"):
        there = environment.get(name, "")
        if "127.0.0.1" not in there:
            environment[name] = ",".join(filter(None, (there, "127.0.0.1,localhost")))


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

    from flows.local.server import OwnServer

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
