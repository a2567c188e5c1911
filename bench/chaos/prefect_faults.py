"""Runs as flows on a Prefect server that fails, is killed, or thinks that they have crashed."""

import json
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

from albat_core.runs.config import RunConfig
from bench.chaos.children import PATIENCE, Moment, in_child
from bench.chaos.outcome import Trial
from bench.chaos.proxy import Answer, Ask, Asked, Proxy, between, unchanged
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

_AGAIN = 0.5
"""Chance of an artifact to be made again by a run: a whole one would take longer."""
_DOWN = 6.0  # seconds that a server or its database does not work


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

    def kill(self) -> None:
        """Kill it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Kill it and start it again after some time."""
        self.kill()
        time.sleep(_DOWN)
        self.start()

    def lock_database(self) -> None:
        """Hold the database so that nobody else reads or writes."""
        holder = sqlite3.connect(self.folder / "prefect.db", timeout=60, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        time.sleep(2 * _DOWN)
        holder.execute("ROLLBACK")
        holder.close()

    def fill_disk(self) -> None:
        """Let it write no file that grows, as on a full disk."""
        assert self.process is not None
        before = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (4096, before[1]))
        time.sleep(_DOWN)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, before)

    def mark_running(self, state: str) -> None:
        """Say of all runs that go on that they are in a state."""
        going = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}}
        for run in self._post("flow_runs/filter", going):
            said = {"state": {"type": state, "name": state.capitalize()}, "force": True}
            self._post(f"flow_runs/{run['id']}/set_state", said)

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
    "API: 500 to all logs": now_and_then(_asks("/logs"), 1.0, refuses(500, "error")),
    "API: 500 to all artifacts": now_and_then(_asks("/artifacts"), 1.0, refuses(500, "error")),
    "API: 404 to one state of a run in four": now_and_then(
        _asks("set_state"), 1 / 4, refuses(404, "Flow run not found")
    ),
    "API: no connection from some request on": after(30, None, gone),
    "API: heartbeats and events are not taken": now_and_then(_asks("/events"), 1.0, gone),
}
"""Changes of what the API answers."""

SERVER: dict[str, Callable[[Server], None]] = {
    "server killed, another in its place after 6 s": Server.restart,
    "server killed for good": Server.kill,
    "database locked for 12 s": Server.lock_database,
    "disk of the database full for 6 s": Server.fill_disk,
    "run marked as crashed, though it goes on": lambda s: s.mark_running("CRASHED"),
    "run marked as cancelled, though it goes on": lambda s: s.mark_running("CANCELLED"),
}
"""What is done to the server while a run goes on."""
KILLED = "worker killed while its run goes on"


def run_flow(config: RunConfig, address: str) -> None:
    """Run the flow on a server, as `albat run` does."""
    from prefect.settings import PREFECT_API_URL
    from prefect.settings.context import temporary_settings

    from flows.albat import albat
    from flows.running.own_process import embedded_server

    api = {PREFECT_API_URL: f"{address}/api"}
    with temporary_settings(updates=api), embedded_server() as answers:
        answers()
        albat(config)


def disturb(
    most: int, draw: np.random.Generator, config: RunConfig, wanted: Wanted, folder: Path
) -> Iterator[tuple[str, Trial]]:
    """Run flows through each fault, and again without it.

    Args:
        most: faults.
        draw: says when, and which requests are met.
        config: of a finished run.
        wanted: what it came to.
        folder: for roots and the server.
    """
    names = [*SERVER, KILLED, *API][:most]
    with server(folder / "server") as (there, proxy):
        for name in names:
            trial = folder / "trial"
            shutil.copytree(config.runtime.root, trial / "artifacts")
            for ref in wanted.manifests:
                if draw.random() < _AGAIN or ref.startswith(("adapter", "evaluation", "report")):
                    (trial / "artifacts" / ref / "manifest.json").unlink()
            its = at(config, str(trial))
            yield name, _disturbed(name, draw, its, wanted, there, proxy)
            shutil.rmtree(trial)
            if not there.answers():
                there.start()


def _disturbed(
    name: str,
    draw: np.random.Generator,
    config: RunConfig,
    wanted: Wanted,
    there: Server,
    proxy: Proxy,
) -> Trial:
    """Run once with a fault and once without it; return what became of it."""
    kill = Moment(seconds=float(draw.uniform(2, 8))) if name == KILLED else None
    doing: list[threading.Thread] = []
    if name in API:
        proxy.change = API[name](draw)
    elif name in SERVER:
        proxy.change = _once_after(
            int(draw.integers(4, 14)),
            lambda: doing.append(threading.Thread(target=SERVER[name], args=[there])),
            doing,
        )
    first = in_child(lambda: run_flow(config, proxy.address), kill)
    proxy.change = unchanged
    for thread in doing:
        thread.join()
    if not there.answers():
        there.start()
    wrong = [first.broke] if first.broke else []
    if name in SERVER and not doing:
        wrong.append("the fault was not met: the run asked the server too seldom")
    again = in_child(lambda: run_flow(config, proxy.address))
    if not again.finished:
        wrong.append(again.broke or f"the repeated run ends: {again.told[0]}")
    else:
        wrong += differences(config, wanted)
    return Trial(name, wrong, first.told)


def _once_after(most: int, make: Callable[[], None], made: list[threading.Thread]) -> Any:
    """Pass requests on, and start a thread at one of them."""
    lock, seen = threading.Lock(), [0]

    def change(_: Asked, ask: Ask) -> Answer:
        with lock:
            seen[0] += 1
            if seen[0] == most:
                make()
                made[0].start()
        return ask()

    return change
