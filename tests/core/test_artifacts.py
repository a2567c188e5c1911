"""Artifacts: made once under the key of what made them, whole or not at all."""

import errno
import gzip
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from albat_core.errors import ArtifactError, StorageFullError, TransientError
from albat_core.store import artifacts, claims, rolls, storage, transfer
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built

IDENTITY: dict[str, Any] = {
    "stage": "words",
    "stage_version": 1,
    "settings": {"rows": 2},
    "inputs": {"corpus": "c0"},
}


Rolled = tuple[list[ArtifactRef], list[str]]


class Builder:
    """Writes two files and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> Built:
        self.calls += 1
        (folder / "deep").mkdir()
        (folder / "deep" / "words.txt").write_text("leaf root")
        (folder / "count.txt").write_text("2")
        return Built(rows=2, facts={"longest": 4})


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A root on this machine, and one that counts as remote, with its cache beside it."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return str(tmp_path / "root") if request.param == "local" else f"memory://{tmp_path}/root"


@pytest.fixture
def store(root: str) -> ArtifactStore:
    return ArtifactStore(root)


@pytest.fixture
def build() -> Builder:
    return Builder()


def produce(store: ArtifactStore, build: Callable[[Path], Built], **changes: object) -> ArtifactRef:
    return store.produce(**(IDENTITY | changes), build=build)


def assert_nothing_is_left(store: ArtifactStore, tmp_path: Path) -> None:
    """No artifact, no draft: what is left, no reader looks at."""
    assert list(store.all_refs()) == []
    left = list(tmp_path.rglob("drafts/*")) + list(tmp_path.rglob("albat-draft-*"))
    assert left == []


def test_the_same_is_made_once_and_then_found(store: ArtifactStore, build: Builder) -> None:
    first = produce(store, build)
    second = produce(ArtifactStore(store.root), build)
    assert build.calls == 1
    assert first == second
    assert (first.reused, second.reused) == (False, True)
    assert (store.folder(first) / "deep" / "words.txt").read_text() == "leaf root"


def test_many_are_found_as_each_would_be(
    store: ArtifactStore, build: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sound ones, lost ones, damaged ones and such that never were, by one listing a stage."""
    refs = [produce(store, build, inputs={"corpus": n}) for n in range(6)]
    refs += [produce(store, build, stage="others")]
    refs += [ArtifactRef(stage="words", key="0" * 32), ArtifactRef(stage="none", key="1" * 32)]
    place = storage.join(store.root, str(refs[1]))
    storage.write_bytes(f"{place}/{store.manifest(refs[1]).attempt}/count.txt", b"longer")
    storage.remove(storage.join(store.root, str(refs[2])))
    for ref, content in ((refs[3], b"{"), (refs[4], b"")):
        storage.write_bytes(storage.join(store.root, str(ref), "manifest.json"), content)
    apart = {ref: manifest for ref in refs if (manifest := ArtifactStore(store.root).find(ref))}
    assert list(apart) == [refs[0], refs[5], refs[6]]
    monkeypatch.setattr(artifacts, "_ASKED_ONE_BY_ONE", 0)
    listed: list[str] = []
    states = storage.file_states
    monkeypatch.setattr(
        storage, "file_states", lambda uri: (listed.append(uri.rpartition("/")[2]), states(uri))[1]
    )
    assert store.find_all(refs) == apart
    assert listed == ["words", "others", "none"]
    assert [bool(ref and ref.reused) for ref in store.reused(refs)] == [r in apart for r in refs]
    assert store.manifests([refs[0], refs[6]]) == [apart[refs[0]], apart[refs[6]]]
    with pytest.raises(ArtifactError, match="expected a finished artifact"):
        store.manifests(refs)


@pytest.fixture
def rolled(store: ArtifactStore, build: Builder, monkeypatch: pytest.MonkeyPatch) -> Rolled:
    """Artifacts that were looked up at once, and the names of manifests that are read then."""
    monkeypatch.setattr(artifacts, "_ASKED_ONE_BY_ONE", 0)
    monkeypatch.setattr(rolls, "_WORTH_IT", 0)
    refs = [produce(store, build, inputs={"corpus": n}) for n in range(4)]
    read: list[str] = []
    read_all = transfer.read_all
    monkeypatch.setattr(
        transfer, "read_all", lambda uri, sizes: (read.extend(sizes), read_all(uri, sizes))[1]
    )
    assert len(store.find_all(refs)) == len(read) == 4
    read.clear()
    return refs, read


