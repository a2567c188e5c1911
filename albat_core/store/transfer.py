"""Files copied between this machine and storage, several at once."""

import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from albat_core.errors import InputError
from albat_core.store.missing import not_found, too_short
from albat_core.store.storage import (
    explained,
    file_sizes,
    filesystem,
    is_inner,
    is_remote,
    join,
    remove,
    writing,
)
from albat_core.store.switching import switch

_STARTS = ("README.md", "adapter_config.json")  # files that readers of a folder start from
_PART = f".{'[0-9a-f]' * 8}.part"  # a file while it is fetched; a fetch that is killed leaves it
Key = TypeVar("Key")

_FILES_AT_ONCE = 16  # that are copied
_BYTES_AT_ONCE = 64 << 20  # of these; a larger file is copied alone


def upload(folder: Path, uri: str) -> None:
    """Bring a finished local folder to ``uri``: moved where that is possible, else copied."""
    fs, path = filesystem(uri)
    with writing(uri):
        if is_remote(uri):
            files = (p for p in folder.rglob("*") if p.is_file())
            _put(fs, folder, path, [p.relative_to(folder).as_posix() for p in files])
        else:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(str(folder), path)


def _put(fs: Any, folder: Path, path: str, names: Iterable[str]) -> None:
    """Copy files of a local folder below a path of a remote file system, several at once."""
    for some in _batches({name: (folder / name).stat().st_size for name in sorted(names)}):
        fs.put([str(folder / name) for name in some], [join(path, name) for name in some])


def _batches(sizes: Mapping[Key, int]) -> Iterator[list[Key]]:
    """Yield files that are copied at once, in order: so many that they fit in memory."""
    batch: list[Key] = []
    total = 0
    for file, size in sizes.items():
        if batch and (total + size > _BYTES_AT_ONCE or len(batch) == _FILES_AT_ONCE):
            yield batch
            batch, total = [], 0
        batch.append(file)
        total += size
    if batch:
        yield batch


def read_all(uri: str, sizes: Mapping[str, int]) -> dict[str, bytes]:
    """Return whole small files below a folder, many at once; those that are gone are left out.

    Args:
        uri: of the folder.
        sizes: bytes of each file by its name, as they were listed.

    Raises:
        TransientError: one does not come whole.
    """
    fs, path = filesystem(uri)
    names = [name for name, size in sizes.items() if size]  # there is no empty range
    places, ends = [join(path, name) for name in names], [sizes[name] for name in names]
    with explained(uri):  # by ranges: for a whole file s3fs would ask its size first
        contents = fs.cat_ranges(places, [0] * len(ends), ends, on_error="return")
    found = dict.fromkeys(sizes.keys() - names, b"")
    for name, content in zip(names, contents, strict=True):
        with suppress(FileNotFoundError), explained(join(uri, name)):
            if isinstance(content, Exception):
                raise content
            if len(content) != sizes[name]:
                raise too_short(join(uri, name), sizes[name], len(content))
            found[name] = bytes(content)
    return found


def replace_tree(local: Path, uri: str) -> None:
    """Copy a local folder to ``uri`` in place of what is there.

    A local reader finds the old folder or the new one, whenever it looks and wherever this is
    killed; where the system cannot exchange folders (only Linux can, and few network drives), it
    finds none for an instant, and the old one stays beside if this is killed then. Remote files
    are replaced one by one, and what is stale is removed, before the file that readers start from:
    whoever finds that of a new folder finds all of it, but files read meanwhile may be of either.

    Args:
        local: the new folder.
        uri: where it is wanted.
    """
    fs, path = filesystem(uri)
    with writing(uri):
        if is_remote(uri):
            _replace_files(fs, local, uri, path)
            return
        target = Path(path).resolve()  # a link stays one
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            left = shutil.ignore_patterns(_PART)
            shutil.copytree(local, fresh, dirs_exist_ok=True, ignore=left)
            switch(fresh, target)
        finally:
            remove(str(fresh))


def _replace_files(fs: Any, local: Path, uri: str, path: str) -> None:
    whole = (p for p in local.rglob("*") if p.is_file() and not fnmatch(p.name, _PART))
    names = {p.relative_to(local).as_posix() for p in whole}
    first = sorted(names.intersection(_STARTS))
    _put(fs, local, path, names.difference(first))
    for name in file_sizes(uri).keys() - names:
        remove(join(uri, name))
    for name in first:
        _put(fs, local, path, [name])


def download(uri: str, folder: Path, only: Collection[str] | None = None) -> Path:
    """Return a local folder with what lies under ``uri``; local ones are returned as they are.

    Args:
        uri: of a folder.
        folder: for what is remote.
        only: files that are fetched, whatever lies there; None: all that do not lie there in the
            right size.

    Raises:
        InputError: what is listed there would be written outside of the folder.
        TransientError: a file is listed and does not come whole.
    """
    fs, path = filesystem(uri)
    if not is_remote(uri):
        return Path(path)
    with explained(uri):
        listed = file_sizes(uri)
        if strange := [name for name in listed if not is_inner(name)]:
            raise InputError(
                f"expected names of files inside it, got {strange[0]!r}",
                where=uri,
                remedy="somebody wants files written elsewhere: do not read from there",
            )
        wanted = {
            name: length
            for name, length in listed.items()
            if (
                name in only
                if only is not None
                else not ((there := folder / name).exists() and there.stat().st_size == length)
            )
        }
        for some in _batches(wanted):
            # several threads may want the same file
            parts = [(folder / n).with_name(f".{uuid.uuid4().hex[:8]}.part") for n in some]
            for part in parts:
                part.parent.mkdir(parents=True, exist_ok=True)
            try:
                fs.get([join(path, name) for name in some], [str(part) for part in parts])
                for name, part in zip(some, parts, strict=True):
                    if (got := part.stat().st_size) != wanted[name]:
                        raise too_short(join(uri, name), wanted[name], got)
            except FileNotFoundError as error:
                missing = next(n for n, p in zip(some, parts, strict=True) if not p.exists())
                raise not_found(join(uri, missing)) from error
            finally:  # what has come is kept, whatever became of the others
                for name, part in zip(some, parts, strict=True):
                    if part.exists() and part.stat().st_size == wanted[name]:
                        part.replace(folder / name)
                    part.unlink(missing_ok=True)
    return folder
