"""Digests of local files: read once, and again whenever a file may be another."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from albat_core.store import digests, storage
from albat_core.store.digests import known_digest

CONTENT = b"a row\n" * 100


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that counts as long unchanged, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED", -1.0)
    path = tmp_path / "inputs" / "rows.jsonl"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    yield path
    digests._notes.cache_clear()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read for their digest."""
    names: list[str] = []
    digest = storage.digest
    monkeypatch.setattr(
        storage, "digest", lambda path: (names.append(Path(path).name), digest(path))[1]
    )
    return names


def test_a_file_is_read_once_by_all_processes(file: Path, read: list[str]) -> None:
    expected = hashlib.sha256(CONTENT).hexdigest()
    for _ in range(2):
        assert known_digest(str(file)) == expected
        digests._notes.cache_clear()  # as another process
    assert known_digest(f"file://{file}") == expected
    assert read == ["rows.jsonl"]


def test_whatever_may_be_other_content_is_read(file: Path, read: list[str]) -> None:
    """Of the same size each, and with the same time of change."""
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    found = [known_digest(str(file))]

    file.write_bytes(CONTENT.replace(b"a row", b"b row", 1))
    found.append(known_digest(str(file)))

    file.write_bytes(CONTENT.replace(b"a row", b"c row", 1))
    os.utime(file, ns=times)  # as archives set it: the inode's own time tells
    found.append(known_digest(str(file)))

    other = file.with_name("other")
    other.write_bytes(CONTENT.replace(b"a row", b"d row", 1))
    shutil.copystat(file, other)
    other.replace(file)
    found.append(known_digest(str(file)))
    assert len(set(found)) == len(read) == 4


def test_a_link_is_what_it_leads_to(file: Path, tmp_path: Path) -> None:
    link, other = tmp_path / "link", tmp_path / "other"
    other.write_bytes(CONTENT[::-1])
    link.symlink_to(file)
    first = known_digest(str(link))
    link.unlink()
    link.symlink_to(other)
    assert (first, known_digest(str(link))) == (known_digest(str(file)), known_digest(str(other)))


def test_a_file_that_was_just_written_is_read_again(
    file: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another change may have the same time on the disk's clock."""
    monkeypatch.setattr(digests, "_SETTLED", 60.0)
    assert known_digest(str(file)) == known_digest(str(file))
    assert len(read) == 2


def test_a_damaged_note_counts_as_none(file: Path, tmp_path: Path, read: list[str]) -> None:
    digest = known_digest(str(file))
    (notes,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    whole = notes.read_bytes()
    for position in range(len(whole)):
        notes.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        digests._notes.cache_clear()
        assert known_digest(str(file)) == digest
    assert len(read) == 1 + len(whole)


def test_a_cache_that_cannot_be_written_holds_nobody_up(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    assert known_digest(str(file)) == hashlib.sha256(CONTENT).hexdigest()