@pytest.mark.parametrize("key", ["../../outside", "/outside", "", ".", "a\0", "a" * 5000, "a\n"])
def test_a_reference_names_a_folder_below_its_stage(store: ArtifactStore, key: str) -> None:
    for names in ({"stage": "words", "key": key}, {"stage": key, "key": "k"}):
        with pytest.raises(ValidationError):
            ArtifactRef.model_validate(names)
    hint = storage.join(store.root, "latest", "words", "family.json")
    storage.write_bytes(hint, json.dumps({"key": key}).encode())
    assert store.latest("words", "family") is None


def test_what_is_on_the_roll_is_not_read_again(store: ArtifactStore, rolled: Rolled) -> None:
    refs, read = rolled
    apart = {ref: store.find(ref) for ref in refs}
    assert store.find_all(refs) == apart
    assert read == []


def test_the_roll_vouches_for_nothing_that_a_listing_does_not(
    store: ArtifactStore, build: Builder, rolled: Rolled
) -> None:
    refs, read = rolled
    attempts = [storage.join(store.root, str(ref), store.manifest(ref).attempt) for ref in refs]
    storage.remove(storage.join(store.root, str(refs[0]), "manifest.json"))  # lost
    storage.write_bytes(f"{attempts[1]}/count.txt", b"longer")  # changed
    storage.remove(storage.join(store.root, str(refs[2])))
    again = produce(store, build, inputs={"corpus": 2})  # made again
    found = store.find_all(refs)
    assert list(found) == [refs[3], again] or list(found) == [again, refs[3]]
    assert found[again].attempt not in attempts[2]
    assert read == [f"{again.key}/manifest.json"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "endless", "deep"])
def test_a_roll_is_safe_to_lose(store: ArtifactStore, rolled: Rolled, damage: str) -> None:
    refs, read = rolled
    place = storage.join(store.root, "rolls", "words.json.gz")
    whole = storage.read_bytes(place)
    if damage == "gone":
        storage.remove(place)
    elif damage == "cut":
        storage.write_bytes(place, whole[:-20])
    elif damage == "endless":
        storage.write_bytes(place, gzip.compress(b" " * (64 << 20)))
    elif damage == "deep":
        storage.write_bytes(place, gzip.compress(b"[" * 100_000))
    for position in range(0, len(whole), 97) if damage == "flipped" else [0]:
        if damage == "flipped":
            changed = bytes([whole[position] ^ 16])
            storage.write_bytes(place, whole[:position] + changed + whole[position + 1 :])
        assert store.find_all(refs) == {ref: store.find(ref) for ref in refs}
    assert read


def test_a_manifest_that_does_not_come_whole_is_no_lost_artifact(
    store: ArtifactStore, build: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = produce(store, build)
    monkeypatch.setattr(artifacts, "_ASKED_ONE_BY_ONE", 0)
    fs, _ = storage.filesystem(store.root)
    monkeypatch.setattr(type(fs), "cat_ranges", lambda *_, **__: [b"{"])
    with pytest.raises(TransientError, match=r"bytes, got 1"):
        store.find_all([ref])


def test_nothing_of_the_draft_stays(store: ArtifactStore, build: Builder, tmp_path: Path) -> None:
    produce(store, build)
    assert list(tmp_path.rglob("drafts/*")) == []
    assert list(tmp_path.rglob("albat-draft-*")) == []


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "letters"},
        {"stage_version": 2},
        {"settings": {"rows": 3}},
        {"settings": {"rows": 2, "more": None}},
        {"inputs": {"corpus": "c1"}},
        {"inputs": {"other": "c0"}},
    ],
    ids=str,
)
def test_each_part_of_the_identity_changes_the_key(
    store: ArtifactStore, build: Builder, change: dict[str, Any]
) -> None:
    first, other = produce(store, build), produce(store, build, **change)
    assert first.key != other.key
    assert build.calls == 2


def test_the_order_of_config_keys_does_not_matter(store: ArtifactStore, build: Builder) -> None:
    first = produce(store, build, settings={"a": 1, "b": {"c": 2, "d": 3}})
    assert produce(store, build, settings={"b": {"d": 3, "c": 2}, "a": 1}) == first
    assert build.calls == 1


