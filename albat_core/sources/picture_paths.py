"""Pictures that a row has: their bytes, or where their file lies."""

import hashlib
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from albat_core.errors import InputError
from albat_core.sources.config import SourceConfig
from albat_core.store import fingerprints, storage

Picture = bytes | str
"""A picture's file, or its address."""

_LONGEST_NAME = 1024  # bytes between slashes, in a key of S3
_SHOWN = 200  # characters of an address, in errors
_BASE64 = re.compile(r"data:[^,]{,100};base64,|(/9j/|iVBORw0KGgo|R0lGOD|UklGR)[A-Za-z0-9+/\s]{40}")
"""How pictures as text begin: a data URL, or the first bytes of JPEG, PNG, GIF and WebP."""
_ELSEWHERE = frozenset(
    ["http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory"]
)
"""Schemes of addresses that lie on no disk of this machine: fsspec has others."""
_ROWS_LOOKED_AT = 16  # of a table, for whether its pictures are paths


def picture_of(value: Any, uri: str, where: str, config: SourceConfig) -> Picture | None:
    """Return the picture that a column holds, None where it holds none.

    Args:
        value: bytes, {bytes, path} as `datasets` writes it, or a path.
        uri: the row's file; paths are relative to its folder.
        where: the row's place, "file:row".
        config: says which folder paths must be in.

    Raises:
        InputError: it is something else, base64 for example, or a path out of the folder.
    """
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise InputError(
            f"expected a picture (its file's bytes, {{bytes, path}} or a path), "
            f"got {type(value).__name__}",
            where=where,
            remedy="set image_column to the column with the pictures",
        )
    if _BASE64.match(value):
        raise InputError(
            f"expected a picture's bytes or path, got what looks like base64: {value[:40]!r}",
            where=where,
            remedy="write each picture into a file and name that, or its bytes into a column of "
            "Parquet",
        )
    if "\0" in value or max(map(len, value.encode().split(b"/"))) > _LONGEST_NAME:
        raise InputError(
            f"expected a path, got what no file is called: {value[:40]!r}",
            where=where,
            remedy="set image_column to the column with the pictures",
        )
    folder = uri.rpartition("/")[0]
    whole = "://" in value or Path(value).is_absolute()
    address = value if whole else _spelt(folder, value.removeprefix("./"))
    _refuse_outside(address, config.image_root or folder, where, config)
    return address


def _refuse_outside(address: str, root: str, where: str, config: SourceConfig) -> None:
    """Refuse an address out of a folder: rows are others' data, and name what they like."""
    if _plain(address).startswith(_plain(root).rstrip("/") + "/"):
        return
    elsewhere = address.partition("://")[0] in _ELSEWHERE and "::" not in address
    if elsewhere and config.allow_urls:
        return
    remedy = "set image_root to the folder that the pictures are in"
    raise InputError(
        f"expected a picture below {root}, got {address[:_SHOWN]}",
        where=where,
        remedy=f"{remedy}, or allow_urls to ask for it" if elsewhere else remedy,
    )


def _plain(address: str) -> str:
    """Return an address without steps back and forth, a local one from the root."""
    if storage.is_remote(address):
        scheme, _, path = address.partition("://")
        return f"{scheme}://{posixpath.normpath(path)}"
    local = os.path.expanduser(address.removeprefix("file://"))  # noqa: PTH111
    return os.path.abspath(local)  # noqa: PTH100 - follows no link


def one_spelling(name: str) -> str:
    """Return a file's name in the one of its spellings that is compared.

    Windows sets folders apart by backslashes, Macs write accents as characters of their own.
    """
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _spelt(folder: str, name: str) -> str:
    """Return the address of a file below a folder, by the spelling of its name that is there."""
    path = storage.join(folder, name)
    if storage.is_remote(path) or (name.isascii() and "\\" not in name) or storage.exists(path):
        return path
    same = one_spelling(name)
    others = (storage.join(folder, each) for each in (same, unicodedata.normalize("NFD", same)))
    return next(filter(storage.exists, others), path)


def load_picture(picture: Picture, where: str) -> bytes:
    """Return a picture's file.

    Raises:
        InputError: there is none at its address, or it may not be read.
    """
    if isinstance(picture, bytes):
        return picture
    try:
        return storage.read_bytes(picture)
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise InputError(
            f"expected a picture's file at {picture[:_SHOWN]} "
            f"({error.strerror or type(error).__name__})",
            where=where,
            remedy="check the path, which is relative to the row's file; take the row out, or set "
            "on_damaged to skip",
        ) from error


def paths_fingerprint(values: Iterable[Any], uri: str, config: SourceConfig) -> str | None:
    """Return what changes when a picture changes that a table names by its path.

    Args:
        values: the table's column of pictures, streamed; read to the end only if its first rows
            name paths.
        uri: the table.
        config: of its source.

    Returns:
        None where the first pictures have no paths: they are in the table.
    """
    rows = _paths(values, uri, config)
    first = list(islice(rows, _ROWS_LOOKED_AT))
    if not any(first):
        return None
    running = hashlib.sha256()
    for found in fingerprints.fingerprints(path for path in chain(first, rows) if path):
        running.update(f"{found}\n".encode())
    return running.hexdigest()


def _paths(values: Iterable[Any], uri: str, config: SourceConfig) -> Iterator[str | None]:
    """Yield the address of each picture, None of one that is in the table; rows may have none."""
    for row, value in enumerate(values):
        picture = picture_of(value, uri, f"{uri}:{row}", config)
        if picture is not None:
            yield picture if isinstance(picture, str) else None
