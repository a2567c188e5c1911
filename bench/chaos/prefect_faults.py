"""Runs as flows on a Prefect server that fails, is killed, or thinks that they have crashed."""

import json
import logging
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import psutil

from albat_core.runs.config import RunConfig
from bench.chaos.children import PATIENCE, Ended, in_child
from bench.chaos.outcome import NOT_MET, Draw, Trial
from bench.chaos.proxy import Answer, Ask, Asked, Proxy, between
from bench.chaos.storms import (
    Made,
    after,
    altered,
    anything,
    cut_in_middle,
    gone,
    late,
    now_and_then,
    page_to_log_in,
    refuses,
)
from bench.chaos.toy import Wanted, at, differences

_ATTEMPTS = 3  # in place of Prefect's six, which take two minutes: more faults reach albat
_AGAIN = 0.5
"""Chance of an artifact to be made again by a run: a whole one would take longer."""


@dataclass
class Server:
    """A Prefect server with a database of its own, behind a proxy.

    Args:
        folder: its home.
        port: that it listens on.
    """

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Of the server itself."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.local.server", str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PREFECT_HOME": str(self.folder), "PREFECT_UI_ENABLED": "0"},
        )
        until = time.monotonic() + PATIENCE
        while not self.answers():
            assert time.monotonic() < until and self.process.poll() is None, "no Prefect server"
            time.sleep(0.2)

    def answers(self) -> bool:
        """Tell whether it does."""
        with suppress(OSError), urlopen(f"{self.address}/api/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def mend(self) -> None:
        """Start it again where it does not answer."""
        if not self.answers():
            self.kill()
            self.start()

    def kill(self) -> None:
        """Kill it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @contextmanager
    def gone(self) -> Iterator[None]:
        """Kill it, then start it again."""
        self.kill()
        yield
        self.start()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the database so that nobody else writes."""
        holder = sqlite3.connect(self.folder / "prefect.db", timeout=60, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        yield
        holder.execute("ROLLBACK")
        holder.close()

    @contextmanager
    def full(self) -> Iterator[None]:
        """Let it write no file that grows, as on a full disk."""
        assert self.process is not None
        before = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (4096, before[1]))
        yield
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, before)

    @contextmanager
    def told(self, state: str) -> Iterator[None]:
        """Say to it of the run that goes on that this is in a state."""
        going = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}}
        runs = self._post("flow_runs/filter", going)
        assert runs, "no run goes on"
        for run in runs:
            said = {"state": {"type": state, "name": state.capitalize()}, "force": True}
            self._post(f"flow_runs/{run['id']}/set_state", said)
        yield

    @contextmanager
    def without_run(self) -> Iterator[None]:
        """Kill the process of the run that goes on."""
        for child in psutil.Process().children():
            if self.process is not None and child.pid != self.process.pid:
                child.kill()
        yield

    def _post(self, path: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        asked = Request(f"{self.address}/api/{path}", json.dumps(body).encode(), headers)
        with urlopen(asked, timeout=30) as answer:
            return json.load(answer)


@contextmanager
def server(folder: Path) -> Iterator[tuple[Server, Proxy]]:
    """Serve on this machine, with a proxy before."""
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        made = Server(folder, free.getsockname()[1])
    made.start()
    try:
        with between(made.address) as proxy:
            yield made, proxy
    finally:
        made.kill()


def _asks(*parts: str) -> Callable[[Asked], bool]:
    return lambda asked: any(part in asked.path for part in parts)


LOGS = "API: 500 to all logs"
API: dict[str, Made] = {
    "API: 503 to one request in six": now_and_then(anything, 1 / 6, refuses(503, "busy")),
    "API: 500 to one request in ten": now_and_then(anything, 1 / 10, refuses(500, "error")),
    "API: 503 to 20 requests in a row": after(30, 20, refuses(503, "busy")),
    "API: 429 to one request in six": now_and_then(anything, 1 / 6, refuses(429, "slowly")),
    "API: one connection in eight cut": now_and_then(anything, 1 / 8, gone),
    "API: one body in eight cut in its middle": now_and_then(
        anything, 1 / 8, altered(cut_in_middle)
    ),
    "API: one answer in eight is a page to log in": now_and_then(
        anything, 1 / 8, altered(page_to_log_in)
    ),
    "API: each answer 0.2 s late": now_and_then(anything, 1.0, late(0.2)),
    "API: one answer in ten 3 s late": now_and_then(anything, 1 / 10, late(3.0)),
    LOGS: now_and_then(_asks("/logs"), 1.0, refuses(500, "error")),
    "API: 500 to all artifacts": now_and_then(_asks("/artifacts"), 1.0, refuses(500, "error")),
    "API: 404 to one state of a run in four": now_and_then(
        _asks("set_state"), 1 / 4, refuses(404, "Flow run not found")
    ),
    "API: no connection from some request on": after(30, None, gone),
    "API: heartbeats and events are not taken": now_and_then(_asks("/events"), 1.0, gone),
}
"""Changes of what the API answers."""

SERVER: dict[str, tuple[Callable[[Server], AbstractContextManager[None]], float | None]] = {
    "server killed, another in its place after 6 s": (Server.gone, 6.0),
    "server killed for good": (Server.gone, None),
    "database locked for 12 s": (Server.locked, 12.0),
    "disk of the database full for 6 s": (Server.full, 6.0),
    "run marked as crashed, though it goes on": (lambda there: there.told("CRASHED"), None),
    "run marked as cancelled, though it goes on": (lambda there: there.told("CANCELLED"), None),
    "worker killed while its run goes on": (Server.without_run, None),
}
"""What is done to the server while a run goes on, and for how many seconds after the run asks it
something; None: until the run has ended."""

NAMES = [*SERVER, *API]


def run_flow(config: RunConfig, address: str, verbose: bool = False) -> None:
    """Run the flow on a server, as `albat run` does."""
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES
    from prefect.settings.context import temporary_settings

    from flows.albat import albat
    from flows.running.own_process import embedded_server

    for name in ("prefect.flow_runs", "prefect.task_runs") if verbose else ():
        logging.getLogger(name).setLevel(logging.INFO)
    api = {PREFECT_API_URL: f"{address}/api", PREFECT_CLIENT_MAX_RETRIES: _ATTEMPTS - 1}
    with temporary_settings(updates=api), embedded_server() as answers:
        answers()
        albat(config)


def disturb(
    names: Sequence[str], draw: Draw, config: RunConfig, wanted: Wanted, folder: Path
) -> Iterator[tuple[str, Trial]]:
    """Run flows through each fault, and again without it.

    Args:
        names: of faults.
        draw: says when, and which requests are met.
        config: of a finished run.
        wanted: what it came to.
        folder: for roots and the server.
    """
    with server(folder / "server") as (there, proxy):
        for name in names:
            trial = folder / "trial"
            drawn = draw(name)
            shutil.copytree(config.runtime.root, trial / "artifacts")
            for ref in wanted.manifests:
                if drawn.random() < _AGAIN or ref.startswith(("adapter", "evaluation", "report")):
                    (trial / "artifacts" / ref / "manifest.json").unlink()
            yield name, _disturbed(name, drawn, at(config, str(trial)), wanted, there, proxy)
            shutil.rmtree(trial)


def _disturbed(
    name: str,
    draw: np.random.Generator,
    config: RunConfig,
    wanted: Wanted,
    there: Server,
    proxy: Proxy,
) -> Trial:
    """Run once with a fault and once without it; return what became of it."""

    def run() -> Ended:
        return in_child(lambda: run_flow(config, proxy.address, verbose=name == LOGS))

    if name in API:
        with proxy.changing(API[name](draw)):
            first = run()
        met = bool(proxy.met)
    else:
        down = Down(*SERVER[name], there, after=int(draw.integers(3)))
        with proxy.changing(down.change):
            first = run()
            down.end()
        met = down.met.is_set() or first.killed
    there.mend()
    wrong = [first.broke] if first.broke else []
    if not met:
        wrong.append(NOT_MET)
    again = in_child(lambda: run_flow(config, proxy.address))
    if not again.finished:
        wrong.append(again.broke or f"the repeated run ends: {again.told[0]}")
    else:
        wrong += differences(config, wanted)
    return Trial(name, wrong, ("`Killed`",) if first.killed else first.told)


class Down:
    """Something done to a server once a run has begun, undone in time.

    Args:
        fault: what.
        seconds: that it lasts from when the run asks something then; None: until the run's end.
        there: the server.
        after: requests of the run after it has said that it runs.
    """

    def __init__(
        self,
        fault: Callable[[Server], AbstractContextManager[None]],
        seconds: float | None,
        there: Server,
        after: int,
    ) -> None:
        self._fault, self._seconds, self._there, self._left = fault, seconds, there, after
        self._lock = threading.Lock()
        self._running = self.stands = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._do)
        self.met = threading.Event()
        """Set where the run asked the server for something meanwhile."""

    def change(self, asked: Asked, ask: Ask) -> Answer:
        """Pass a request on; see ``proxy.Change``."""
        if self.stands:
            self.met.set()
        answer = ask()
        with self._lock:
            self._running = self._running or "set_state" in asked.path
            if self._running and self._thread.ident is None:
                if self._left == 0:
                    self._thread.start()
                self._left -= 1
        return answer

    def _do(self) -> None:
        with self._fault(self._there):
            self.stands = True
            while not (self.met.wait(0.1) or self._ended.is_set()):
                pass
            self._ended.wait(self._seconds)
            self.stands = False

    def end(self) -> None:
        """Undo it, as the run has ended."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
