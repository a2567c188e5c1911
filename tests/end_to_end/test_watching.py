"""Adaptation data that changes: one re-selection for each state of it."""

import json
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.deployments.runner import RunnerDeployment
from prefect.flow_engine import run_flow
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running, Scheduled, State

from albat_core.errors import AlbatError, TransientError
from albat_core.records.mixtures import ADAPTATION, BACKBONE, changed_rows, weighted_rows
from albat_core.report.content import ReportContent
from albat_core.report.showing import read_changes
from albat_core.report.wording import decision, told
from albat_core.runs.config import RunConfig
from albat_core.runs.registry import Registry
from albat_core.runs.reselection import Acted, Watches
from albat_core.stages.report import EARLIER, PAGE, RESULTS
from albat_core.store.artifacts import ArtifactStore
from flows import watching
from flows.albat import albat
from flows.config import load_config
from flows.watching import changed_state, reselect, watch_adaptation
from tests.toys import topic_rows, write_jsonl, write_run

pytestmark = pytest.mark.end_to_end
OWN = topic_rows("plants", 40, seed=1)
TEMPLATE = Path(__file__).parents[2] / "infra" / "kubernetes" / "base-job-template.json"


def write_rows(run: RunConfig, count: int, topic: str = "ships") -> None:
    write_jsonl(Path(run.adaptation[0].paths[0]), OWN + topic_rows(topic, count, seed=7))


def watched(folder: Path, threshold: float) -> RunConfig:
    again = {"settle_seconds": 0.01, "threshold": threshold}
    mixture = {"alpha": "auto", "fall_back": False}
    return load_config(str(write_run(folder, mixture=mixture, reselection=again)))


def test_each_state_of_the_data_is_acted_on_once(prefect_server: str, tmp_path: Path) -> None:
    run = watched(tmp_path, threshold=0.01)
    store = ArtifactStore(run.runtime.root)
    assert watch_adaptation(config=run) == ["toy"]
    [first] = Registry(store).entries("toy")
    output = tmp_path / "runs" / "toy"
    assert 'id="changes"' not in (output / PAGE).read_text()
    assert not (output / "changes.html").exists()
    assert watch_adaptation(run.runtime.root) == []
    write_rows(run, 4)
    assert watch_adaptation(run.runtime.root) == ["toy"]
    assert watch_adaptation(run.runtime.root) == []
    before, after = Registry(store).entries("toy")
    assert before == first
    assert after.parent == first.adapter.key
    assert after.adaptation_rows > first.adaptation_rows
    assert after.gain is not None  # trained and evaluated anew
    assert 'id="changes"' in (output / PAGE).read_text()
    changes = ReportContent.model_validate_json((output / RESULTS).read_bytes()).changes
    assert changes is not None
    rows = changed_rows(*(weighted_rows(store, each.mixture) for each in (first, after)))
    assert (changes.adaptation, changes.backbone) == (rows[ADAPTATION], rows[BACKBONE])
    assert changes.alpha == (first.alpha, after.alpha)
    assert changes.worth


def test_watching_starts_from_the_finished_run_of_that_name(
    prefect_server: str, tmp_path: Path
) -> None:
    run = watched(tmp_path, threshold=0.0)
    store = ArtifactStore(run.runtime.root)
    output = tmp_path / "runs" / "toy"
    albat(run)
    [first] = Registry(store).entries("toy")
    report = (output / PAGE).read_text()
    assert watch_adaptation(config=run) == []  # all of it was done
    write_rows(run, 4)  # before a look that has anything to do
    assert watch_adaptation(run.runtime.root) == ["toy"]
    changes = ReportContent.model_validate_json((output / RESULTS).read_bytes()).changes
    assert changes is not None
    assert len(changes.adaptation.entered) > 0
    assert changes.adaptation.left == ()  # no document has another role than before
    kept = {page.read_text() for page in (output / EARLIER).iterdir()}
    assert kept == {report, (output / PAGE).read_text()}
    assert len(kept) == 2
    assert any(
        p.name.endswith(f"{first.adapter.key[:8]}.html") for p in (output / EARLIER).iterdir()
    )


