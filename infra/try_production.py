"""Tries docs/production.md once: a run on a Prefect server that has PostgreSQL and a password.

`make try-production` in a clone of this repository. Nothing that it starts outlives it; what was
written is in runs/try-production/. With --crash, a worker and its runs are killed as well.
"""

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psutil
import yaml

from albat_core.errors import AlbatError, MissingDependencyError
from albat_core.runs.config import RunConfig
from flows.local.processes import HOST, MARK, last_lines, listen, marked, start, stop
from flows.running.own_process import spare_loopback

ROOT = Path(__file__).parent.parent
LOGS = ROOT / "runs" / "try-production"
DEBIAN = Path("/usr/lib/postgresql")  # where its programs are, out of the PATH
PATIENCE = 15.0
START_SECONDS = 120.0
RUN_SECONDS = 600.0
ENDLESS = 1_000_000  # steps of a run that is killed


class Database:
    """A PostgreSQL of its own, in a folder that nobody else can read.

    Args:
        started: what it is ended with.
    """

    def __init__(self, started: ExitStack) -> None:
        self.programs = postgresql()
        self.port = free_port()
        self.password = secrets.token_urlsafe()
        closed = tempfile.TemporaryDirectory(prefix="albat-db-", ignore_cleanup_errors=True)
        self.folder = Path(started.enter_context(closed))
        self.log = LOGS / "postgresql.log"
        given = self.folder / "password"
        given.touch(0o600)
        given.write_text(self.password, encoding="utf-8")
        if os.geteuid() == 0:
            for path in (self.folder, given):
                shutil.chown(path, "postgres", "postgres")
        known = ("--username=prefect", f"--pwfile={given}", "--auth=scram-sha-256")
        made = self._begin("initdb", "--pgdata=kept", "--encoding=UTF8", *known).wait()
        expect(made == 0, "a new database", last_lines(self.log), str(self.log))
        given.unlink()
        here = (f"listen_addresses={HOST}", f"port={self.port}", "unix_socket_directories=")
        running = self._begin("postgres", "-D", "kept", *(f"--{option}" for option in here))
        started.callback(stop, [running], PATIENCE)
        ready = "select 1"
        await_("a database", lambda: self._ask(ready).returncode == 0, running, self.log)

    def _begin(self, program: str, *arguments: str) -> psutil.Popen:
        # initdb refuses root
        root = os.geteuid() == 0
        user = {"user": "postgres", "group": "postgres", "extra_groups": []} if root else {}
        with self.log.open("ab") as written:
            return psutil.Popen(
                [self.programs / program, *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is not for it: it ends last
                **user,
            )

    @property
    def url(self) -> str:
        """Address and password, as Prefect takes them."""
        return f"postgresql+asyncpg://prefect:{self.password}@{HOST}:{self.port}/postgres"

    def ask(self, question: str) -> str:
        """Return psql's answer."""
        answer = self._ask(question)
        expect(answer.returncode == 0, f"an answer to {question!r}", answer.stderr, "psql")
        return answer.stdout.strip()

    def _ask(self, question: str) -> subprocess.CompletedProcess[str]:
        address = f"host={HOST} port={self.port} user=prefect dbname=postgres"
        plainly = ("--no-psqlrc", "--no-password", "--tuples-only", "--no-align")
        return subprocess.run(
            [self.programs / "psql", *plainly, "--command", question, address],
            env={**os.environ, "PGPASSWORD": self.password},
            capture_output=True,
            text=True,
            check=False,
        )


def postgresql() -> Path:
    """Return the folder of PostgreSQL's programs: the PATH's, or Debian's newest."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(DEBIAN.glob("*/bin"), key=lambda path: -float(path.parent.name))
    for folder in folders:
        if all((folder / program).exists() for program in ("initdb", "postgres", "psql")):
            return folder
    raise MissingDependencyError(
        "expected PostgreSQL's initdb, postgres and psql, found none",
        where=f"PATH, {DEBIAN}",
        remedy="on Debian: apt-get install -y postgresql",
    )


def attempt(started: ExitStack, crash: bool) -> None:
    """Start everything, run once, and look into the database.

    Args:
        started: what everything is ended with, the last first.
        crash: whether a worker is killed as well.
    """
    LOGS.mkdir(mode=0o700, parents=True, exist_ok=True)
    for log in LOGS.glob("*.log"):
        log.unlink()
    database = Database(started)
    say(f"PostgreSQL {database.ask('show server_version')} runs on port {database.port}")
    scratch = Path(started.enter_context(tempfile.TemporaryDirectory(prefix="albat-try-")))
    mark = uuid4().hex
    started.callback(lambda: stop(marked(mark), PATIENCE))

    login, port = f"try:{secrets.token_urlsafe()}", free_port()
    api = settle(scratch, login, port)
    serve(database, scratch, login, port, mark)
    see_password(api, login)
    set_up(mark)
    say(f"set up: {database.ask('select count(*) from deployment')} deployments")

    from prefect.client.orchestration import get_client  # reads what was settled

    client = started.enter_context(get_client(sync_client=True))
    log = LOGS / "worker.log"
    worker = start(["prefect", "worker", "start", "--pool", "albat"], mark, os.environ, ROOT, log)
    began, run = time.monotonic(), trigger(client, tiny(scratch, "try"))
    await_("a run that ends", lambda: state(client, run).is_final(), worker, log, RUN_SECONDS)
    expect(state(client, run).is_completed(), "Completed", said(client, run), f"{log}, run {run}")
    say(f"a run of albat/albat, triggered: Completed after {time.monotonic() - began:.0f} s")
    for table in ("flow_run", "task_run", "log", "events"):
        count = database.ask(f"select count(*) from {table}")
        expect(int(count) > 0, "rows", count, f"PostgreSQL, table {table}")
        say(f"PostgreSQL, table {table}: {count} rows")
    others = [str(path) for path in scratch.rglob("*.db")]
    expect(not others, "no other database", ", ".join(others), str(scratch))
    if crash:
        see_crash(database, client, scratch, worker)
        expect(state(client, run).is_completed(), "Completed as before", said(client, run), run)


def settle(scratch: Path, login: str, port: int) -> str:
    """Set what Prefect reads, in place of all that a person has set; return the API's address."""
    for name in [name for name in os.environ if name.startswith("PREFECT")]:
        del os.environ[name]
    api = f"http://{HOST}:{port}/api"
    os.environ |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PREFECT_HOME": str(scratch / "prefect"),
        "PREFECT_API_URL": api,
        "PREFECT_API_AUTH_STRING": login,
        "DO_NOT_TRACK": "1",
    }
    spare_loopback(os.environ)
    return api


