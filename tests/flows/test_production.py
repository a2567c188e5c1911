"""What `albat up` decides before anything is started, and what is deployed."""

import base64
import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import yaml
from prefect import Flow
from prefect.settings import PREFECT_API_AUTH_STRING
from prefect.settings.context import temporary_settings
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

from albat_core.errors import ConfigError
from albat_core.runs.reselection import Watches
from albat_core.store.stage import StageConfig
from flows.albat import albat as whole_chain
from flows.config import load_config
from flows.local import production
from flows.local.deploying import DEPLOYMENTS, POOL, UPDATED, WATCH
from flows.local.processes import StartError, carries, listen, marked, start, stop, wait_until
from flows.local.production import Up
from flows.places import placed
from flows.running.own_process import PROCESS_SETTINGS
from tests.flows.conftest import Albat
from tests.toys import write_run
from tests.waiting import PATIENCE

DEPLOYED: list[dict[str, Any]] = yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]
UNSET = {  # left empty in the form
    f"{model.__name__}.{name}"
    for section in StageConfig.__subclasses__()
    for model in (section, *section.__subclasses__())
    for name, field in model.model_fields.items()
    if field.default is None
}
SLEEPS = ["timeit", "-n", "1", "-r", "1", "-s", "import time", "time.sleep(3600)"]


@pytest.fixture
def mark() -> Iterator[str]:
    """A mark whose processes do not outlive the test."""
    made = uuid4().hex
    yield made
    stop(marked(made), 5)


def test_a_port_that_is_taken_is_left_alone() -> None:
    with listen(4750) as first, listen(4750) as second:
        ports = [each.getsockname() for each in (first, second)]
    assert ports[0][1] != ports[1][1]
    assert {host for host, _ in ports} == {"127.0.0.1"}


