"""A short form of the campaign of faults, which `make chaos` does at length."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

import pytest

from bench.chaos.outcome import BEGIN, END
from bench.chaos.prefect_faults import Down, Server
from bench.chaos.proxy import Answer, Ask, Asked, between
from bench.chaos.storms import altered, cut_in_middle, gone, late, refuses
from tests.waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]
ROOT = Path(__file__).parents[2]

UNVERIFIED = """
import os, runpy, sys
from albat_core.store import verification

verification.wrong_files = lambda *_, **__: {}  # as if files were not held against their digests
sys.argv[0] = "chaos"
runpy.run_module("bench.chaos", run_name="__main__")
"""


def campaign(*arguments: str, program: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Do some faults in a process of its own, which can be forked."""
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AWS_"))},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )


PAGE = f"""# Faults

{BEGIN}| what is done | times | survived | wrong | what a person sees |
|---|---:|---:|---:|---|
| kill -9, local | 9 | 7 | 2 | `Killed` |
| S3: a storm | 1 | 1 | 0 | a\\|b -> c |
| **all** | 10 | 8 | 2 | |{END}

What was not counted.
"""


@pytest.fixture
def answering() -> Iterator[str]:
    """Serve on this machine: every answer has a body but that of what is called empty."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"" if self.path == "/empty" else b"body"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "fault", "met"),
    [
        ("full", None, 0),
        ("full", refuses(503, "busy"), 1),
        ("full", gone, 1),
        ("full", late(0.0), 1),
        ("full", altered(cut_in_middle), 1),
        ("empty", altered(cut_in_middle), 0),
    ],
)
def test_what_a_fault_met_is_counted(
    answering: str, path: str, fault: Callable[[Ask], Answer] | None, met: int
) -> None:
    def change(_: Asked, ask: Ask) -> Answer:
        return fault(ask) if fault else ask()

    with between(answering) as proxy, proxy.changing(change):
        with suppress(OSError, HTTPException), urlopen(f"{proxy.address}/{path}") as answer:
            answer.read()
        assert len(proxy.met) == met


@pytest.mark.parametrize("seconds", [0.0, None])
def test_a_fault_of_the_server_stands_until_the_run_meets_it(seconds: float | None) -> None:
    done: list[str] = []

    @contextmanager
    def fault(_: Server) -> Iterator[None]:
        done.append("done")
        yield
        done.append("undone")

    def ask(path: str) -> None:
        assert down.change(Asked("POST", path), lambda: Answer(200)).status == 200

    down = Down(fault, seconds, Server(Path(), 0), after=1)
    ask("/api/flow_runs/")
    ask("/api/flow_runs/0/set_state")
    assert not done
    ask("/api/logs/")
    wait_until(lambda: down.stands)
    assert (done, down.met.is_set()) == (["done"], False)
    ask("/api/logs/")
    assert down.met.is_set()
    if seconds is not None:
        wait_until(lambda: len(done) == 2)
    assert len(done) == (1 if seconds is None else 2)
    down.end()
    assert done == ["done", "undone"]


def test_kills_and_flipped_bits_are_survived(tmp_path: Path) -> None:
    page, notes = tmp_path / "page.md", tmp_path / "notes"
    page.write_text(PAGE)
    asked = ("--kills", "4", "--flips", "11", "--notes", str(notes), "--out", str(page))
    done = campaign(*asked, program=("-m", "bench.chaos"))
    assert done.returncode == 0, done.stderr
    assert "WRONG" not in done.stderr
    assert len(notes.read_text().splitlines()) == 15
    told = page.read_text()
    assert f"{BEGIN}{done.stdout.strip()}{END}" in told
    assert "| kill -9, local | 4 | 4 | 0 |" in told
    assert "| S3: a storm | 1 | 1 | 0 | a\\|b -> c |" in told
    assert "| **all** | 16 | 16 | 0 | |" in told
    again = campaign(*asked, program=("-m", "bench.chaos"))  # all is noted: nothing is done
    assert (again.stdout, again.stderr) == (done.stdout, "")


def test_a_store_that_does_not_look_is_found_out() -> None:
    done = campaign("--flips", "2", program=("-c", UNVERIFIED))
    assert done.returncode > 0, done.stderr
    assert "WRONG" in done.stderr
    assert "is not what its manifest says" in done.stderr
    assert done.stdout.splitlines()[-1] == "| **all** | 2 | 0 | 2 | |"
