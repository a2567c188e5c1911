"""How a command runs flows in its own process: environment, server, and how it is stopped."""

import atexit
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

from albat_core.errors import AlbatError, ConfigError, Interrupted

STOPPED = "stopped: what was finished is kept; run the same command again to go on"
AT_ONCE = "stopped at once; what was finished is kept: run the same command again to go on"
_SHOW_CURSOR = "\x1b[?25h"
STOPS_WITHIN = 8.0
"""Seconds for a command that trains nothing here: nothing is lost by ending amid a step."""

# Set before Prefect is imported. An address of a server that a person set is left alone.
_PREFECT_SETTINGS = {
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # else an event that is not taken fills a page
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
}
_OWN_SETTINGS = {
    # a command that is stopped amid a step leaves at once, and would be told of locks it left
    "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",
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
    settings = _PREFECT_SETTINGS | PROCESS_SETTINGS | _OWN_SETTINGS
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


def named_server() -> str | None:
    """Return the address of the Prefect server that is configured, if one is; empty is none."""
    from prefect.settings import PREFECT_API_URL

    address: str | None = PREFECT_API_URL.value() or None
    return address


@contextmanager
def embedded_server() -> Iterator[Callable[[], None]]:
    """Start Prefect's server, unless one is configured; what is given waits until it answers.

    It starts beside the imports and checks that a run begins with, which take as long.

    Raises:
        StartError: it does not start; raised by what is given, too.
        ServerGoneError: it answers no longer, or knows nothing of the run.
        ConfigError: the one that is configured wants a password.
    """
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY
    from prefect.settings.context import temporary_settings

    from flows.local.server import OwnServer

    if (named := named_server()) is not None:
        with _gone_is_told(named):
            yield lambda: None
        return
    server = OwnServer()
    failed: list[Exception] = []

    def start() -> None:
        try:
            server.start()
        except Exception as error:  # raised where it is waited for
            failed.append(error)

    def answers() -> None:
        starting.join()
        if failed:
            raise failed[0]

    starting = threading.Thread(target=start, daemon=True)
    starting.start()
    try:
        # the heartbeat is for workers' runs; here its thread would hold every end for a second
        with (
            temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
            _gone_is_told("the server of this command"),
        ):
            yield answers
    finally:
        if starting.is_alive():  # a mistake ended the run before the server answered
            if server.server_process is not None:
                server.server_process.kill()
        else:
            APILogHandler().flush()  # or its worker looks for a server that is gone, for a minute
            server.stop()


class ServerGoneError(AlbatError):
    """A server no longer answers, or not of this run.

    Whoever gets this ends at once, as Prefect would ask further.
    """


@contextmanager
def refusal_is_told(server: str) -> Iterator[None]:
    """Say in a sentence that a server wants a password, or another one.

    Raises:
        ConfigError: it does.
    """
    import httpx

    try:
        yield
    except httpx.HTTPStatusError as error:
        if not was_refused(error):
            raise
        raise ConfigError(
            "expected that the Prefect server lets albat in, it answers "
            f"{error.response.status_code}",
            where=server,
            remedy="set PREFECT_API_AUTH_STRING to the server's user:password, or PREFECT_API_KEY "
            "to a key of Prefect Cloud",
        ) from error


def was_refused(error: Exception) -> bool:
    """Tell whether Prefect's server, rather than another one, wants a password."""
    from prefect.exceptions import PrefectHTTPStatusError

    return isinstance(error, PrefectHTTPStatusError) and error.response.status_code in {401, 403}


@contextmanager
def _gone_is_told(server: str) -> Iterator[None]:
    """Say in a sentence that a server is gone, where Prefect has asked for it again and again."""
    import httpx
    from prefect.exceptions import ObjectNotFound

    try:
        with refusal_is_told(server):
            yield
    except ObjectNotFound as error:
        raise ServerGoneError(
            f"expected the Prefect server to know this run, it does not ({error.http_exc})",
            where=server,
            remedy="somebody has deleted it, or the server has another database: run the same "
            "command again, what was finished is found",
        ) from error
    except (httpx.TransportError, httpx.HTTPStatusError, RuntimeError) as error:
        if not _is_servers(error):
            raise
        raise ServerGoneError(
            f"expected the Prefect server to answer, it no longer does ({error})",
            where=server,
            remedy="run the same command again when it does: what was finished is found",
        ) from error


def _is_servers(error: Exception) -> bool:
    """Tell whether a server is gone or fails, rather than that it was asked wrongly."""
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error
    # Prefect's words where a run begins
    return isinstance(error, httpx.TransportError) or str(error).startswith("Failed to reach API")


_ASKED_AGAIN = {408, 429, 502, 503}


def was_asked_again(error: Exception) -> bool:
    """Tell whether Prefect asked a server again, for a minute, before it gave up with an error."""
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _ASKED_AGAIN
    return isinstance(error, httpx.TransportError)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ANSWERING: list[Callable[..., None]] = []
"""What answers signals while a command can be stopped politely."""
_STOPPED: list[int] = []
"""The code that a command which was stopped ends with."""
_SAYS = threading.Lock()
"""Taken by who says that the command was stopped, and never given back."""


@atexit.register  # before Prefect is imported, so after all that this does at the end
def _leave() -> None:
    """End without taking the interpreter down, which takes a second of a core and keeps nothing."""
    if _STOPPED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_STOPPED[0])