def test_a_port_that_cannot_be_is_refused(
    albat: Albat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for port in (70000, -1):
        said = albat("up", "--port", port, "--folder", tmp_path)
        assert said.code == 2
        assert "'--port'" in said.err
    monkeypatch.setattr("flows.local.processes._answers", lambda port: True)
    with pytest.raises(ConfigError, match="among 65500 to 65535, found none"):
        listen(65500)


@pytest.mark.slow
def test_processes_are_known_by_their_mark_and_not_by_their_number(
    mark: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    started = start(SLEEPS, mark, os.environ, tmp_path, log)
    # its environment is told a moment later
    wait_until(lambda: bool(marked(mark)), started, PATIENCE, "process", log)
    assert [process.pid for process in marked(mark)] == [started.pid]
    assert carries(started.pid, mark)
    assert not carries(os.getpid(), mark)
    assert not carries(None, mark)
    stop(marked(mark), PATIENCE)
    assert marked(mark) == []
    assert not psutil.pid_exists(started.pid) or started.status() == psutil.STATUS_ZOMBIE


def test_what_ends_rather_than_answers_is_told_with_its_last_words(
    mark: str, tmp_path: Path
) -> None:
    log = tmp_path / "server.log"
    ends = start(["no_such_module"], mark, os.environ, tmp_path, log)
    with pytest.raises(StartError, match=r"a server that answers, it ended with 1\n.*no_such_mod"):
        wait_until(lambda: False, ends, PATIENCE, "server", log)


def test_an_own_server_takes_nothing_that_is_set_for_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "sqlite:///elsewhere.db")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:secret")
    own = Up(mark="m", api="http://127.0.0.1:4200/api", own_server=True)
    for_own = production._environment(tmp_path, own)
    set_there = {name: value for name, value in for_own.items() if name.startswith("PREFECT")}
    assert "elsewhere" not in str(set_there)
    assert "PREFECT_API_AUTH_STRING" not in set_there
    assert set_there["PREFECT_HOME"] == str(tmp_path / "prefect")
    for_other = production._environment(tmp_path, own.model_copy(update={"own_server": False}))
    assert for_other["PREFECT_API_AUTH_STRING"] == "me:secret"
    assert for_other["PREFECT_API_URL"] == own.api


def test_without_a_server_the_command_says_what_to_do(
    albat: Albat, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    for command in (["watch", toy], ["notify", "s3://bucket/rows.jsonl"]):
        said = albat(*command, "--folder", tmp_path)
        assert said.code == 1
        assert "expected a Prefect server, got none" in said.err
        assert "albat up" in said.err
    with pytest.raises(ConfigError, match="that answers, got none"):
        production.server_in_use(tmp_path, "http://127.0.0.1:9")
    assert "nothing to stop" in albat("down", "--folder", tmp_path / "none").out


def test_a_watch_in_the_place_of_another_is_refused_at_once(albat: Albat, tmp_path: Path) -> None:
    path, other = (write_run(tmp_path / name) for name in ("mine", "theirs"))
    root = tmp_path / "root"
    Watches(str(root)).add(placed(load_config(str(path), {"root": str(root)})))
    said = albat("watch", other, "--root", root, "--folder", tmp_path)
    assert said.code == 1
    assert f"{tmp_path}/mine/adaptation.jsonl" in said.err
    assert "is no longer watched" in albat("watch", other, "--root", root, "--stop").out


@pytest.mark.parametrize("address", ["http://api.example.com:4200", "https://h/prefect"])
def test_an_api_is_below_its_server_however_that_is_called(address: str) -> None:
    for given in (address, f"{address}/", f"{address}/api", f"{address}/api/"):
        assert production._api(given) == f"{address}/api"
    cloud = "https://api.prefect.cloud/api/accounts/1/workspaces/2"
    assert production._api(cloud) == cloud
    for none in ("http://host:abc", "http://[::1"):
        with pytest.raises(ConfigError, match="expected an address such as"):
            production._api(none)


class Locked(BaseHTTPRequestHandler):
    """A server that lets in by the password ``me:secret`` alone, and takes what it is told."""

    open_to_all: str
    told: list[str]

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        password = f"Basic {base64.b64encode(b'me:secret').decode()}"
        let_in = self.headers.get("Authorization") == password
        if let_in:
            self.told.append(self.path)
        no_tokens = 404 if "csrf" in self.path else 200
        self.send_response(no_tokens if let_in or self.path == self.open_to_all else 401)
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = _answer  # noqa: N815 - the library's names

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(params=["server", "proxy"])
def locked(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[str]]]:
    """A server that wants a password, itself or a proxy before it; what it was told with that."""
    told: list[str] = []
    open_to_all = "/api/health" if request.param == "server" else "/nothing"
    handler = type("One", (Locked,), {"told": told, "open_to_all": open_to_all})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", told
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_is_shown_the_password_and_wanting_another_is_told(
    albat: Albat, tmp_path: Path, locked: tuple[str, list[str]]
) -> None:
    server, told = locked
    for password in (None, "me:wrong"):
        with temporary_settings({PREFECT_API_AUTH_STRING: password}):
            for command in (["notify", "mine"], ["up", "--folder", tmp_path / "up"]):
                said = albat(*command, "--server", server)
                assert said.code == 1
                assert f"{server}/api: expected that the Prefect server lets albat in" in said.err
                assert "PREFECT_API_AUTH_STRING" in said.err
    assert told == []
    with temporary_settings({PREFECT_API_AUTH_STRING: "me:secret"}):
        assert albat("notify", "mine", "--server", server).code == 0
    assert "/api/events" in told


def test_another_server_at_the_port_of_before_is_left_alone(
    tmp_path: Path, locked: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, told = locked
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    before = Up(mark=uuid4().hex, api=f"{server}/api", own_server=True, server_pid=os.getpid())
    production._write(tmp_path, before)
    with temporary_settings({PREFECT_API_AUTH_STRING: "me:secret"}):
        with pytest.raises(ConfigError, match="expected a Prefect server, got none"):
            production.server_in_use(tmp_path, None)
        assert production.down(tmp_path) == []
    assert told == []
    assert production.down(tmp_path) is None


def test_a_run_to_be_watched_is_found_from_every_folder(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = placed(load_config(str(toy), {"root": ".albat"}))
    assert run.runtime.root == str(tmp_path / ".albat")
    assert placed(load_config(str(toy), {"root": "s3://b/p"})).runtime.root == "s3://b/p"
    named = [run.output, run.backbone.path, run.adaptation[0].paths[0], run.corpus[0].paths[0]]
    assert all(Path(name).is_absolute() for name in named)


def test_every_deployment_is_of_a_flow_and_has_what_a_run_needs() -> None:
    for each in DEPLOYED:
        module, _, name = each["entrypoint"].rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), Flow)
        assert each["enforce_parameter_schema"] is True
        assert each["work_pool"]["name"] == POOL
        assert PROCESS_SETTINGS.items() <= each["work_pool"]["job_variables"]["env"].items()
    [looks] = [each for each in DEPLOYED if each["name"] == WATCH.partition("/")[2]]
    assert looks["triggers"][0]["expect"] == [UPDATED]
    assert looks["schedules"][0]["interval"] <= 600


def test_what_may_be_none_is_accepted_so(toy: Path) -> None:
    config = load_config(str(toy)).model_dump(mode="json")
    assert config["backbone"]["revision"] is config["samples"]["dreambooth"] is None
    schema = parameter_schema(whole_chain).model_dump_for_openapi()
    assert not validate({"config": config}, schema)
    assert validate({"config": config | {"seed": None}}, schema)


@pytest.mark.parametrize(
    ("filled", "missing"),
    [({}, {"backbone", "adaptation"}), ({"backbone": {}, "adaptation": [{}]}, {"path"})],
)
def test_an_empty_form_is_told_what_is_missing(filled: dict[str, Any], missing: set[str]) -> None:
    schema = parameter_schema(whole_chain).model_dump_for_openapi()
    said = {error.message for error in validate({"config": filled}, schema)}
    assert said == {f"'{name}' is a required property" for name in missing}


def test_filters_are_taken_from_the_form(toy: Path) -> None:
    schema = parameter_schema(whole_chain).model_dump_for_openapi()
    shown = schema["definitions"]["SourceConfig"]["properties"]["filters"]
    assert (shown["type"], shown["default"], shown["title"]) == ("array", [], "Filters")
    assert [choice["title"] for choice in shown["items"]["anyOf"]] == [
        "name",
        "name with parameters",
    ]
    config = load_config(str(toy)).model_dump(mode="json")
    chosen = ["fineweb", {"name": "gopher_quality", "min_doc_words": 5}]
    for filters, sound in ((chosen, True), (["gopher"], False)):
        source = config["corpus"][0] | {"filters": filters}
        assert (not validate({"config": config | {"corpus": [source]}}, schema)) is sound


def test_the_form_describes_and_fills_every_field() -> None:
    models = parameter_schema(whole_chain).model_dump()["definitions"]
    assert len(models) > 20
    for name, model in models.items():
        for field, shown in model.get("properties", {}).items():
            place, section = f"{name}.{field}", models.get(shown.get("$ref", "").split("/")[-1], {})
            assert shown.get("description") or section.get("description"), place
            assert shown.get("title") or section.get("title"), place
            # one that is made anew each time (default_factory) would not be in the form
            filled = field in model.get("required", ()) or "default" in shown
            assert filled is (place not in UNSET), place
    asked = sorted(models["RunConfig"]["properties"].items(), key=lambda each: each[1]["position"])
    assert [name for name, _ in asked[:4]] == ["name", "backbone", "adaptation", "corpus"]
    neighbours = models["RetrievalConfig"]["properties"]["neighbours"]
    assert (neighbours["default"], neighbours["minimum"]) == (64, 1)


@pytest.mark.slow
def test_a_folder_called_flows_where_a_run_starts_is_not_taken_for_this_one(
    tmp_path: Path,
) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").write_text("")
    (tmp_path / "probe.py").write_text("import flows.albat; print(flows.albat.__file__)")
    paths = [os.environ.get("PYTHONPATH", ""), str(DEPLOYMENTS.parents[2]), str(tmp_path)]
    said = subprocess.run(
        [sys.executable, "-P", "-m", "flows.local.launching", "probe"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == str(DEPLOYMENTS.parents[1] / "albat.py")
