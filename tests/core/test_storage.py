"""Files, local and remote: written in one piece, listed, fingerprinted, replaced."""

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from albat_core.errors import AlbatError, InputError, StorageFullError, TransientError
from albat_core.store import fingerprints, storage, switching, transfer
from albat_core.store.storage import file_states


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on this machine, and one that counts as remote."""
    return str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path}"


def write_tree(root: str, *names: str) -> list[str]:
    for name in names:
        storage.write_bytes(storage.join(root, name), name.encode())
    return [storage.join(root, name) for name in sorted(names)]


def read_tree(root: str) -> dict[str, bytes]:
    return {name: storage.read_bytes(storage.join(root, name)) for name in storage.file_sizes(root)}


@pytest.mark.parametrize(
    ("uri", "remote"),
    [("/a/b", False), ("a", False), ("file:///a", False), ("memory://a", True), ("s3://b/c", True)],
)
def test_remote_is_what_has_a_scheme_other_than_file(uri: str, remote: bool) -> None:
    assert storage.is_remote(uri) is remote


def test_an_unknown_scheme_is_refused_with_the_address() -> None:
    with pytest.raises(InputError, match="nowhere://x"):
        storage.exists("nowhere://x")


def test_join_puts_one_slash_between_parts() -> None:
    assert storage.join("s3://bucket/", "/a/", "b") == "s3://bucket/a/b"


def test_what_is_written_is_read_back_and_measured(root: str) -> None:
    uri = storage.join(root, "deep", "file.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"first, and longer")
    storage.write_bytes(uri, b"second")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"second"
    assert storage.size(uri) == 6
    assert storage.file_sizes(root) == {"deep/file.bin": 6}


def test_a_missing_file_is_a_file_not_found(root: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(root, "none"))
    assert storage.file_sizes(storage.join(root, "none")) == {}
    assert storage.list_files(storage.join(root, "none")) == []
    storage.remove(storage.join(root, "none"))


def test_what_is_written_may_be_read_by_whom_the_system_allows(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    storage.write_bytes(str(tmp_path / "written"), b"x")
    usual, written = ((tmp_path / name).stat().st_mode for name in ("usual", "written"))
    assert written == usual


def test_a_write_that_fails_leaves_the_old_content_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    storage.write_bytes(str(target), b"old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StorageFullError, match="MB are free"):
        storage.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_target_is_never_open_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    storage.write_bytes(str(target), b"old")
    seen: list[bytes] = []
    replace = Path.replace

    def look(self: Path, to: Path) -> Path:
        seen.append(target.read_bytes())
        assert self.read_bytes() == b"new"
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", look)
    storage.write_bytes(str(target), b"new")
    assert seen == [b"old"]


def test_a_folder_is_listed_recursively_without_hidden_names(root: str) -> None:
    seen = write_tree(root, "b.txt", "a/c.txt", "a/b/d.txt")
    write_tree(root, ".hidden", "_SUCCESS", ".git/x.txt", "a/_temporary/y.txt")
    assert [Path(p).name for p in storage.list_files(root)] == ["d.txt", "c.txt", "b.txt"]
    assert [storage.read_bytes(p) for p in storage.list_files(root)] == [
        storage.read_bytes(p) for p in seen
    ]


def test_a_hidden_folder_above_the_one_that_is_named_hides_nothing(tmp_path: Path) -> None:
    folder = str(tmp_path / ".cache" / "_corpus")
    write_tree(folder, "a.txt")
    assert storage.list_files(folder) == [f"{folder}/a.txt"]


def test_one_file_and_a_pattern_are_listed(root: str) -> None:
    write_tree(root, "b.jsonl", "a.jsonl", "c.txt", "deep/d.jsonl")
    (root_file,) = storage.list_files(storage.join(root, "c.txt"))
    assert storage.read_bytes(root_file) == b"c.txt"
    for pattern, names in [
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b.jsonl", "d.jsonl"]),
        ("[ab].*", ["a.jsonl", "b.jsonl"]),
        ("*.parquet", []),
    ]:
        found = storage.list_files(storage.join(root, pattern))
        assert [Path(p).name for p in found] == names
        assert all(storage.exists(p) for p in found)


def test_a_name_with_brackets_is_a_name_where_it_exists(tmp_path: Path) -> None:
    (uri,) = write_tree(str(tmp_path), "a[1].txt")
    assert storage.list_files(uri) == [uri]


def test_a_fingerprint_changes_with_the_content(root: str) -> None:
    uri = storage.join(root, "file")
    storage.write_bytes(uri, b"one")
    first = fingerprints.fingerprint(uri)
    assert fingerprints.fingerprint(uri) == first
    storage.write_bytes(uri, b"two")  # of the same length
    assert fingerprints.fingerprint(uri) != first


def test_a_local_fingerprint_is_the_contents_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")  # the digest of FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert fingerprints.fingerprint(str(tmp_path / "x")) == expected
    assert storage.digest(tmp_path / "x") == expected


def test_replace_tree_leaves_exactly_the_new_files(root: str, tmp_path: Path) -> None:
    local = tmp_path / "local"
    write_tree(str(local), "new.txt", "deep/kept.txt")
    target = storage.join(root, "target")
    write_tree(target, "old.txt", "deep/old.txt")
    transfer.replace_tree(local, target)
    assert read_tree(target) == {"new.txt": b"new.txt", "deep/kept.txt": b"deep/kept.txt"}
    assert set(storage.file_sizes(root)) == {"target/new.txt", "target/deep/kept.txt"}
    assert (local / "new.txt").exists()


def test_a_replacement_that_fails_leaves_the_old_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(str(tmp_path / "local"), "new.txt")
    write_tree(str(tmp_path / "store" / "target"), "old.txt")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.shutil, "copytree", fail)
    with pytest.raises(StorageFullError):
        transfer.replace_tree(tmp_path / "local", str(tmp_path / "store" / "target"))
    assert set(storage.file_sizes(str(tmp_path / "store"))) == {"target/old.txt"}


class Killed(BaseException):
    """What ends a process between two steps, and nothing catches."""


def die(*_: object, **__: object) -> None:
    raise Killed


def test_a_tree_is_never_gone_while_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at before and after each call that touches the disk's folders, and killed there."""
    target = str(tmp_path / "store" / "target")
    old, new = {"old.txt": b"old.txt"}, {"new.txt": b"new.txt"}
    write_tree(str(tmp_path / "local"), *new)
    for place in ("replace", "rename", "unlink", "rmdir"):
        for module in (os, Path):
            shutil.rmtree(tmp_path / "store", ignore_errors=True)
            write_tree(target, *old)
            with monkeypatch.context() as patch, suppress(Killed):
                patch.setattr(module, place, die)
                transfer.replace_tree(tmp_path / "local", target)
            assert read_tree(target) in (old, new)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", die)  # after the exchange, before the old one is gone
        patch.setattr(transfer, "remove", die)
        transfer.replace_tree(tmp_path / "local", target)
    assert read_tree(target) == new


