"""A Prefect server and a worker on this machine, started and stopped by one command each."""

import asyncio
import fcntl
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from albat_core.errors import ConfigError
from flows.local import showing
from flows.local.processes import (
    HOST,
    StartError,
    carries,
    last_lines,
    listen,
    marked,
    runs_of,
    start,
    stop,
    wait_until,
)
from flows.running.own_process import PROCESS_SETTINGS, spare_loopback

PORT = 4200
_SERVER_SECONDS = 180.0
_DEPLOY_SECONDS = 300.0
_WORKER_SECONDS = 120.0
_LOOK_SECONDS = "2"  # between a worker's looks for runs: what a click waits for
_RUN_PATIENCE = 15.0  # for runs to end by themselves
_SERVER_PATIENCE = 10.0


class Up(BaseModel):
    """What was started, and where it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mark: str
    api: str
    own_server: bool
    server_pid: int | None = None
    worker_pid: int | None = None

    @property
    def ui(self) -> str:
        """Address for people."""
        return self.api.removesuffix("/api")


def up(folder: Path, server: str | None = None, port: int = PORT) -> tuple[Up, bool]:
    """Start a server, unless one is named, and a worker; deploy everything.

    Args:
        folder: where database, logs and what was started are kept.
        server: address of a server that runs; it is neither started nor stopped.
        port: of the own server, or the next that is free.

    Returns:
        what runs, and whether it ran already.

    Raises:
        StartError: something did not start; then nothing is left running.
        ConfigError: another server is named than the one in use, or one that does not answer.
    """
    with _alone(folder):
        before = _read(folder)
        if before is not None and _lives(before):
            if server is not None and _api(server) != before.api:
                raise ConfigError(
                    f"expected the server that is in use, {before.ui}, got {server}",
                    where="--server",
                    remedy="run `albat down` first",
                )
            _refuse_silent(before.api)
            return before, True
        if before is not None:
            _clear(folder, before)
        wanted = Up(
            mark=uuid4().hex,
            api=_api(server) if server is not None else "",
            own_server=server is None,
        )
        _write(folder, wanted)
        try:
            return _start(folder, wanted, port), False
        except BaseException:
            _clear(folder, wanted)
            raise


def down(folder: Path) -> list[str] | None:
    """Stop what ``up`` started.

    Returns:
        names of the runs that were under way, which are cancelled; None where nothing was started.
    """
    if not folder.is_dir():
        return None
    with _alone(folder):
        before = _read(folder)
        return _clear(folder, before) if before is not None else None


def server_in_use(folder: Path, server: str | None) -> str:
    """Return the API of the server that is meant, which answers.

    Args:
        folder: of ``up``.
        server: address that was named; none: what ``up`` uses, or else what is set for Prefect.

    Raises:
        ConfigError: there is none, or it does not answer.
    """
    found = _read(folder)
    started = found.api if found is not None and _serves(found) else None
    address = server or started or os.environ.get("PREFECT_API_URL")
    if not address:
        raise ConfigError(
            "expected a Prefect server, got none",
            where=str(folder),
            remedy="run `albat up`, or name a server with --server",
        )
    _refuse_silent(_api(address))
    return _api(address)


def log_of(folder: Path, part: str) -> Path:
    """Return where the server, the worker or the deploying writes to."""
    return folder / f"{part}.log"


def _start(folder: Path, wanted: Up, port: int) -> Up:
    server: psutil.Popen | None = None
    environment = _environment(folder, wanted)
    if wanted.own_server:
        (folder / "pages").mkdir(exist_ok=True)
        with listen(port) as listening:
            address = f"http://{HOST}:{listening.getsockname()[1]}"
            environment["PREFECT_API_URL"] = f"{address}/api"
            server = start(
                ["flows.local.server", "--socket", str(listening.fileno())],
                wanted.mark,
                environment | _server_settings(folder, address),
                folder,
                log_of(folder, "server"),
                (listening.fileno(),),
            )
        wanted = wanted.model_copy(update={"api": f"{address}/api", "server_pid": server.pid})
        _write(folder, wanted)
    spare_loopback(os.environ)
    from flows.local import deploying  # the server starts meanwhile

    log = log_of(folder, "server")
    if wanted.own_server:
        _wait(lambda: deploying.answers(wanted.api), server, _SERVER_SECONDS, "server", log)
    else:
        _refuse_silent(wanted.api)
    asyncio.run(deploying.prepare(wanted.api, wanted.own_server))
    if wanted.own_server:
        asyncio.run(deploying.free_devices(wanted.api))
        _crash_lost(wanted.api)
    log, name = log_of(folder, "worker"), deploying.worker_name(wanted.mark)
    pool = ["--pool", deploying.POOL, "--name", name, "--install-policy", "never"]
    worker = start(
        ["flows.local.launching", "prefect", "worker", "start", *pool],
        wanted.mark,
        environment,
        Path.cwd(),
        log,
    )
    wanted = wanted.model_copy(update={"worker_pid": worker.pid})
    _write(folder, wanted)
    _deploy(folder, wanted, environment)
    _wait(lambda: deploying.works(wanted.api, name), worker, _WORKER_SECONDS, "worker", log)
    return wanted


def _wait(
    ready: Callable[[], Coroutine[Any, Any, bool]],
    process: psutil.Popen | None,
    seconds: float,
    name: str,
    log: Path,
) -> None:
    wait_until(lambda: asyncio.run(ready()), process, seconds, name, log)


def _deploy(folder: Path, wanted: Up, environment: dict[str, str]) -> None:
    log = log_of(folder, "deploy")
    deploying = start(
        ["flows.local.launching", "flows.local.redeploying"], wanted.mark, environment, folder, log
    )
    try:
        code = deploying.wait(_DEPLOY_SECONDS)
    except psutil.TimeoutExpired:
        code = None
    if code != 0:
        got = "it took too long" if code is None else f"it ended with {code}"
        raise StartError(
            f"expected that everything is deployed, {got}\n{last_lines(log)}",
            where=str(log),
            remedy="see that file; nothing of what was started is left running",
        )


def _environment(folder: Path, wanted: Up) -> dict[str, str]:
    """Return the environment of what is started.

    For an own server it is without what is set for another one.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not (wanted.own_server and name.startswith("PREFECT"))
    }
    for name, value in PROCESS_SETTINGS.items():
        environment.setdefault(name, value)
    spare_loopback(environment)
    first = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([first, *filter(None, [environment.get("PATH")])])
    if wanted.own_server:
        environment["PREFECT_HOME"] = str(folder / "prefect")
        environment[showing.SETTING] = str(folder / "pages")
    return environment | {
        "PREFECT_API_URL": wanted.api,
        "PREFECT_WORKER_QUERY_SECONDS": _LOOK_SECONDS,
    }


