"""A full folder of temporary files, told apart from a full root."""

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from albat_core.errors import StorageFullError
from albat_core.records import hashes
from albat_core.scorers.ngram import importance
from albat_core.store.artifacts import ArtifactStore, Built
from albat_core.store.stage import Runtime
from tests.core.test_ngram import candidates, texts

FULL = Path("/dev/full")


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(StorageFullError) as caught:
        action()
    assert caught.value.where == tempfile.gettempdir()
    return str(caught.value)


@pytest.mark.skipif(
    not (FULL.exists() and stat.S_ISCHR(FULL.stat().st_mode)),
    reason="needs the device that is always full",
)
@pytest.mark.parametrize("root", ["local", "memory"])
def test_temporary_files_without_room_name_their_folder(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    pool, own = candidates(texts("leaf root"), runtime), texts("leaf")
    store = ArtifactStore(f"memory://{tmp_path}" if root == "memory" else runtime.root)
    monkeypatch.setattr(hashes, "_AT_ONCE", 10)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: FULL.open("r+b", buffering=8192))

    def hashed(_: Path) -> Built:
        hashes.Hashes().extend(range(10))
        return Built(rows=1)

    for build in (hashed, lambda _: Built(rows=len(importance(pool, own)))):
        said = refused(lambda: store.produce("toy", 1, {}, {}, build))  # noqa: B023
        assert "no space left for temporary files" in said
        assert "set TMPDIR" in said
    assert "toy" not in {ref.stage for ref in store.all_refs()}


def test_what_a_remote_root_is_given_is_a_temporary_file_before(tmp_path: Path) -> None:
    store = ArtifactStore(f"memory://{tmp_path}")

    def build(_: Path) -> Built:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert "set TMPDIR" in refused(lambda: store.produce("toy", 1, {}, {}, build))
