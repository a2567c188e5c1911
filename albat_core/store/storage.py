"""Files, local or remote: the one place that knows URI schemes (fsspec)."""

import errno
import hashlib
import io
import math
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec
from fsspec.compression import compr
from fsspec.utils import glob_translate, infer_compression

from albat_core.errors import AlbatError, InputError, StorageFullError, TransientError
from albat_core.progress import track_long
from albat_core.store import missing
from albat_core.store.patterns import HIDDEN, braced, globbed, is_pattern, walked

_BLOCK = 4 << 20
_TAKES_SECONDS = 1 << 30  # bytes whose digest a person waits for
_S3_OPTIONS = {
    "use_listings_cache": False,  # others write too: what was listed once may have changed
    "config_kwargs": {  # compatible servers refuse botocore's checksums on ranged reads
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "max_pool_connections": 32,  # small files are read many at once
    },
}


def is_remote(uri: str) -> bool:
    """Tell whether ``uri`` names something outside this machine's file system."""
    return "://" in uri and not uri.startswith("file://")


def absolute(uri: str) -> str:
    """Return a place as it is called from every folder of this machine."""
    return uri if is_remote(uri) else os.path.realpath(filesystem(uri)[1])  # of loops too


def filesystem(uri: str) -> tuple[Any, str]:
    """Return the fsspec file system of ``uri`` and its path on it.

    Raises:
        InputError: the scheme is unknown.
        MissingDependencyError: its library is missing.
    """
    options = _S3_OPTIONS if uri.startswith(("s3://", "s3a://")) else {}
    try:
        if "::" in uri and uri.count("://") < 2:  # in a name; fsspec would take it as a chain
            fs = fsspec.filesystem(uri.partition("://")[0] if "://" in uri else "file", **options)
            return fs, str(fs._strip_protocol(uri))
        fs, path = fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise missing.no_client(uri, error) from error
    return fs, str(path)


def cache_folder(*parts: str) -> Path:
    """Return where copies of remote files are kept, and notes on local ones: the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache, "albat", *parts).expanduser()


def join(uri: str, *parts: str) -> str:
    """Append ``parts`` to ``uri``."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def without_query(uri: str) -> str:
    """Return an address of the web without what stands behind the file's name; others as is."""
    return uri.partition("?")[0] if uri.startswith(("http://", "https://")) else uri


def is_inner(name: str) -> bool:
    """Tell whether a name that came from outside stays in the folder that it is joined to."""
    return "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "httpcore", "httpx", "requests"}
_CLIENTS |= {"huggingface_hub", "gcsfs", "google", "azure"}
"""Libraries whose errors are those of a connection."""


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what storage raises into errors that say what to do."""
    try:
        yield
    except (FileNotFoundError, AlbatError):
        raise
    except Exception as error:
        if is_full(error):
            raise no_space(uri) from error
        missing.refuse_misnamed(error)
        if isinstance(error, ValueError) and uri.startswith("http"):
            raise missing.no_ranges(uri) from error
        client = type(error).__module__.partition(".")[0] in _CLIENTS
        # LookupError: s3fs looks in an answer for what is not there
        if not is_remote(uri) or not (client or isinstance(error, OSError | LookupError)):
            raise
        if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
            raise InputError(
                f"storage refused access ({type(error).__name__}: {error})",
                where=uri,
                remedy="check the address, and the credentials in this process's environment",
            ) from error
        raise TransientError(
            f"storage did not answer as expected ({type(error).__name__}: {error})",
            where=uri,
            remedy="check address, credentials and network; what was finished is kept",
        ) from error


@contextmanager
def writing(uri: str) -> Iterator[None]:
    """Say what to do where nothing can be written to ``uri``."""
    with explained(uri):
        try:
            yield
        except OSError as error:
            if is_remote(uri) or is_full(error):
                raise
            raise missing.unwritable(uri, error.strerror or type(error).__name__) from error


def check_writable(uri: str) -> None:
    """Look whether something could be written below ``uri``, without writing.

    Raises:
        AlbatError: it could not.
    """
    if is_remote(uri):
        exists(uri)
        return
    folder = Path(filesystem(uri)[1])
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise missing.unwritable(uri, f"{folder} is a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise missing.unwritable(uri, f"no permission in {folder}")


def is_full(error: Exception) -> bool:
    """Tell whether an error is for want of space; some libraries keep only the system's words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    numpy_said = isinstance(error, OSError) and "requested and" in str(error)  # array.tofile
    return numpy_said or os.strerror(errno.ENOSPC) in str(error)


def no_space(uri: str) -> StorageFullError:
    """Return the error for a full disk at ``uri``, or on the way to it."""
    folder = Path(tempfile.gettempdir() if is_remote(uri) else uri)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return StorageFullError(
        f"no space left: {free / 1e6:.0f} MB are free",
        where=uri,
        remedy="free some space or set another --root, and run the same command again: "
        "what was finished is kept",
    )


def exists(uri: str) -> bool:
    """Tell whether a file or folder is there."""
    fs, path = filesystem(uri)
    with explained(uri):
        if not uri.startswith("http"):
            return bool(fs.exists(path))
        try:
            return bool(fs.info(path))
        except FileNotFoundError as error:
            missing.refuse_silent(error)
            return False


