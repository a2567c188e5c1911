"""The server that a command starts for itself: one at a time, again where it was killed."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_HOME
from prefect.settings.context import temporary_settings

from albat_core.errors import ConfigError
from flows.local.processes import StartError, listen
from flows.local.server import OwnServer
from flows.running import own_process
from flows.running.own_process import ServerGoneError, embedded_server
from tests.waiting import PATIENCE, wait_until

STANDS_FOR_A_SERVER = """
import http.server, pathlib, socketserver, sys, time

making = pathlib.Path("making a database")
try:
    making.touch(exist_ok=False)
except FileExistsError:
    sys.exit("database is locked")
time.sleep(0.3)
making.unlink()

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

class Server(socketserver.TCPServer):  # that of http.server looks its own name up
    allow_reuse_address = True

Server(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""

Make = Callable[[], OwnServer]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Make]:
    """Make servers of one home, which something small stands for."""

    class Small(OwnServer):
        def _run_uvicorn_command(self) -> subprocess.Popen[bytes]:
            program = [sys.executable, "-S", "-c", STANDS_FOR_A_SERVER, str(self.port)]
            return subprocess.Popen(program, cwd=tmp_path, stderr=self._log)

    with ExitStack() as stack:
        stack.enter_context(temporary_settings({PREFECT_HOME: tmp_path}))

        def make() -> OwnServer:
            with listen(0) as listening:
                port = listening.getsockname()[1]
            made = Small(port)
            stack.callback(made.stop)
            return made

        yield make


@pytest.mark.slow
def test_servers_of_one_home_start_one_after_the_other(server: Make) -> None:
    made = [server() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        for started in [threads.submit(each.start, int(PATIENCE)) for each in made]:
            started.result()
    assert all(each.running for each in made)


@pytest.mark.slow
def test_a_server_that_was_killed_starts_again_until_it_is_stopped(server: Make) -> None:
    made = server()
    made.start(int(PATIENCE))
    first = made.server_process
    assert first is not None
    first.kill()
    wait_until(lambda: made.server_process is not first and made._answers())
    second = made.server_process
    assert second is not None
    made.stop()
    assert second.poll() is not None
    assert not made._answers()


@pytest.mark.slow
def test_a_server_that_does_not_start_is_told_with_its_last_words(
    server: Make, tmp_path: Path
) -> None:
    made = server()
    (tmp_path / "making a database").touch()
    with pytest.raises(StartError, match=r"answers, it ended with 1\n    database is locked"):
        made.start(int(PATIENCE))
    assert not made.running


def test_a_command_says_that_its_server_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: OwnServer) -> None:
        raise StartError("expected a server")

    monkeypatch.setattr(OwnServer, "start", fails)
    monkeypatch.setattr(OwnServer, "_instances", {})  # where Prefect may keep one of its own
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with (
        temporary_settings({PREFECT_API_URL: None}),
        pytest.raises(StartError, match="expected a server"),
        embedded_server() as answers,
    ):
        answers()


def test_an_empty_address_is_none() -> None:
    for address in ("", None):
        with temporary_settings({PREFECT_API_URL: address}):
            assert own_process.named_server() is None


def test_a_command_says_that_its_server_is_gone() -> None:
    named = "http://127.0.0.1:9/api"
    with (
        temporary_settings({PREFECT_API_URL: named}),
        pytest.raises(
            ServerGoneError, match=r"127\.0\.0\.1:9.*no longer.*\n.*run the same command"
        ),
        embedded_server(),
    ):
        raise httpx.ConnectError("refused")


GONE = """
import atexit
from unittest import mock
from flows import cli
from flows.running.own_process import ServerGoneError

def app(**_):
    raise ServerGoneError("expected a server")

atexit.register(print, "what Prefect would do at the end")
with mock.patch.object(cli, "app", app):
    cli.main()
"""


@pytest.mark.slow
def test_a_command_whose_server_is_gone_ends_at_once() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", GONE], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert ended.returncode == 1
    assert "expected a server" in ended.stderr
    assert "Prefect would" not in ended.stdout


def test_a_server_that_fails_is_told_in_a_sentence() -> None:
    asked = httpx.Request("GET", "http://there/api/health")
    failing = httpx.HTTPStatusError("500", request=asked, response=httpx.Response(500))
    for error in (RuntimeError("Failed to reach API at http://there/api/"), failing):
        with (
            pytest.raises(own_process.ServerGoneError, match="there"),
            own_process._gone_is_told("there"),
        ):
            raise error
    missing = httpx.HTTPStatusError("404", request=asked, response=httpx.Response(404))
    with (
        pytest.raises(own_process.ServerGoneError, match=r"know this run.*\(404\)"),
        own_process._gone_is_told("there"),
    ):
        raise ObjectNotFound(http_exc=missing)
    refused = httpx.HTTPStatusError("422", request=asked, response=httpx.Response(422))
    for mistake in (RuntimeError("of another kind"), refused):
        with pytest.raises(type(mistake)), own_process._gone_is_told("there"):
            raise mistake
    for code in (401, 403):
        shut = PrefectHTTPStatusError("shut", request=asked, response=httpx.Response(code))
        with (
            pytest.raises(ConfigError, match=rf"there.*{code}\n.*PREFECT_API_AUTH_STRING"),
            own_process._gone_is_told("there"),
        ):
            raise shut