def _server_settings(folder: Path, address: str) -> dict[str, str]:
    host, port = address.removeprefix("http://").split(":")
    return {
        "PREFECT_SERVER_API_HOST": host,
        "PREFECT_SERVER_API_PORT": port,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect/prefect.db",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # no page of another site may start runs here
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": address,
        # the new pages report to a service elsewhere whatever is set
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # else all servers of an installation write their pages to one place
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),
        "PREFECT__SERVER_FINAL": "1",
    }


def _api(server: str) -> str:
    """Return the address of a server's API, whether it was given with its /api or without.

    Raises:
        ConfigError: it is none.
    """
    address = server.rstrip("/")
    try:
        path = httpx.URL(address).path
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigError(
            f"expected an address such as http://host:4200, got none ({error})",
            where=server,
            remedy="name the server as its pages are reached",
        ) from error
    return address if "api" in path.split("/") else f"{address}/api"


def _lives(found: Up) -> bool:
    """Tell whether all that was started is there."""
    started = [found.worker_pid, *([found.server_pid] if found.own_server else [])]
    return all(carries(pid, found.mark) for pid in started)


def _serves(found: Up) -> bool:
    """Tell whether the server is the one that was meant: a port of before may be another's now."""
    return not found.own_server or carries(found.server_pid, found.mark)


def _refuse_silent(api: str) -> None:
    from flows.local import deploying

    spare_loopback(os.environ)
    if not asyncio.run(deploying.answers(api)):
        raise ConfigError(
            "expected a Prefect server that answers, got none",
            where=api,
            remedy="check the address; a server of albat's own: `albat down`, then `albat up`",
        )


def _clear(folder: Path, found: Up) -> list[str]:
    """Stop what is there of an ``up``, runs and worker first; return the runs under way."""
    others = [process for process in marked(found.mark) if process.pid != found.server_pid]
    runs, cancelled = runs_of(others), []
    stop([process for process in others if process.pid == found.worker_pid], _RUN_PATIENCE)
    stop([process for process in others if process.is_running()], _RUN_PATIENCE)
    if (runs or found.own_server) and _serves(found):
        from flows.local import deploying

        spare_loopback(os.environ)
        if asyncio.run(deploying.answers(found.api)):
            cancelled = asyncio.run(deploying.cancel(found.api, runs))
            if found.own_server:
                _crash_lost(found.api)
    stop(marked(found.mark), _SERVER_PATIENCE)
    _state(folder).unlink(missing_ok=True)
    return cancelled


def _crash_lost(api: str) -> None:
    """Mark the runs of workers that were killed: a server of this machine alone has no others."""
    from flows.local import deploying

    asyncio.run(deploying.crash_lost(api, runs_of(psutil.process_iter())))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one command at a time start and stop in a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n", "utf-8")
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"expected a folder that can be written ({error.strerror})",
            where=str(folder),
            remedy="name another with --folder",
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with this process, however that ends
        yield


def _state(folder: Path) -> Path:
    return folder / "up.json"


def _write(folder: Path, found: Up) -> None:
    whole = _state(folder).with_suffix(".new")
    whole.write_text(found.model_dump_json(), "utf-8")
    whole.replace(_state(folder))


def _read(folder: Path) -> Up | None:
    try:
        return Up.model_validate_json(_state(folder).read_text("utf-8"))
    except (FileNotFoundError, ValidationError):
        return None