def test_the_manifest_tells_how_it_was_made(store: ArtifactStore, build: Builder) -> None:
    ref = produce(store, build)
    manifest = ArtifactStore(store.root).manifest(ref)
    same = {name: value for name, value in IDENTITY.items() if name != "settings"}
    assert manifest.model_dump(include={*same, "config", "key", "rows", "facts"}) == same | {
        "config": IDENTITY["settings"],
        "key": ref.key,
        "rows": 2,
        "facts": {"longest": 4},
    }
    files = {f.path: (f.bytes, f.sha256) for f in manifest.files}
    assert files == {
        "count.txt": (1, hashlib.sha256(b"2").hexdigest()),
        "deep/words.txt": (9, hashlib.sha256(b"leaf root").hexdigest()),
    }
    assert manifest.versions["numpy"]


def test_a_builder_that_raises_leaves_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    def build(folder: Path) -> Built:
        (folder / "half").write_text("x")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        produce(store, build)
    assert_nothing_is_left(store, tmp_path)
    assert produce(store, Builder()).reused is False


def file_of(store: ArtifactStore, ref: ArtifactRef, name: str) -> str:
    return storage.join(store.root, ref.stage, ref.key, store.manifest(ref).attempt, name)


def rewritten(manifest: str, path: str = "", **changes: str) -> None:
    """Change what a manifest says of itself, or the path of its first file."""
    said = json.loads(storage.read_bytes(manifest)) | changes
    if path:
        said["files"][0]["path"] = path
    storage.write_bytes(manifest, json.dumps(said).encode())


