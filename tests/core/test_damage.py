"""A flipped bit in a file that is kept: noticed when the file is first read, and made good."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from albat_core.errors import AlbatError, ArtifactError, DamagedError
from albat_core.records.runs import ALBAT
from albat_core.records.selections import Selected
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.runs.registry import Entry, Registry
from albat_core.runs.reselection import Acted, Watches
from albat_core.runs.steps import Steps, call_here
from albat_core.store import storage, verification
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built


@pytest.fixture
def store(anywhere: ArtifactStore) -> ArtifactStore:
    return anywhere


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the files whose digests were computed, in order."""
    names: list[str] = []
    digest = storage.digest

    def noted(file: Path | str) -> str:
        names.append(Path(file).name)
        return digest(file)

    monkeypatch.setattr(verification.storage, "digest", noted)
    yield names


def make(store: ArtifactStore, words: str = "leaf root") -> ArtifactRef:
    def build(folder: Path) -> Built:
        (folder / "words.txt").write_text(words)
        (folder / "count.txt").write_text("2")
        return Built(rows=2, facts={"longest": 4, "share": 0.1})

    return store.produce("words", 1, {"words": words}, {}, build)


def flip(uri: str, at: int = -1) -> None:
    """Flip a bit of one byte."""
    content = bytearray(storage.read_bytes(uri))
    content[at] ^= 4
    storage.write_bytes(uri, bytes(content))


def place(store: ArtifactStore, ref: ArtifactRef, name: str = "words.txt") -> str:
    return storage.join(store.place(ref), name)