def test_where_folders_cannot_be_exchanged_the_old_one_stays_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switching, "_exchanged", lambda *_: False)
    target = str(tmp_path / "store" / "target")
    write_tree(str(tmp_path / "local"), "new.txt")
    write_tree(target, "old.txt")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        rename = Path.rename
        patch.setattr(Path, "rename", lambda a, b: rename(a, b) if a.name == "target" else die())
        transfer.replace_tree(tmp_path / "local", target)
    assert b"old.txt" in read_tree(str(tmp_path / "store")).values()
    transfer.replace_tree(tmp_path / "local", target)
    assert read_tree(target) == {"new.txt": b"new.txt"}


def test_a_link_that_is_replaced_stays_one(tmp_path: Path) -> None:
    write_tree(str(tmp_path / "local"), "new.txt")
    write_tree(str(tmp_path / "elsewhere"), "old.txt")
    (tmp_path / "target").symlink_to(tmp_path / "elsewhere")
    transfer.replace_tree(tmp_path / "local", str(tmp_path / "target"))
    assert (tmp_path / "target").is_symlink()
    assert read_tree(str(tmp_path / "elsewhere")) == {"new.txt": b"new.txt"}


def test_remote_files_are_replaced_before_that_which_readers_start_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each step, and so wherever it is killed: whoever finds the new start finds it all."""
    target = f"memory://{tmp_path}/target"
    names = ("README.md", "adapter_config.json", "a/weights", "weights")
    for name in names:
        storage.write_bytes(str(tmp_path / "local" / name), b"new")
        storage.write_bytes(storage.join(target, name), b"old")
    storage.write_bytes(storage.join(target, "a/stale"), b"old")
    fs, _ = storage.filesystem(target)
    seen: list[dict[str, bytes]] = []

    def noted(step: str) -> Callable[..., object]:
        done = getattr(type(fs), step)

        def do(*args: object, **kwargs: object) -> object:
            result = done(*args, **kwargs)
            seen.append(read_tree(target))
            return result

        return do

    for step in ("put_file", "rm", "rm_file"):
        monkeypatch.setattr(type(fs), step, noted(step))
    transfer.replace_tree(tmp_path / "local", target)
    whole = dict.fromkeys(names, b"new")
    assert len(seen) > len(names)
    assert all(tree.keys() >= whole.keys() for tree in seen)  # nothing is ever missing
    started = [tree for tree in seen if tree["adapter_config.json"] == b"new"]
    assert started == [whole]


def test_upload_and_download_carry_a_tree(root: str, tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    write_tree(str(draft), "a", "b/c")
    transfer.upload(draft, storage.join(root, "there"))
    back = transfer.download(storage.join(root, "there"), tmp_path / "cache")
    assert read_tree(str(back)) == {"a": b"a", "b/c": b"b/c"}


@pytest.mark.parametrize("name", ["../x", "model/../../x", "/etc/x", "model//x", "", "."])
def test_nothing_is_written_outside_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(transfer, "file_sizes", lambda _: {"config.json": 2, name: 3})
    with pytest.raises(InputError, match="names of files inside it"):
        transfer.download("memory://bucket", tmp_path / "deep" / "cache")
    assert list(tmp_path.rglob("*")) == []


def test_what_a_killed_fetch_left_is_copied_nowhere(root: str, tmp_path: Path) -> None:
    folder = tmp_path / "fetched"
    write_tree(str(folder), "a", ".0123abcd.part", "b/.0123abcd.part", "b/c")
    transfer.replace_tree(folder, storage.join(root, "there"))
    assert set(read_tree(storage.join(root, "there"))) == {"a", "b/c"}


def test_download_fetches_only_what_is_not_there_whole(tmp_path: Path) -> None:
    root = f"memory://{tmp_path}"
    write_tree(root, "a", "bb")
    cache = tmp_path / "cache"
    write_tree(str(cache), "a")
    (cache / "bb").write_bytes(b"b")  # cut short
    (cache / "a").write_bytes(b"A")  # of the right size: taken for finished
    transfer.download(root, cache)
    assert read_tree(str(cache)) == {"a": b"A", "bb": b"bb"}


def test_of_an_artifact_one_file_alone_is_fetched(tmp_path: Path) -> None:
    root, cache = f"memory://{tmp_path}", tmp_path / "cache"
    write_tree(root, "a", "b", "c")
    transfer.download(root, cache, only=["b"])
    assert set(read_tree(str(cache))) == {"b"}


@pytest.mark.parametrize("pattern", ["", "/*/*.jsonl", "/**/*.jsonl", "/deep/*.jsonl"])
def test_a_folder_that_cannot_be_listed_is_told(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files would be left out without a word; root may list all, so the system is told no."""
    write_tree(str(tmp_path), "deep/a.jsonl", "other/b.jsonl")
    assert storage.list_files(f"{tmp_path}{pattern}")
    scanned = os.scandir

    def refusing(place: object = ".") -> object:
        if os.fspath(place).endswith(unlisted):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)
        return scanned(place)

    (tmp_path / "lost+found").mkdir()
    monkeypatch.setattr(os, "scandir", refusing)
    unlisted = "lost+found"  # of a disk; only root may look into it
    assert storage.list_files(f"{tmp_path}{pattern}")
    unlisted = "deep"
    with pytest.raises(InputError, match=r"deep: expected a folder that can be listed"):
        storage.list_files(f"{tmp_path}{pattern}")