DAMAGE: dict[str, Callable[[str, str], None]] = {
    "lost file": lambda file, _: storage.remove(file),
    "truncated file": lambda file, _: storage.write_bytes(file, b"leaf"),
    "unreadable manifest": lambda _, manifest: storage.write_bytes(manifest, b'{"stage": "wor'),
    "foreign manifest": lambda _, manifest: storage.write_bytes(manifest, b'{"some": "json"}'),
    "empty manifest": lambda _, manifest: storage.write_bytes(manifest, b""),
    "lost manifest": lambda _, manifest: storage.remove(manifest),
    "attempt outside": lambda _, manifest: rewritten(manifest, attempt="../../../outside"),
    "file outside": lambda _, manifest: rewritten(manifest, path="../../outside"),
    "another's stage": lambda _, manifest: rewritten(manifest, stage="letters"),
    "another's key": lambda _, manifest: rewritten(manifest, key="0" * 32),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_artifact_is_made_again(
    store: ArtifactStore, build: Builder, damage: Callable[[str, str], None]
) -> None:
    ref = produce(store, build)
    damage(
        file_of(store, ref, "deep/words.txt"),
        storage.join(store.root, ref.stage, ref.key, "manifest.json"),
    )
    fresh = ArtifactStore(store.root)
    assert fresh.find(ref) is None
    with pytest.raises(ArtifactError, match="run the stage that makes it again"):
        fresh.manifest(ref)
    assert produce(store, build).reused is False
    assert build.calls == 2
    # the store that knew the damaged one sees the new one as well
    for any_store in (store, fresh):
        assert (any_store.folder(ref) / "deep" / "words.txt").read_text() == "leaf root"


def test_changed_content_of_the_same_size_is_found_by_digest(
    tmp_path: Path, build: Builder
) -> None:
    store = ArtifactStore(str(tmp_path))
    ref = produce(store, build)
    assert store.changed_files(ref) == []
    storage.write_bytes(file_of(store, ref, "count.txt"), b"3")
    assert store.changed_files(ref) == ["count.txt"]


def test_resolve_finds_by_the_beginning_of_the_key(store: ArtifactStore, build: Builder) -> None:
    first, second = produce(store, build), produce(store, build, stage="letters")
    for name in (first.key, first.key[:12], str(first), str(first)[:14]):
        assert store.resolve(name) == first
    assert store.resolve("letters/") == second
    for name in ("", "letters/" + first.key, "zz"):
        with pytest.raises(ArtifactError, match="expected one artifact"):
            store.resolve(name)
    with pytest.raises(ArtifactError) as caught:
        store.resolve("")
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_latest_is_a_hint_that_may_be_lost_or_wrong(store: ArtifactStore, build: Builder) -> None:
    ref = produce(store, build)
    assert store.latest("words", "family") is None
    store.set_latest("family", ref)
    assert store.latest("words", "family") == ref
    assert store.latest("words", "other") is None
    other = produce(store, build, settings={})
    store.set_latest("family", other)
    assert store.latest("words", "family") == other
    storage.remove(file_of(store, other, "count.txt"))
    assert store.latest("words", "family") is None
    (hint,) = [n for n in storage.file_sizes(store.root) if n.startswith("latest/")]
    for content in (b"", b"{}", b"[]", b"\xff"):
        storage.write_bytes(storage.join(store.root, hint), content)
        assert store.latest("words", "family") is None


def test_hints_and_strangers_are_no_artifacts(store: ArtifactStore, build: Builder) -> None:
    ref = produce(store, build)
    store.set_latest("family", ref)
    storage.write_bytes(storage.join(store.root, "checkpoints", "x.safetensors"), b"x")
    assert list(store.all_refs()) == [ref]


def test_concurrent_producers_end_in_one_valid_artifact(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_take", lambda *_: True)  # as where no claim holds them off
    barrier = threading.Barrier(4)

    def build(folder: Path) -> Built:
        barrier.wait(timeout=10)  # all of them found none, and build at once
        return Builder()(folder)

    with ThreadPoolExecutor(4) as pool:
        refs = list(pool.map(lambda _: produce(ArtifactStore(root), build), range(4)))
    store = ArtifactStore(root)
    assert list(store.all_refs()) == [refs[0]]
    assert set(refs) == {refs[0]}
    assert store.changed_files(refs[0]) == []
    assert (store.folder(refs[0]) / "count.txt").read_text() == "2"


def fail_with(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "error",
    [FULL, OSError("100 requested and 8 written"), RuntimeError("No space left on device")],
    ids=["system", "numpy", "words alone"],
)
def test_a_disk_full_while_building_is_said(
    store: ArtifactStore, tmp_path: Path, error: Exception
) -> None:
    with pytest.raises(StorageFullError, match="what was finished is kept"):
        produce(store, fail_with(error))
    assert_nothing_is_left(store, tmp_path)


@pytest.mark.parametrize(
    ("module", "place"), [(transfer, "upload"), (storage, "write_bytes")], ids=["files", "manifest"]
)
def test_a_disk_full_while_publishing_publishes_nothing(
    store: ArtifactStore,
    build: Builder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    place: str,
) -> None:
    with monkeypatch.context() as full:
        full.setattr(module, place, fail_with(FULL))
        with pytest.raises(StorageFullError):
            produce(store, build)
    assert_nothing_is_left(store, tmp_path)
    ref = produce(store, build)
    assert store.changed_files(ref) == []


def test_what_was_fetched_of_one_root_is_not_served_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("albat_core.store.artifacts.uuid.uuid4", lambda: UUID(int=7))
    for word in ("leaf", "root"):

        def build(folder: Path, word: str = word) -> Built:
            (folder / "word.txt").write_text(word)
            return Built()

        store = ArtifactStore(f"memory://{tmp_path}/{word}")
        ref = produce(store, build)
        assert (store.folder(ref) / "word.txt").read_text() == word


def test_a_place_is_told_without_fetching(
    store: ArtifactStore, build: Builder, tmp_path: Path
) -> None:
    ref = produce(store, build)
    assert set(storage.file_sizes(store.place(ref))) == {"count.txt", "deep/words.txt"}
    assert not (tmp_path / "cache").exists()


def test_references_are_equal_by_name_alone() -> None:
    ref = ArtifactRef(stage="words", key="k")
    assert ref == ArtifactRef(stage="words", key="k", reused=True)
    assert len({ref, ArtifactRef(stage="words", key="k", reused=True)}) == 1
    assert ref != ArtifactRef(stage="letters", key="k")
    assert ArtifactRef.model_validate(json.loads(ref.model_dump_json())) == ref


def test_drafts_have_the_rights_of_their_folder(tmp_path: Path, build: Builder) -> None:
    store = ArtifactStore(str(tmp_path))
    folder = store.folder(produce(store, build))
    assert folder.stat().st_mode & 0o777 == (tmp_path / "drafts").stat().st_mode & 0o777


def test_a_folder_in_a_manifest_s_place_is_named(tmp_path: Path, build: Builder) -> None:
    store = ArtifactStore(str(tmp_path))
    ref = store.produce(**IDENTITY, build=build)
    place = tmp_path / str(ref) / "manifest.json"
    place.unlink()
    place.mkdir()
    with pytest.raises(ArtifactError, match=r"manifest\.json: expected a manifest"):
        ArtifactStore(str(tmp_path)).produce(**IDENTITY, build=build)
    assert list(store.all_refs()) == []