def stop_is_unsaid() -> bool:
    """Tell, once, that nobody has said yet that the command was stopped."""
    return _SAYS.acquire(blocking=False)


@contextmanager
def stop_on_ctrl_c(reporter: Any, within: float | None = None) -> Iterator[None]:
    """End at the next step on the first Ctrl-C (or SIGTERM), at once on the second.

    Args:
        reporter: is told, and lets work end at its next step.
        within: seconds after which the process ends, whatever it is waiting for then; none: steps
            take as long as they take.
    """
    asked = threading.Event()

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, stop_at_once)
        reporter.stop()
        if within is not None and not asked.is_set():
            last = threading.Timer(within, end, [STOPPED])
            last.daemon = True
            last.start()
        asked.set()

    def stop_at_once(*_: object) -> None:
        end(AT_ONCE)

    def end(said: str) -> None:
        # no thread can be made to end, so the process does; files are whole or not there
        if sys.stdout.isatty():
            print(_SHOW_CURSOR, end="", flush=True)  # a bar hides it, and will not end
        if stop_is_unsaid():
            print(said, file=sys.stderr, flush=True)
        os._exit(130)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    _ANSWERING.append(stop)
    try:
        yield
    except BaseException as error:
        if not asked.is_set():
            raise
        _STOPPED.append(130)
        if isinstance(error, Interrupted):
            raise
        # what a stop broke is no failure of its own
        raise Interrupted("stopped", remedy="run the same command again to go on") from None
    finally:
        _ANSWERING.remove(stop)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def own_answer_to_sigterm() -> Iterator[None]:
    """Let SIGTERM in a flow's run stop a command politely, where one is run by a command.

    Prefect answers it with an exception wherever the run is, and with a page of traceback.
    """
    if not _ANSWERING or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _ANSWERING[-1])
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def signals_held() -> Iterator[None]:
    """Give threads and processes that are started meanwhile no signal by which a command stops."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent() -> None:
    """Ignore a terminal's Ctrl-C in this process: who started it ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def end_with(told: Connection, reporter: Any, patience: float) -> None:
    """End this process when a pipe ends: its other end is closed, or whoever has that is gone.

    Args:
        told: this end.
        reporter: is told, and lets work end at its next step.
        patience: seconds until the process ends, whatever it is at then.
    """

    def follow() -> None:
        wait([told])
        reporter.stop()
        time.sleep(patience)
        os._exit(130)  # files are whole or not there

    threading.Thread(target=follow, daemon=True).start()


def dask_setup(worker: object) -> None:
    """Prepare a process of a Dask cluster on this machine; Dask looks for this name."""
    del worker
    ignore_warnings()
    leave_signals_to_parent()
    logging.getLogger("distributed").setLevel(logging.ERROR)