def test_what_consoles_write_for_a_folder_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    fs, _ = storage.filesystem("memory://data")
    names = ["/data/", "/data/sub/", "/data/sub/a.jsonl"]
    listed = {name: {"name": name, "size": 0, "type": "file"} for name in names}
    monkeypatch.setattr(type(fs), "exists", lambda *_: True)
    monkeypatch.setattr(type(fs), "find", lambda *_, **__: listed)
    assert storage.list_files("memory://data") == ["memory:///data/sub/a.jsonl"]
    assert list(storage.file_sizes("memory://data")) == ["sub/a.jsonl"]


def test_a_remote_folder_is_listed_once_for_all_names_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"memory://{tmp_path}"
    write_tree(root, *(f"part-{n:03d}" for n in range(50)))
    fs, _ = storage.filesystem(root)
    asked = []
    for name in ("ls", "info", "exists", "isdir"):
        true = getattr(type(fs), name)

        def noted(self: object, *its: object, _true: Callable = true, **named: object) -> object:
            asked.append(its[0])
            return _true(self, *its, **named)

        monkeypatch.setattr(type(fs), name, noted)
    written_out = storage.list_files(f"{root}/part-{{000..059}}")
    assert len(written_out) == 50
    assert len(asked) <= 3
    asked.clear()
    assert storage.list_files(f"{root}/part-*") == written_out
    assert len(asked) <= 5


