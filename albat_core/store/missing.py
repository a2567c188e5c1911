"""Errors for files that cannot be reached, or that do not come as storage lists them."""

import errno
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from albat_core.errors import AlbatError, InputError, MissingDependencyError, TransientError
from albat_core.store.patterns import is_pattern

_EXTRAS = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure", "hf": "hub"}
"""What is installed for the addresses of a scheme, where it does not come with albat."""
_GONE = (404, 410)  # of HTTP
_UNDECODED = re.compile(r"[\ud800-\udfff]")  # what Python makes of bytes that are no UTF-8


def no_client(uri: str, error: Exception) -> AlbatError:
    """Return the error for an address that no library here can open."""
    extra = _EXTRAS.get(uri.partition("://")[0])
    if isinstance(error, ImportError) and extra:
        return MissingDependencyError(
            f"expected a library that opens such addresses ({error})",
            where=uri,
            remedy=f"pip install 'albat[{extra}]'",
        )
    return InputError(
        f"expected a local path or an s3:// address ({error})",
        where=uri,
        remedy="use a path, or an address of a scheme that fsspec knows",
    )


def no_ranges(uri: str) -> InputError:
    """Return the error for a web server that gives whole files alone."""
    return InputError(
        "expected a server that gives parts of a file (Range), as which large ones are read",
        where=uri,
        remedy="download the file",
    )


def too_short(uri: str, wanted: int, got: int) -> TransientError:
    """Return the error for what came of a file, where that is not all of it."""
    return TransientError(
        f"expected {wanted} bytes, got {got}",
        where=uri,
        remedy="the connection broke, or somebody writes the file now: run the same command again",
    )


def not_found(uri: str) -> TransientError:
    """Return the error for a file that is listed and cannot be found."""
    return TransientError(
        "expected a file, as it is listed, got none",
        where=uri,
        remedy="the storage is behind, or somebody removes it now: run the same command again",
    )


def matching(fs: Any, patterns: Iterable[str], uri: str) -> Iterator[str]:
    """Yield the files that patterns stand for in a remote store.

    A folder is listed once for all names in it that are written out.

    Raises:
        TransientError: a folder was listed, and could not be found.
    """
    written_out: dict[str, list[str]] = {}
    for pattern in patterns:
        # web servers list nothing, and the Hub may list by another name
        if is_pattern(pattern) or uri.startswith(("http", "hf:")):
            try:
                found = fs.glob(pattern, detail=True)
            except FileNotFoundError as error:  # where nothing matches, fsspec says so by none
                raise not_found(uri) from error
            yield from (name for name, entry in found.items() if entry["type"] != "directory")
        else:
            written_out.setdefault(pattern.rpartition("/")[0], []).append(pattern)
    for folder, names in written_out.items():
        entries = _listed(fs, folder)
        yield from (name for name in names if entries.get(name, "directory") != "directory")


def _listed(fs: Any, folder: str) -> dict[str, str]:
    """Return what a listing of a remote folder says that each name in it is; none: no folder."""
    try:
        return {str(entry["name"]): entry["type"] for entry in fs.ls(folder, detail=True)}
    except FileNotFoundError:
        return {}


def refuse_undecoded(uris: Sequence[str]) -> None:
    """Raise where a name is no text: neither ids nor digests can be made of it."""
    if odd := [uri for uri in uris if _UNDECODED.search(uri)]:
        raise InputError(
            f"expected names of files in UTF-8, {len(odd):,} are not",
            where=ascii(odd[0]),
            remedy="rename it, or give a glob that names only the files to read",
        )


def unwritable(uri: str, reason: str) -> AlbatError:
    """Return the error for a place in which nothing can be written."""
    return AlbatError(
        f"expected a folder that can be written ({reason})",
        where=uri,
        remedy="name another folder with --root (or output in the configuration)",
    )


def refuse_silent(error: FileNotFoundError) -> None:
    """Raise what a web server's answer, or none, was taken for a missing file for.

    fsspec takes all that is no answer for one; only two answers say that there is none.
    """
    cause = error.__cause__
    if cause is not None and getattr(cause, "status", None) not in _GONE:
        raise cause


def refuse_misnamed(error: Exception) -> None:
    """Raise a FileNotFoundError where no file can have the name, or links lead in a circle."""
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        raise FileNotFoundError(error.errno, error.strerror, error.filename) from error