@pytest.mark.parametrize("read_by", [ArtifactStore.folder, lambda s, r: s.file(r, "words.txt")])
def test_a_flipped_bit_is_told_and_the_artifact_is_made_again(
    store: ArtifactStore,
    read_by: Callable[[ArtifactStore, ArtifactRef], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    ref = make(store)
    flip(place(store, ref))
    fresh = ArtifactStore(store.root)
    assert fresh.find(ref) is not None  # nothing is read for that
    with caplog.at_level(logging.WARNING), pytest.raises(DamagedError) as caught:
        read_by(fresh, ref)
    assert caught.value.where == str(ref)
    (said,) = caplog.messages
    assert said.startswith(f"{ref}: expected {place(store, ref)} with SHA-256 ")
    assert said.endswith("; it counts as lost and is made again")
    assert ", got " in said
    assert ArtifactStore(store.root).find(ref) is None
    assert make(ArtifactStore(store.root)).reused is False
    for any_store in (fresh, store):  # the one that knew the damaged one sees the new one as well
        assert (any_store.folder(ref) / "words.txt").read_text() == "leaf root"


def test_each_file_is_read_once_until_it_changes(store: ArtifactStore, read: list[str]) -> None:
    ref = make(store)
    read.clear()
    store.file(ref, "words.txt")
    assert read == ["words.txt"]
    for again in (store, ArtifactStore(store.root)):
        again.folder(ref)
        again.file(ref, "count.txt")
    assert sorted(read) == ["count.txt", "words.txt"]
    copy = store.folder(ref) / "count.txt"
    copy.write_text("3")
    if storage.is_remote(store.root):
        assert (store.folder(ref) / "count.txt").read_text() == "2"  # fetched again
    else:
        with pytest.raises(DamagedError):
            store.folder(ref)


def test_finding_reads_no_file(store: ArtifactStore, read: list[str]) -> None:
    ref = make(store)
    read.clear()
    assert make(ArtifactStore(store.root)).reused
    assert ArtifactStore(store.root).manifest(ref).rows == 2
    assert read == []


def test_a_file_written_anew_within_a_tick_of_the_clock_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("leaf")
    wanted = {file.name: storage.digest(file)}
    file.write_text("lead")
    state = file.stat()
    assert list(verification.wrong_files(tmp_path, wanted)) == [file.name]
    file.write_text("leaf")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert verification.wrong_files(tmp_path, wanted, again=[file.name]) == {}


def test_what_others_have_made_again_meanwhile_is_taken(store: ArtifactStore) -> None:
    ref = make(store)
    flip(place(store, ref))
    with pytest.raises(DamagedError):
        ArtifactStore(store.root).folder(ref)
    make(ArtifactStore(store.root))
    assert (store.folder(ref) / "words.txt").read_text() == "leaf root"


def test_each_flipped_byte_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    ref = make(store)
    uri = str(tmp_path / ref.stage / ref.key / "manifest.json")
    whole = storage.read_bytes(uri)
    for at in range(0, len(whole), 3):
        flip(uri, at)
        assert store.find(ref) is None or json.loads(storage.read_bytes(uri)) == json.loads(whole)
        storage.write_bytes(uri, whole)
    said = json.loads(whole)
    storage.write_bytes(uri, json.dumps(said | {"facts": said["facts"] | {"share": 0.3}}).encode())
    assert store.find(ref) is None
    del said["sha256"]  # as manifests were once
    storage.write_bytes(uri, json.dumps(said).encode())
    assert store.find(ref) is not None


def test_a_step_that_meets_damage_has_it_made_again(store: ArtifactStore) -> None:
    made: list[str] = []

    def write(words: str) -> ArtifactRef:
        ref = make(store, words)
        made.append(f"{words} {'found' if ref.reused else 'made'}")
        return ref

    def copy(source: ArtifactRef) -> ArtifactRef:
        text = (ArtifactStore(store.root).folder(source) / "words.txt").read_text()
        return write(f"copy of {text}")

    def count(ref: ArtifactRef) -> int:
        return len((ArtifactStore(store.root).folder(ref) / "words.txt").read_text())

    steps = Steps(call_here, store)
    first = steps.run("write", write, words="leaf")
    second = steps.run("copy", copy, source=first)
    flip(place(store, first))
    flip(place(store, second))
    made.clear()
    assert steps.call(count, ref=second) == len("copy of leaf")
    fetched = storage.is_remote(store.root)  # and whole, so that the source is not read again
    assert made == [*([] if fetched else ["leaf made"]), "copy of leaf made"]
    made.clear()
    assert steps.call(count, ref=second) == len("copy of leaf")
    assert made == []


def test_damage_that_comes_back_ends_the_run(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))

    def spoil() -> ArtifactRef:
        ref = make(store)
        flip(place(store, ref))
        return ref

    steps = Steps(call_here, store)
    ref = steps.run("write", spoil)
    with pytest.raises(DamagedError, match="run the same command again"):
        steps.call(ArtifactStore(store.root).folder, ref)
    other = make(store, "of no step")
    flip(place(store, other))
    with pytest.raises(ArtifactError, match="found none"):
        steps.call(ArtifactStore(store.root).folder, other)


KINDS = ("shards", "split", "embeddings", "index", "selection", "mixture", "adapter")


def test_a_bit_flipped_in_each_kind_of_file_changes_no_result(
    run_config: RunConfig, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    before = Chain(run_config)
    wanted, kept = before.arms.evaluation(ALBAT), ArtifactStore(run_config.runtime.root)
    shutil.copytree(kept.root, root, ignore=shutil.ignore_patterns("claims"))
    store = ArtifactStore(str(root))
    flipped = []
    for ref in store.all_refs():
        if ref.stage in KINDS:
            for file in store.manifest(ref).files:
                flip(place(store, ref, file.path), at=file.bytes // 2)
            flipped.append(ref)
        else:  # so that what it was made from is read
            shutil.rmtree(root / ref.stage / ref.key)
    assert {ref.stage for ref in flipped} == set(KINDS)
    runtime = run_config.runtime.model_copy(update={"root": str(root)})
    after = Chain(run_config.model_copy(update={"runtime": runtime}))
    assert after.arms.evaluation(ALBAT) == wanted
    mended = ArtifactStore(str(root))
    for made in (wanted, after.arms.adapter(ALBAT), after.inputs.index, after.arms.mixture(ALBAT)):
        assert made is not None
        assert mended.changed_files(made) == []
        digests = [{f.path: f.sha256 for f in s.manifest(made).files} for s in (mended, kept)]
        assert digests[0].keys() == digests[1].keys()
        told = {"README.md"}  # how long it took
        assert all(digests[0][name] == digests[1][name] for name in digests[0].keys() - told)


def test_each_flipped_byte_of_a_small_record_is_noticed(
    run_config: RunConfig, tmp_path: Path
) -> None:
    """Of entries and aliases of the registry, of what is watched and of what was acted on."""
    run = run_config.model_copy(
        update={"runtime": run_config.runtime.model_copy(update={"root": str(tmp_path)})}
    )
    store = ArtifactStore(str(tmp_path))
    ref = make(store)
    registry, watches = Registry(store), Watches(store.root)
    counted = {"alpha": 0.3, "adaptation_rows": 5, "backbone_rows": 7, "config": {"seed": 1}}
    made = {"run": run.name, "adapter": ref, "mixture": ref, "created": "2026-01-01"}
    entry = registry.register(Entry.model_validate(made | counted))
    registry.promote(run.name)
    watches.add(run)
    chosen = Selected(adaptation=ref, surrogate=None, scores=ref, mixture=ref)
    watches.set_acted(run.name, Acted(fingerprint="1", basis="2", selected=chosen, trained=chosen))
    alias = f"{run.name}@production"
    read: dict[str, Callable[[], object]] = {
        f"registry/{run.name}/{ref.key}.json": lambda: registry.entries() or None,
        f"registry/{alias}.json": lambda: registry.aliases().get(alias),
        f"watches/{run.name}/watch.json": lambda: watches.config(run.name),
        f"watches/{run.name}/acted.json": lambda: watches.acted(run.name),
    }
    assert registry.entries() == [entry]
    for name, look in read.items():
        uri = str(tmp_path / name)
        whole, wanted = storage.read_bytes(uri), look()
        assert wanted
        for at in range(0, len(whole), max(len(whole) // 400, 1)):
            flip(uri, at)
            with suppress(AlbatError):
                assert look() in (None, wanted), (name, at)
            storage.write_bytes(uri, whole, lasting=False)
        before = json.loads(whole)
        del before["sha256"]  # as records were once
        storage.write_bytes(uri, json.dumps(before).encode())
        assert look() == wanted