def test_remove_takes_a_tree_away(root: str) -> None:
    write_tree(root, "a/b", "a/c", "d")
    storage.remove(storage.join(root, "a"))
    assert set(storage.file_sizes(root)) == {"d"}


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, "x"), False),
        (ValueError("x"), False),
    ],
)
def test_a_full_disk_is_recognised(error: Exception, full: bool) -> None:
    assert storage.is_full(error) is full


@pytest.mark.skipif(
    not (Path("/dev/full").exists() and stat.S_ISCHR(Path("/dev/full").stat().st_mode)),
    reason="needs the device that is always full",
)
def test_a_full_disk_is_recognised_when_numpy_meets_it() -> None:
    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(OSError) as caught:
        np.zeros(1 << 20).tofile(file)
    assert storage.is_full(caught.value)


def test_a_file_where_a_folder_is_needed_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for act in (storage.check_writable, lambda uri: storage.write_bytes(uri, b"x")):
        with pytest.raises(AlbatError, match="expected a folder that can be written"):
            act(str(tmp_path / "file" / "below"))
    storage.check_writable(str(tmp_path / "new" / "below"))
    assert not (tmp_path / "new").exists()


def test_a_listing_that_makes_no_sense_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says that it goes on, and not where: s3fs looks for that in vain."""
    fs, _ = storage.filesystem("memory://data")
    monkeypatch.setattr(type(fs), "find", lambda *_, **__: {}["NextContinuationToken"])
    with pytest.raises(TransientError, match="NextContinuationToken"):
        storage.file_sizes("memory://data")


def test_a_folder_that_is_listed_and_not_found_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3fs looks for what one listing has, in another that lacks it."""
    fs, _ = storage.filesystem("memory://data")

    def lost(*_: object, **__: object) -> list[str]:
        raise FileNotFoundError("data/corpus")

    monkeypatch.setattr(type(fs), "glob", lost)
    with pytest.raises(TransientError, match="as it is listed") as caught:
        storage.list_files("memory://data/corpus/*.jsonl")
    assert caught.value.where == "memory://data/corpus/*.jsonl"


def test_files_of_a_folder_that_is_not_found_are_asked_for_by_themselves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uris = [f"memory://{tmp_path}/{n}" for n in range(3)]
    for uri in uris:
        storage.write_bytes(uri, uri.encode())
    monkeypatch.setattr(fingerprints, "_ASKED_ONE_BY_ONE", 1)
    found = list(fingerprints.fingerprints(uris))
    assert len(set(found) - {""}) == 3

    def lost(*_: object, **__: object) -> list[str]:
        raise FileNotFoundError(str(tmp_path))

    monkeypatch.setattr(type(storage.filesystem(uris[0])[0]), "ls", lost)
    assert list(fingerprints.fingerprints(uris)) == [found[0], "", ""]


