"""What can go, and what stays: of finished runs, of runs under way, of interrupted ones."""

import json
import os
import time
from pathlib import Path

import pytest

from albat_core import pruning
from albat_core.errors import ArtifactError
from albat_core.pruning import DAY, Keeping, Pruning
from albat_core.records.selections import Selected
from albat_core.runs.registry import Entry, Registry
from albat_core.runs.reselection import Acted, Watches
from albat_core.store import claims, storage
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.drafts import is_left, new_draft, sweep
from albat_core.store.storage import FileState

GONE = 2**22 + 1
"""No process has this number."""


@pytest.fixture
def store(anywhere: ArtifactStore) -> ArtifactStore:
    return anywhere


def make(store: ArtifactStore, stage: str, **inputs: object) -> ArtifactRef:
    def build(folder: Path) -> Built:
        (folder / "data").write_text(stage)
        return Built()

    return store.produce(stage, 1, {}, inputs, build)


def register(store: ArtifactStore, run: str, number: int) -> dict[str, ArtifactRef]:
    """Register an adapter with all that it is made from, and a report that names a split."""
    index = make(store, "index", number=number)
    mixture = make(store, "mixture", parts=[["other", index.key]])
    adapter = make(store, "adapter", mixture=mixture.key)
    split = make(store, "split", number=number)
    report = make(store, "report", artifacts=[str(split), str(adapter)])
    Registry(store).register(
        Entry(
            run=run,
            adapter=adapter,
            mixture=mixture,
            created=f"2026-01-0{number}",
            alpha=0.3,
            adaptation_rows=1,
            backbone_rows=1,
            report=report,
            config={},
        )
    )
    return {ref.stage: ref for ref in (index, mixture, adapter, split, report)}


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the test writes is two days old."""
    monkeypatch.setattr(pruning.time, "time", lambda now=time.time: now() + 2 * DAY)


def prune(store: ArtifactStore, keeping: Keeping = Keeping()) -> tuple[set[str], list[str]]:  # noqa: B008
    """Return what can go, by kind and place below the root, and what was noted."""
    looking = Pruning(store, keeping)
    found = looking.find()
    return {f"{e.kind} {e.place.removeprefix(store.root)}" for e in found}, looking.notes


def write(store: ArtifactStore, path: str, content: str = "x") -> None:
    storage.write_bytes(storage.join(store.root, path), content.encode())


@pytest.mark.usefixtures("later")
def test_what_finished_runs_need_stays_and_the_rest_goes(store: ArtifactStore) -> None:
    needed = register(store, "cancer", 1)
    lone = make(store, "scores", failed=True)
    below = make(store, "scores", candidates=lone.key)
    looking = Pruning(store, Keeping())
    found = looking.find()
    assert {each.ref for each in found} == {lone, below}
    assert sum(each.bytes for each in found) > 2 * len("scores")
    assert set(store.all_refs()) == {*needed.values(), lone, below}  # nothing has gone yet
    assert list(looking.remove(found)) == found
    left = ArtifactStore(store.root)
    assert set(left.all_refs()) == set(needed.values())
    assert all(left.changed_files(ref) == [] for ref in needed.values())
    assert not any(str(lone) in path for path in storage.file_sizes(store.root))
    assert prune(store) == (set(), [])
    assert make(left, "scores", failed=True).reused is False


def test_what_is_young_stays_with_what_it_was_made_from(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, "scores", failed=True)
    write(store, "checkpoints/" + "a" * 32 + ".safetensors")
    assert prune(store) == (set(), [])
    assert len(prune(store, Keeping(younger=0))[0]) == 2


@pytest.mark.usefixtures("later")
def test_the_last_of_each_run_stay_with_those_an_alias_means(store: ArtifactStore) -> None:
    promoted, first, second, third = (register(store, "cancer", n) for n in (1, 2, 3, 4))
    other = register(store, "other", 5)
    Registry(store).promote(f"cancer/{promoted['adapter'].key}")
    assert prune(store) == (set(), [])
    looking = Pruning(store, Keeping(last=2))
    found = looking.find()
    assert {each.ref for each in found} == set(first.values())
    list(looking.remove(found))
    assert {e.adapter for e in Registry(store).entries()} == {
        each["adapter"] for each in (promoted, second, third, other)
    }


@pytest.mark.usefixtures("later")
def test_what_a_watched_run_goes_on_from_stays(store: ArtifactStore) -> None:
    split, mixture = make(store, "split", watched=1), make(store, "mixture", watched=1)
    selected = Selected(adaptation=split, surrogate=None, mixture=mixture)
    acted = Acted(fingerprint="f", basis="b", selected=selected, trained=None)
    Watches(store.root).set_acted("cancer", acted)
    make(store, "efficacy", table=1)
    assert prune(store) == (set(), [])
    write(store, "watches/cancer/acted.json", "{}")
    with pytest.raises(ArtifactError, match=r"acted\.json"):
        prune(store)


@pytest.mark.usefixtures("later")
def test_ids_stay_with_all_their_shards_until_there_are_newer_ones(store: ArtifactStore) -> None:
    one, other = make(store, "shards", number=1), make(store, "shards", number=2)
    selected = Selected(adaptation=one, surrogate=None, mixture=other)
    acted = Acted(fingerprint="f", basis="b", selected=selected, trained=None)
    Watches(store.root).set_acted("cancer", acted)
    old, new = make(store, "ids", shards=[one.key]), make(store, "ids", shards=[one.key, other.key])
    store.set_latest("a", new)
    gone = make(store, "shards", number=3)
    past = make(store, "ids", shards=[one.key, gone.key])
    store.set_latest("b", past)
    found = {each.ref for each in Pruning(store, Keeping()).find() if each.kind == "artifact"}
    assert found == {old, gone, past}


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("path", ["registry/cancer/broken.json", "registry/cancer@production.json"])
def test_nothing_goes_while_a_record_of_what_is_needed_cannot_be_read(
    store: ArtifactStore, path: str
) -> None:
    make(store, "scores", failed=True)
    write(store, path, '{"adapter": ""}')
    with pytest.raises(ArtifactError, match=path):
        prune(store)


def test_no_artifact_goes_while_a_run_is_under_way(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone = make(store, "scores", failed=True)
    store.set_latest("family", lone)
    none = Keeping(younger=0)
    with store.in_use():
        gone, notes = prune(store, none)
        assert gone == set()
        assert "a run is under way" in notes[0]
    looking = Pruning(store, none)
    found = looking.find()
    assert {each.kind for each in found} == {"artifact", "hint"}
    with store.in_use():  # since then
        assert list(looking.remove(found)) == []
    assert "a run has begun" in looking.notes[0]
    assert list(store.all_refs()) == [lone]
    assert store.latest("scores", "family") == lone
    assert list(looking.remove(found)) == found


@pytest.mark.usefixtures("later")
def test_what_interrupted_work_left_goes(store: ArtifactStore) -> None:
    needed = register(store, "cancer", 1)
    key, adapter = "b" * 32, needed["adapter"]
    for path in (
        f"scores/{key}/0123abcd/data",  # no manifest
        f"{adapter}/0123abcd/data",  # another attempt's manifest
        f"checkpoints/{key}.safetensors",
        f"checkpoints/{key}/00000005.safetensors",
        f"claims/scores/{key}.json",
        "registry/.cancer@production.json.0123abcd",
        f"{adapter}/.manifest.json.0123abcd",
    ):
        write(store, path)
    for path in ("notes.txt", "mine/data.csv", "checkpoints/own.safetensors", ".hidden.0123abcd"):
        write(store, path)  # no business of albat's
    assert prune(store) == (
        {
            f"attempt /scores/{key}/0123abcd",
            f"attempt /{adapter}/0123abcd",
            f"checkpoint /checkpoints/{key}.safetensors",
            f"checkpoint /checkpoints/{key}/00000005.safetensors",
            f"claim /claims/scores/{key}.json",
            "unfinished file /registry/.cancer@production.json.0123abcd",
            f"unfinished file /{adapter}/.manifest.json.0123abcd",
        },
        [],
    )


def test_what_somebody_makes_stays_however_old(store: ArtifactStore) -> None:
    key = "b" * 32
    for path in (
        f"adapter/{key}/0123abcd/data",
        f"checkpoints/{key}.safetensors",
        f"checkpoints/{key}/00000005.safetensors",
    ):
        write(store, path)
    claim = {"host": "another", "process": 1, "renewed": time.time()}
    write(store, f"claims/adapter/{key}.json", json.dumps(claim))
    assert prune(store, Keeping(younger=0)) == (set(), [])
    write(store, f"claims/adapter/{key}.json", json.dumps(claim | {"renewed": 0.0}))
    assert len(prune(store, Keeping(younger=0))[0]) == 4


def test_what_a_training_kept_is_as_young_as_its_state(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "b" * 32
    states = {f"checkpoints/{key}.safetensors": 0.5, f"checkpoints/{key}/00000005.safetensors": 2.0}
    ages = {path: FileState(1, time.time() - days * DAY) for path, days in states.items()}
    monkeypatch.setattr(pruning, "file_states", lambda _: ages)
    assert prune(store) == (set(), [])
    assert len(prune(store, Keeping(younger=0.4 * DAY))[0]) == 2


@pytest.mark.usefixtures("later")
def test_a_manifest_that_cannot_be_read_is_named_and_its_folder_stays(store: ArtifactStore) -> None:
    broken = make(store, "scores", failed=True)
    write(store, f"{broken}/manifest.json", "{")
    gone, [note] = prune(store)
    assert gone == set()
    assert f"{broken}/manifest.json" in note


@pytest.mark.usefixtures("later")
def test_what_a_needed_artifact_was_made_from_stays_where_its_manifest_cannot_be_read(
    store: ArtifactStore,
) -> None:
    refs = register(store, "run", 1)
    write(store, f"{refs['mixture']}/manifest.json", "{")
    gone, notes = prune(store)
    assert gone == set()
    assert f"what {refs['mixture']} was made from is not known: artifacts stay" in notes


@pytest.mark.usefixtures("later")
def test_an_entry_goes_before_its_adapter(store: ArtifactStore) -> None:
    """A prune that is killed between the two would leave an entry that nothing finds."""
    gone = register(store, "run", 1)["adapter"]
    register(store, "run", 2)
    kinds = [each.kind for each in Pruning(store, Keeping(last=1)).find() if each.ref == gone]
    assert kinds == ["entry", "artifact"]


@pytest.mark.usefixtures("later")
def test_hints_at_what_goes_go_too(store: ArtifactStore) -> None:
    store.set_latest("family", make(store, "queries", number=1))
    assert "hint /latest/queries/family.json" in prune(store)[0]


@pytest.mark.usefixtures("later")
def test_copies_that_were_not_used_for_long_go(store: ArtifactStore) -> None:
    needed = register(store, "cancer", 1)
    store.folder(needed["adapter"])
    if not storage.is_remote(store.root):
        return
    [copy] = (storage.cache_folder("artifacts")).glob("*/*/*")
    assert prune(store) == (set(), [])
    assert prune(store, Keeping(copies=DAY))[0] == {f"copy {copy}"}
    for path in (*copy.rglob("*"), copy):
        os.utime(path, (0, 0))
    assert prune(store)[0] == {f"copy {copy}"}
    ArtifactStore(store.root).folder(needed["adapter"])  # it is used again
    assert prune(store) == (set(), [])


@pytest.mark.usefixtures("later")
def test_copies_of_backbones_and_notes_that_were_not_used_for_long_go(store: ArtifactStore) -> None:
    model = storage.cache_folder("backbones", "0123") / "model.safetensors"
    notes = storage.cache_folder("digests", "4567")
    for path in (model, notes):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    assert prune(store) == (set(), [])
    for path in (model, model.parent, notes):
        os.utime(path, (0, 0))
    assert prune(store)[0] == {f"copy {model.parent}", f"copy {notes}"}


def draft(parent: Path, process: int, prefix: str = "") -> Path:
    parent.mkdir(exist_ok=True, parents=True)
    made = parent / f"{prefix}{claims.here()}.{process}.abc"
    made.mkdir()
    (made / "half").write_text("x")
    return made


def test_drafts_of_processes_that_are_gone_are_swept_at_the_start(
    store: ArtifactStore, tmp_path: Path
) -> None:
    parent, prefix = tmp_path / "root" / "drafts", ""
    if storage.is_remote(store.root):
        parent, prefix = tmp_path / "tmp", "albat-draft-"
    stale, living = draft(parent, GONE, prefix), draft(parent, os.getppid(), prefix)
    foreign = parent / "another.1.abc"
    foreign.mkdir()
    make(store, "scores", number=1)
    assert not stale.exists()
    assert living.exists()
    assert foreign.exists()


def test_a_draft_is_known_to_be_its_process_s(tmp_path: Path) -> None:
    made = new_draft(tmp_path)
    assert is_left(made) is False
    sweep(tmp_path)
    assert made.exists()
    assert is_left(tmp_path / made.name.replace(str(os.getpid()), str(GONE))) is True
    assert is_left(tmp_path / f"01234567.{GONE}.abc") is None  # of another machine


@pytest.mark.usefixtures("later")
def test_old_drafts_go_but_those_of_living_processes(store: ArtifactStore, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    stale = draft(temporary, GONE, "albat-draft-")
    draft(temporary, os.getpid(), "albat-draft-")
    (temporary / "somebody-else").mkdir()
    earlier = temporary / "albat-draft-x1y2"  # of a version that noted no process
    earlier.mkdir()
    assert prune(store)[0] == {f"draft {stale}", f"draft {earlier}"}