def test_too_small_a_change_is_selected_and_not_trained(
    prefect_server: str, tmp_path: Path
) -> None:
    run = watched(tmp_path, threshold=1.0)
    store = ArtifactStore(run.runtime.root)
    watch_adaptation(config=run)
    write_rows(run, 4)
    result = reselect(run)
    changes = read_changes(store, result.artifact)
    assert not changes.worth
    shown = Artifact.get("toy-changes")
    assert shown is not None
    page = tmp_path / "runs" / "toy" / "changes.html"
    assert result.places == {"changes": str(page)}
    assert shown.data == f"{told(changes)}\n[Rows that came and went]({page.as_uri()})\n"
    assert decision(changes) in unescape(page.read_text())
    assert 0 < changes.moved < 1
    assert len(Registry(store).entries("toy")) == 1
    reused = {stage.label: stage.reused for stage in result.stages}
    assert reused["embed corpus"]
    assert reused["index"]
    assert not any(label.startswith("evaluate") for label in reused)
    # what a later change is compared with is what was trained on
    acted = Watches(run.runtime.root).acted("toy")
    assert acted is not None
    assert acted.trained is not None
    assert acted.trained.mixture != acted.selected.mixture
    assert reselect(run).stages == ()


def test_what_was_lost_of_the_last_selection_is_selected_anew(
    prefect_server: str, tmp_path: Path
) -> None:
    run = watched(tmp_path, threshold=0.01)
    store = ArtifactStore(run.runtime.root)
    assert watch_adaptation(config=run) == ["toy"]
    acted = Watches(run.runtime.root).acted("toy")
    assert acted is not None
    assert acted.selected.scores is not None
    shutil.rmtree(store.folder(acted.selected.scores).parent)
    write_rows(run, 4)
    assert watch_adaptation(run.runtime.root) == ["toy"]
    assert watch_adaptation(run.runtime.root) == []
    assert len(Registry(store).entries("toy")) == 2


def test_a_look_stands_for_those_that_were_due_before_it_began(prefect_server: str) -> None:
    made = watch_adaptation.to_deployment("late")
    assert isinstance(made, RunnerDeployment)
    made._path = str(Path(__file__).parent)
    deployment = made.apply()
    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:

        def look(minutes: int, **parameters: str) -> FlowRun:
            due = Scheduled(scheduled_time=now + timedelta(minutes=minutes))
            run = client.create_flow_run_from_deployment(
                deployment, state=due, parameters=parameters
            )
            return client.read_flow_run(run.id)

        late = [look(-20), look(-10)]
        others = [look(10), look(-10, root="elsewhere")]
        own = look(-30)
        client.set_flow_run_state(own.id, Pending(), force=True)
        run_flow(watch_adaptation, flow_run=own)

        def state(run: FlowRun) -> State:
            found = client.read_flow_run(run.id).state
            assert found is not None
            return found

        assert state(own).is_completed()
        assert all(state(run).is_cancelled() for run in late)
        assert own.name in str(state(late[0]).message)
        assert all(state(run).is_scheduled() for run in others)


def test_where_nothing_is_trained_the_new_mixture_is_put_in_place(
    prefect_server: str, tmp_path: Path
) -> None:
    again = {"settle_seconds": 0.01, "threshold": 0.0, "finetune": False}
    run = load_config(str(write_run(tmp_path, reselection=again)))
    store, output = ArtifactStore(run.runtime.root), tmp_path / "runs" / "toy"
    before = reselect(run)
    assert before.places == {"mixture": str(output / "mixture")}
    write_rows(run, 4)
    after = reselect(run)
    assert after.artifact != before.artifact
    folders = store.folder(after.artifact), output / "mixture"
    made, put = ({p.name: p.read_bytes() for p in f.rglob("*.*")} for f in folders)
    assert made == put
    assert not (output / "adapter").exists()


def test_a_run_whose_data_is_gone_does_not_stop_the_others(
    prefect_server: str, tmp_path: Path
) -> None:
    run = watched(tmp_path, threshold=1.0)
    gone = run.adaptation[0].model_copy(update={"path": str(tmp_path / "gone.jsonl")})
    other = run.model_copy(update={"name": "a-first-one", "adaptation": (gone,)})
    watches = Watches(run.runtime.root)
    watches.add(other)
    watches.add(run)
    with pytest.raises(AlbatError, match=r"a-first-one.*gone\.jsonl"):
        watch_adaptation(run.runtime.root)
    assert watches.acted("toy") is not None


