"""Claims: several processes want the same artifact, one makes it, the others wait and find it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from albat_core.errors import ArtifactError, Interrupted
from albat_core.progress import Silent, reporting_to
from albat_core.store import claims, storage
from albat_core.store.artifacts import ArtifactStore, Built
from albat_core.store.claims import claimed
from tests.waiting import PATIENCE, wait_until

PROGRAM = """
import os, sys, time
from pathlib import Path
from albat_core.store.artifacts import ArtifactStore, Built

root, notes, others, parts = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

def build(folder):
    Path(notes, f"call-{time.monotonic_ns()}").touch()
    while len(list(notes.glob("start-*"))) < others:  # nobody ends before all of them look
        time.sleep(0.01)
    (folder / "words.txt").write_text("leaf root")
    return Built(rows=1)

Path(notes, f"start-{os.getpid()}").touch()
for n in range(parts):
    ref = ArtifactStore(root).produce("words", 1, {"part": n}, {}, build)
    assert ArtifactStore(root).changed_files(ref) == []
"""


def starts(root: Path, notes: Path, others: int, parts: int) -> subprocess.Popen[bytes]:
    """Start a process that makes the parts once so many of them have started."""
    notes.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(root), str(notes), str(others), str(parts)]
    )


@pytest.fixture(params=["local", "memory"])
def claim(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a claim may be, on this machine and on what counts as remote."""
    root = str(tmp_path) if request.param == "local" else f"memory://{tmp_path}"
    return storage.join(root, "claims", "words", "k.json")


def write(uri: str, **changes: object) -> None:
    content = {"host": "another", "process": 1, "renewed": time.time()}
    storage.write_bytes(uri, json.dumps(content | changes).encode())


def nothing() -> None:
    return None


@pytest.mark.slow
def test_processes_side_by_side_make_each_artifact_once(tmp_path: Path) -> None:
    notes, parts = tmp_path / "notes", 3
    running = [starts(tmp_path / "root", notes, 3, parts) for _ in range(3)]
    assert [each.wait(PATIENCE) for each in running] == [0, 0, 0]
    assert len(list(notes.glob("call-*"))) == parts
    assert list((tmp_path / "root" / "claims").rglob("*.json")) == []


@pytest.mark.parametrize(("space", "held"), [("other", True), (claims.here(), False)])
def test_a_process_is_looked_for_only_where_its_number_means_something(
    claim: str, space: str, held: bool
) -> None:
    """Containers that share the machine's network share its name too."""
    write(claim, host=socket.gethostname(), process=2**22 + 1, space=space)
    assert claims.may_be_held(claim) is held


def test_a_claim_says_where_its_holder_runs(claim: str) -> None:
    with claimed(claim, "k", nothing):
        assert json.loads(storage.read_bytes(claim))["space"] == claims.here()


@pytest.mark.slow
def test_what_a_killed_process_claimed_is_made_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = starts(tmp_path / "root", tmp_path / "notes", 2, 1)  # waits for another
    wait_until(lambda: killed.poll() is not None or [*(tmp_path / "notes").glob("call-*")])
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert list((tmp_path / "root" / "claims").rglob("*.json"))
    monkeypatch.setattr(claims.time, "sleep", lambda _: pytest.fail("it was waited for"))
    ref = ArtifactStore(str(tmp_path / "root")).produce(
        "words", 1, {"part": 0}, {}, lambda _: Built()
    )
    assert not ref.reused