@pytest.mark.parametrize("come", [0, 3])
@pytest.mark.parametrize("size", [-1, 8])
def test_a_body_that_ends_too_soon_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, come: int, size: int
) -> None:
    uri = f"memory://{tmp_path}/words.txt"
    storage.write_bytes(uri, b"leaf root")
    fs, path = storage.filesystem(uri)
    read = type(fs.store[path]).read
    monkeypatch.setattr(type(fs.store[path]), "read", lambda self, _=-1: read(self, come))
    with (
        pytest.raises(TransientError, match=f"expected {9 if size < 0 else 8} bytes, got {come}"),
        storage.open_binary(uri) as file,
    ):
        file.read(size)


@pytest.mark.parametrize("come", [None, b"le"])
def test_a_copy_that_does_not_come_whole_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, come: bytes | None
) -> None:
    root = f"memory://{tmp_path}/there"
    write_tree(root, "whole", "words.txt")
    fs, _ = storage.filesystem(root)
    get = type(fs).get

    def lossy(self: object, remote: list[str], local: list[str], **how: object) -> None:
        get(self, remote[:1], local[:1], **how)
        if come is None:
            raise FileNotFoundError(remote[1])
        Path(local[1]).write_bytes(come)

    monkeypatch.setattr(type(fs), "get", lossy)
    with pytest.raises(TransientError, match=r"words\.txt"):
        transfer.download(root, tmp_path / "cache")
    assert read_tree(str(tmp_path / "cache")) == {"whole": b"whole"}  # is kept


def test_a_folder_whose_listing_is_stale_has_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3fs then names the folder itself."""
    fs, _ = storage.filesystem("memory://data")
    itself = {"name": "/data", "size": 0, "type": "directory"}
    monkeypatch.setattr(type(fs), "find", lambda *_, **__: {"/data": itself})
    assert storage.file_sizes("memory://data") == {}


@pytest.mark.parametrize("module", ["httpx", "requests", "botocore.exceptions"])
def test_a_client_that_cannot_connect_is_told(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = type("ConnectError", (Exception,), {"__module__": module})("no such name")

    def failing(*_: object, **__: object) -> bool:
        raise error

    fs, _ = storage.filesystem("memory://data")
    monkeypatch.setattr(type(fs), "exists", failing)
    with pytest.raises(TransientError, match="no such name") as caught:
        storage.exists("memory://data/a.jsonl")
    assert caught.value.where == "memory://data/a.jsonl"
    assert "network" in caught.value.remedy


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, synced = tmp_path / "deep" / "manifest.json", []

    def sync(descriptor: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), target.exists()))

    monkeypatch.setattr(os, "fsync", sync)
    storage.write_bytes(str(target), b"{}")
    (file, named), (folder, after) = synced
    assert Path(file).name.startswith(".manifest.json.")
    assert not named
    assert (folder, after) == (str(target.parent), True)
    storage.write_bytes(str(target), b"{}", lasting=False)
    assert len(synced) == 2


def test_a_listing_says_when_files_changed(root: str) -> None:
    storage.write_bytes(storage.join(root, "deep", "a"), b"abc")
    [(path, state)] = file_states(root).items()
    assert (path, state.bytes) == ("deep/a", 3)
    assert abs(state.changed - time.time()) < 60


def test_pictures_of_cameras_that_begin_with_an_underscore_are_read(tmp_path: Path) -> None:
    root = str(tmp_path / "photos")
    write_tree(root, "_DSC0001.jpg", "a/_MG_1.jpg", "_SUCCESS", "_committed_1", "_tmp/b.jpg")
    names = [Path(uri).relative_to(root).as_posix() for uri in storage.list_files(root)]
    assert names == ["_DSC0001.jpg", "a/_MG_1.jpg"]