def test_of_twenty_who_see_a_change_at_once_one_run_is_made(
    prefect_server: str, tmp_path: Path
) -> None:
    run = watched(tmp_path, threshold=1.0)
    watches = Watches(run.runtime.root)
    with get_client(sync_client=True) as client:
        made = client.create_deployment(flow_id=client.create_flow(reselect), name="reselect")
        try:
            with ThreadPoolExecutor(20) as watchers:
                names = list(
                    watchers.map(lambda _: watching.start_reselection(run, "1", watches), range(20))
                )
            its = DeploymentFilter(id=DeploymentFilterId(any_=[made]))
            runs = client.read_flow_runs(deployment_filter=its)
        finally:
            client.delete_deployment(made)
    assert len(set(names)) == 1
    assert [each.name for each in runs] == names[:1]


def test_data_is_acted_on_once_it_has_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = watched(tmp_path, threshold=1.0)
    waits: list[float] = []

    def writes_on(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) < 4:
            write_rows(run, len(waits))

    monkeypatch.setattr(watching.time, "sleep", writes_on)
    state = changed_state(run, None)
    assert len(waits) == 4
    assert set(waits) == {0.01}
    assert state == watching.data_fingerprint(run)
    monkeypatch.setattr(
        watching.time, "sleep", lambda _: write_rows(run, waits.append(0) or len(waits))
    )
    with pytest.raises(TransientError, match="settles"):
        changed_state(run, None)


class Runs:
    """A server's runs by their keys; new ones have the next of some states."""

    def __init__(self, *states: State) -> None:
        self._states = iter(states)
        self.by_key: dict[str, FlowRun] = {}
        self.heard: list[datetime] = []
        self.told: list[State] = []

    def start(self, _name: str, *, idempotency_key: str, **_: object) -> FlowRun:
        if idempotency_key not in self.by_key:
            made = FlowRun(flow_id=uuid4(), name=f"run-{len(self)}", state=next(self._states))
            self.by_key[idempotency_key] = made
        return self.by_key[idempotency_key]

    def __len__(self) -> int:
        return len(self.by_key)

    # as a client

    def __enter__(self) -> "Runs":
        return self

    def __exit__(self, *_: object) -> None: ...

    def read_events(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(events=[SimpleNamespace(occurred=time) for time in self.heard])

    def set_flow_run_state(self, _run: object, state: State) -> None:
        self.told.append(state)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runs]:
    """Let re-selections be started on a server that has only runs."""

    def made(*states: State) -> Runs:
        server = Runs(*states)
        monkeypatch.setattr(watching, "run_deployment", server.start)
        monkeypatch.setattr(watching, "get_client", lambda **_: server)
        return server

    return made


def ago(**time: float) -> datetime:
    return datetime.now(UTC) - timedelta(**time)


def test_a_re_selection_that_ended_meanwhile_is_not_started_again(
    tmp_path: Path, runs: Callable[..., Runs]
) -> None:
    run, server = watched(tmp_path, threshold=1.0), runs(Completed(), Completed(), Scheduled())

    class ActedOn(Watches):
        def acted(self, name: str) -> Acted:
            return Acted.model_construct(fingerprint="now")

    watches = ActedOn(run.runtime.root)
    assert watching.start_reselection(run, "now", watches) == "run-0"
    assert len(server) == 1
    # the data was so before, and is so again
    assert watching.start_reselection(run, "earlier", watches) == "run-2"
    assert watching.start_reselection(run, "earlier", watches) == "run-2"


def test_a_re_selection_is_of_one_root_and_configuration(
    tmp_path: Path, runs: Callable[..., Runs]
) -> None:
    run, server = watched(tmp_path, threshold=1.0), runs(*[Scheduled()] * 3)
    elsewhere = run.runtime.model_copy(update={"root": str(tmp_path / "elsewhere")})
    others = [run.model_copy(update={"runtime": elsewhere}), run.model_copy(update={"seed": 9})]
    watches = Watches(run.runtime.root)
    started = [watching.start_reselection(each, "now", watches) for each in (run, *others, run)]
    assert started == ["run-0", "run-1", "run-2", "run-0"]
    assert len(server) == 3