def test_a_claim_that_is_renewed_is_waited_for(claim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(claim)
    waits: list[float] = []
    monkeypatch.setattr(claims.time, "sleep", waits.append)
    with claimed(claim, "k", lambda: "artifact" if len(waits) == 3 else None) as found:
        assert found == "artifact"
    assert len(waits) == 3
    assert storage.exists(claim)  # it is another's


@pytest.mark.parametrize(
    "content",
    [
        {"renewed": 0.0},
        {"renewed": time.time() + 1e6},
        {"host": socket.gethostname(), "process": 2**22 + 1},
        {"host": socket.gethostname(), "process": 2**70},
        {"host": socket.gethostname(), "process": "many"},
        {"host": socket.gethostname(), "process": -1},
        {"space": claims.here(), "process": 2**22 + 1},
        {"process": None},
        {"renewed": "soon"},
        {"renewed": float("nan")},
    ],
)
def test_a_claim_that_nobody_holds_is_taken_over(claim: str, content: dict[str, object]) -> None:
    write(claim, **content)
    with claimed(claim, "k", nothing) as found:
        assert found is None
        assert json.loads(storage.read_bytes(claim))["process"] == os.getpid()
    assert not storage.exists(claim)


def test_a_claim_is_renewed_while_it_is_held(claim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_RENEWED", 0.05)

    def renewed() -> float:
        there = claims._read(claim)  # it may just be written
        assert there
        return there.renewed

    with claimed(claim, "k", nothing):
        first = renewed()
        wait_until(lambda: renewed() > first)


class Clock:
    """Counts the seconds that a waiter sleeps, each of which does something."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, each: Callable[[float], None]) -> None:
        self.seconds = 0.0
        self._each = each
        monkeypatch.setattr(claims.time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(claims.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self._each(self.seconds)


@pytest.mark.parametrize("minutes", [-20, -2, 3, 20])
def test_clocks_that_differ_do_no_work_twice(
    claim: str, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    def renew(seconds: float) -> None:
        if seconds % 15 == 0:
            write(claim, renewed=time.time() + minutes * 60 + seconds)

    write(claim, renewed=time.time() + minutes * 60)
    clock = Clock(monkeypatch, renew)
    with claimed(claim, "k", lambda: "made" if clock.seconds > 300 else None) as found:
        assert found == "made"


def test_a_claim_that_is_renewed_no_longer_lapses(
    claim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(claim)
    clock = Clock(monkeypatch, lambda _: None)
    with claimed(claim, "k", nothing) as found:
        assert found is None
    assert 60 <= clock.seconds < 62


def test_another_s_claim_is_neither_renewed_nor_given_up(
    claim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_RENEWED", 0.02)
    with claimed(claim, "k", nothing):
        write(claim, holder="another")  # it took ours for one that had lapsed
        said = storage.read_bytes(claim)
        wait_until(lambda: all(t.name != "renew" for t in threading.enumerate()))
        assert storage.read_bytes(claim) == said
    assert storage.read_bytes(claim) == said


def test_a_folder_in_a_claim_s_place_is_named(tmp_path: Path) -> None:
    place = tmp_path / "claims" / "k.json"
    place.mkdir(parents=True)
    with (
        pytest.raises(ArtifactError, match=r"k\.json: expected a claim"),
        claimed(str(place), "k", nothing),
    ):
        pytest.fail("it was not held")


def test_what_was_made_just_before_the_claim_is_found(claim: str) -> None:
    with claimed(claim, "k", lambda: "artifact") as found:
        assert found == "artifact"


def test_one_who_waits_can_be_stopped(claim: str) -> None:
    class Stops(Silent):
        def track(self, label: str, total: int, unit: str):
            raise Interrupted("stopped")

    write(claim)
    with (
        reporting_to(Stops()),
        pytest.raises(Interrupted),
        claimed(claim, "k", nothing),
    ):
        pytest.fail("it was not held")


def test_a_storage_that_takes_no_claim_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "claims").touch()  # where a folder should be
    with claimed(str(tmp_path / "claims" / "k.json"), "k", nothing) as found:
        assert found is None


def test_a_claim_that_cannot_be_taken_away_holds_nobody_up(
    claim: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(claim, renewed=0.0)
    monkeypatch.setattr(claims, "_remove", lambda _: None)  # as where it is another user's
    with claimed(claim, "k", nothing) as found:
        assert found is None
    assert "cannot be taken away" in caplog.text
    assert json.loads(storage.read_bytes(claim))["host"] == "another"


def test_a_claim_whose_answer_was_lost_is_its_writers_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client writes again then, and the storage says that there is one."""
    fs, _ = storage.filesystem("memory://data")
    pipe = type(fs).pipe_file

    def twice(self: object, path: str, value: bytes, **how: object) -> None:
        pipe(self, path, value)
        if how.get("mode") == "create":
            raise FileExistsError(path)

    monkeypatch.setattr(type(fs), "pipe_file", twice)
    began = time.monotonic()
    with claimed(f"memory://{tmp_path}/claims/k.json", "words", lambda: None) as found:
        assert found is None
    assert time.monotonic() - began < claims._LAPSES / 4