class _Explained(io.BufferedIOBase):
    """A remote file whose own errors are told apart from those of whoever decodes it."""

    def __init__(self, file: Any, uri: str) -> None:
        self._file = file
        self._uri = uri

    def read(self, size: int | None = -1) -> bytes:
        size = -1 if size is None else size
        with explained(self._uri):
            before = self._file.tell()
            block = bytes(self._file.read(size))
            self._refuse_short(len(block), before, size)
            return block

    def _refuse_short(self, got: int, before: int, size: int) -> None:
        """Tell of a body that ended before the file does: a reader would take that for its end."""
        whole = getattr(self._file, "size", None)
        left = max(int(whole or 0) - before, 0)  # a web server need not say
        wanted = left if size < 0 else min(size, left)
        if got < wanted:
            raise missing.too_short(self._uri, wanted, got)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with explained(self._uri):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())


@contextmanager
def open_binary(uri: str, *, decompress: bool = False) -> Iterator[IO[bytes]]:
    """Open a file for reading; ``decompress`` by its ending (.gz, .bz2, .xz, .zst).

    Raises:
        TransientError: storage does not answer; what damaged content raises passes as it is.
    """
    fs, path = filesystem(uri)
    with explained(uri):
        opened = fs.open(path, "rb")
    with opened:
        file: Any = _Explained(opened, uri) if is_remote(uri) else opened
        name = without_query(path)
        packed = infer_compression(name) if decompress else None
        if name.lower().endswith(".zst") and decompress:  # fsspec would need one more library
            import pyarrow as pa

            yield pa.CompressedInputStream(file, "zstd")
        elif packed:
            with compr[packed](file, mode="rb") as unpacked:
                yield unpacked
        else:
            yield file


def read_bytes(uri: str) -> bytes:
    """Return a whole small file.

    Raises:
        FileNotFoundError: there is none.
    """
    with open_binary(uri) as file:
        return file.read()


def read_listed(uri: str) -> bytes:
    """Return a whole small file that a listing named.

    Raises:
        TransientError: there is none.
    """
    try:
        return read_bytes(uri)
    except FileNotFoundError as error:
        raise missing.not_found(uri) from error


def write_bytes(uri: str, content: bytes, *, lasting: bool = True) -> None:
    """Write a small file so that a reader sees all of it or none.

    Args:
        uri: of the file.
        content: all of it.
        lasting: whether a local one is on the disk before this returns, as after a loss of power.
    """
    fs, path = filesystem(uri)
    with writing(uri):
        if is_remote(uri):
            fs.pipe_file(path, content)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # not mkstemp, whose 0600 would hide the file from other users
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                if lasting:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(target)
            if lasting and sys.platform != "win32":  # which opens no folders
                _sync_folder(target.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def list_files(uri: str) -> list[str]:
    """Return the files that ``uri`` names, sorted: itself, a folder's (recursively) or a glob's.

    Links to folders are followed. In folders, names that start with a dot are passed over, and
    folders and names without an ending that start with an underscore (`_SUCCESS`, `_metadata`), as
    readers of data sets do; a glob, also with `{a,b}` or `{00..12}`, says itself.
    """
    fs, path = filesystem(uri)
    scheme = uri.split("://", 1)[0] + "://" if is_remote(uri) else ""
    with explained(uri):
        pattern = is_pattern(path) and not fs.exists(path)  # a name may have [ in it
        if pattern:
            names = braced(path)
            its = missing.matching(fs, names, uri) if scheme else globbed(names, glob_translate)
            found = list(set(its))
        elif fs.isfile(path):
            return [uri]
        else:
            found = fs.find(path) if scheme else walked(path)
        base = len(path.rstrip("/"))
        return sorted(
            scheme + str(name).removeprefix(scheme)
            for name in found
            if not name.endswith("/")  # what consoles write for a folder
            and (pattern or not HIDDEN.search(str(name)[base:]))
        )


def size(uri: str) -> int:
    """Return a file's size in bytes, 0 where a web server does not say it."""
    fs, path = filesystem(uri)
    with explained(uri):
        return int(fs.size(path) or 0)


def file_sizes(uri: str) -> dict[str, int]:
    """Return path (relative to ``uri``) and bytes of every file below a folder, by one listing."""
    return {name: state.bytes for name, state in file_states(uri).items()}


class FileState(NamedTuple):
    """What a listing says of a file."""

    bytes: int
    changed: float
    """POSIX time; infinite where the storage does not say."""


def file_states(uri: str) -> dict[str, FileState]:
    """Return path (relative to ``uri``) and state of every file below a folder, by one listing."""
    fs, path = filesystem(uri)
    with explained(uri):
        found = fs.find(path, detail=True)
    base = len(path.rstrip("/")) + 1
    return {
        str(name)[base:]: FileState(int(entry["size"]), _changed(entry))
        for name, entry in found.items()
        # s3fs names the folder itself where a listing is stale, and what consoles write for one
        if entry["type"] != "directory" and not name.endswith("/")
    }


def _changed(details: dict[str, Any]) -> float:
    said = next((details[n] for n in ("mtime", "LastModified", "created") if n in details), None)
    said = said.timestamp() if isinstance(said, datetime) else said
    return float(said) if isinstance(said, int | float) else math.inf


def digest(file: Path | str) -> str:
    """Return the SHA-256 of a file's content, hexadecimal; a string may name a remote one."""
    running = hashlib.sha256()
    total = size(str(file))
    label = f"read {str(file).rpartition('/')[2]}"
    with (
        open_binary(str(file)) as opened,
        track_long(label, total, "bytes", _TAKES_SECONDS) as advance,
    ):
        while block := opened.read(_BLOCK):
            running.update(block)
            advance(len(block))
    return running.hexdigest()


def remove(uri: str) -> None:
    """Remove a file or folder and what is in it, if it is there."""
    fs, path = filesystem(uri)
    with explained(uri):
        if fs.exists(path):
            fs.rm(path, recursive=True)