def test_only_failures_are_held_against_a_state_of_the_data(
    tmp_path: Path, runs: Callable[..., Runs]
) -> None:
    run = watched(tmp_path, threshold=1.0)
    watches = Watches(run.runtime.root)
    runs(*[Cancelled()] * 6, *[Crashed()] * 6, Scheduled())
    assert watching.start_reselection(run, "now", watches) == "run-12"
    server = runs(*[Failed(timestamp=ago(hours=7))] * 4, Failed(), Scheduled())
    for _ in range(2):
        with pytest.raises(AlbatError, match="5 at the same data failed"):
            watching.start_reselection(run, "now", watches)
    assert len(server) == 5
    last = server.by_key[list(server.by_key)[-1]]
    last.state = Failed(timestamp=ago(hours=7))
    assert watching.start_reselection(run, "now", watches) == "run-5"


def test_a_re_selection_that_will_never_end_is_followed_by_another(
    tmp_path: Path, runs: Callable[..., Runs]
) -> None:
    run = watched(tmp_path, threshold=1.0)
    watches = Watches(run.runtime.root)
    server = runs(Running(timestamp=ago(minutes=30)), Scheduled())
    server.heard = [ago(minutes=9)]  # late, as on a busy machine
    assert watching.start_reselection(run, "now", watches) == "run-0"
    assert server.told == []
    for silent in ([ago(minutes=11)], []):
        server = runs(Running(timestamp=ago(minutes=30)), Scheduled())
        server.heard = silent
        assert watching.start_reselection(run, "now", watches) == "run-1"
        [told] = server.told
        assert told.is_crashed()


def test_a_re_selection_may_take_as_long_to_start_as_its_pool_lets_it(
    tmp_path: Path, runs: Callable[..., Runs]
) -> None:
    run = watched(tmp_path, threshold=1.0)
    watches = Watches(run.runtime.root)
    variables = json.loads(TEMPLATE.read_text())["variables"]["properties"]
    pods = timedelta(seconds=variables["pod_watch_timeout_seconds"]["default"])
    server = runs(Pending(timestamp=datetime.now(UTC) - pods), Scheduled())
    assert watching.start_reselection(run, "now", watches) == "run-0"
    assert server.told == []
    server = runs(Pending(timestamp=datetime.now(UTC) - 2 * pods), Scheduled())
    assert watching.start_reselection(run, "now", watches) == "run-1"
    assert [state.is_crashed() for state in server.told] == [True]


def test_what_cannot_be_read_is_told_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, other = watched(tmp_path, threshold=1.0), str(tmp_path / "other")
    watches = Watches(run.runtime.root)
    for name in ("a-cut", "another-version", "broken", "strange", "toy"):
        watches.add(run.model_copy(update={"name": name}))
    folder = Path(run.runtime.root, "watches")
    cut, older = folder / "a-cut" / "watch.json", folder / "another-version" / "watch.json"
    cut.write_bytes(cut.read_bytes()[:99])
    older.write_text(older.read_text().replace('"seed":', '"seeds":', 1))
    (folder / "broken" / "acted.json").write_bytes(b"\xff{")

    def looked(run: RunConfig, acted: Acted | None) -> str:
        assert acted is None
        if run.name == "strange":
            raise RuntimeError("of a library")
        return "now"

    monkeypatch.setattr(watching, "_remembered", lambda: [other, run.runtime.root])
    monkeypatch.setattr(watching, "get_run_logger", lambda: logging.getLogger("albat_core"))
    monkeypatch.setattr(watching, "changed_state", looked)
    monkeypatch.setattr(watching, "start_reselection", lambda run, *_: started.append(run.name))
    started: list[str] = []
    Path(other).write_text("no folder", encoding="utf-8")
    with pytest.raises(AlbatError) as raised:
        watch_adaptation.fn()
    assert started == ["broken", "toy"]
    said = str(raised.value)
    assert all(name in said for name in ("a-cut", "another-version", "RuntimeError: of a library"))
    assert "broken" not in said
    assert "broken/acted.json" in caplog.text