def serve(database: Database, scratch: Path, login: str, port: int, mark: str) -> None:
    """Start a server with what compose.yaml gives its own, but for Redis."""
    own = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database.url,
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(scratch / "ui"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    log, where = LOGS / "server.log", ["--host", HOST, "--port", str(port)]
    server = start(["prefect", "server", "start", *where], mark, {**os.environ, **own}, ROOT, log)
    health = f"{os.environ['PREFECT_API_URL']}/health"
    await_("a server that answers", lambda: status(health) == 200, server, log)


def see_password(api: str, login: str) -> None:
    """See that the server wants the password, and takes it."""
    user, _, password = login.partition(":")
    tried = {"no": (None, 401), "a wrong": ((user, "wrong"), 401), "the": ((user, password), 200)}
    for which, (given, wanted) in tried.items():
        got = status(f"{api}/admin/version", given)
        expect(got == wanted, f"{wanted} for {which} password", str(got), api)
        say(f"with {which} password the server answers {got}")


def set_up(mark: str) -> None:
    """Make pool, limit, automation and deployments by the script that compose.yaml has for it."""
    script, log = ROOT / "infra" / "docker" / "setup.sh", LOGS / "setup.log"
    with log.open("wb") as written:
        done = subprocess.run(
            ["sh", script],
            cwd=ROOT,
            env={**os.environ, MARK: mark, "ALBAT_RUNS_AT_ONCE": "2"},
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            check=False,
        )
    expect(done.returncode == 0, "that all is set up", f"\n{last_lines(log)}", str(script))


def tiny(scratch: Path, name: str, steps: int = 20) -> dict[str, Any]:
    """Return the text example's configuration at a size that takes seconds."""
    example = ROOT / "examples" / "text"
    config = yaml.safe_load((example / "demo.yaml").read_text(encoding="utf-8"))
    config["backbone"]["path"] = str(example / config["backbone"]["path"])
    for source in (*config["corpus"], config["adaptation"]):
        source |= {"path": str(example / source["path"]), "share": 0.02}
    config["adaptation"]["share"] = 0.1
    training = {"steps": steps, "batch_size": 4, "evaluate_every": 10, "warmup": 2}
    config |= {
        "name": name,
        "split": {"folds": 4},
        "retrieval": {"neighbours": 10, "candidates": 200},
        "selection": {"rows": 100},
        "mixture": {"alpha": 0.3},
        "baselines": ["adaptation_only", "random"],
        "surrogate": training,
        "finetune": training,
        "output": str(scratch / "runs"),
        "runtime": {"root": str(scratch / "artifacts"), "device": "cpu"},
    }
    return RunConfig.model_validate(config).model_dump(mode="json")


def see_crash(database: Database, client: Any, scratch: Path, worker: psutil.Popen) -> None:
    """Kill a worker with two runs, put one back into the queue, and wait for the automation."""
    from prefect.states import AwaitingRetry

    automation, _ = yaml.safe_load_all(
        (ROOT / "flows" / "local" / "crashed-runs.yaml").read_text(encoding="utf-8")
    )
    within, log = automation["trigger"]["within"], LOGS / "worker.log"
    silent, queued = (trigger(client, tiny(scratch, n, ENDLESS)) for n in ("silent", "queued"))
    beating = (
        "select count(distinct resource_id) from events where event = 'prefect.flow-run.heartbeat'"
        f" and resource_id in ('prefect.flow-run.{silent}', 'prefect.flow-run.{queued}')"
    )
    await_("a heartbeat of each", lambda: database.ask(beating) == "2", worker, log)
    # the worker first: it would tell the server of the others
    for process in [worker, *worker.children(recursive=True)]:
        process.kill()
    killed = time.monotonic()
    client.set_flow_run_state(UUID(queued), AwaitingRetry())  # as a worker does for a lost machine
    say("a worker and its two runs were killed with -9, and one of these was put into the queue")
    crashed = within + START_SECONDS
    await_("Crashed", lambda: state(client, silent).is_crashed(), None, log, crashed)
    say(f"{time.monotonic() - killed:.0f} s later the other is {said(client, silent)}")
    time.sleep(max(0.0, killed + within + PATIENCE - time.monotonic()))
    expect(state(client, queued).is_scheduled(), "Scheduled", said(client, queued), queued)
    say(f"{time.monotonic() - killed:.0f} s later that one is {said(client, queued)}")


def trigger(client: Any, config: dict[str, Any]) -> str:
    """Start the deployment of the whole chain, as the form does; return the run's id."""
    deployed = client.read_deployment_by_name("albat/albat")
    run = client.create_flow_run_from_deployment(deployed.id, parameters={"config": config})
    return str(run.id)


def state(client: Any, run: str) -> Any:
    """Return a run's state."""
    return client.read_flow_run(UUID(run)).state


def said(client: Any, run: str) -> str:
    """Return the name of a run's state and what it says."""
    found = state(client, run)
    return f"{found.name} ({found.message})" if found.message else str(found.name)


def status(address: str, login: tuple[str, str] | None = None) -> int | None:
    """Return the status that an address answers with, or None where nothing does."""
    try:
        return httpx.get(address, auth=login, timeout=5, trust_env=False).status_code
    except httpx.TransportError:
        return None


def await_(
    expected: str,
    holds: Callable[[], bool],
    process: psutil.Popen | None,
    log: Path,
    seconds: float = START_SECONDS,
) -> None:
    """Wait until something holds, which it never will where the process has ended.

    Raises:
        AlbatError: it has ended, or the time is over; says what was written last.
    """
    until = time.monotonic() + seconds
    while not holds():
        ended = process is not None and process.poll() is not None
        got = "the end of its process" if ended else f"none in {seconds:.0f} s"
        late = time.monotonic() > until
        expect(not ended and not late, expected, f"{got}\n{last_lines(log)}", str(log))
        time.sleep(0.3)


def free_port() -> int:
    """Return a port that nobody has."""
    with listen(0) as listening:
        return int(listening.getsockname()[1])


def expect(holds: bool, expected: str, got: str, where: str) -> None:
    """Stop where something is not as it should be."""
    if not holds:
        raise AlbatError(f"expected {expected}, got {got}", where, f"what was written is in {LOGS}")


def say(line: str) -> None:
    """Tell a step at once."""
    print(line, flush=True)


def main() -> None:
    """Try it, and take all down however that ends."""
    options = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    options.add_argument("--crash", action="store_true", help="kill a worker, too: 4 minutes more")
    crash = options.parse_args().crash
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in ends:
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    with ExitStack() as started:
        try:
            attempt(started, crash)
        except AlbatError as error:
            sys.exit(str(error))
        finally:
            for number in ends:  # nothing keeps it from taking all down
                signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
