"""Rows of a file, whatever its format."""

import lzma
import math
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal

from albat_core.errors import InputError
from albat_core.sources.formats import COMPRESSED, FORMATS
from albat_core.sources.formats.base import BUFFER, Advance, Columns, Row, refuse_pointer
from albat_core.store import storage
from albat_core.store.pointers import LONGEST

_MAYBE_NAN = (float, Decimal)
_READ_ON = 256 << 20  # bytes of a packed file at most, for its checksum


def stream_rows(uri: str, form: str, columns: Columns, advance: Advance) -> Iterator[Row]:
    """Yield a file's rows in order, each with the wanted columns only; NaN is null.

    Args:
        uri: the file, compressed where its name says so.
        form: its format. A text file is one row with the column ``text``; pictures in folders are
            not read here.
        columns: wanted columns, each with the configuration's field that names it; None: all that
            JSON lines or CSV have.
        advance: told the bytes read since it was last called (before compression).

    Raises:
        InputError: the file is missing, damaged or not of its format, or lacks a column.
    """
    reader, said = FORMATS[form], False
    with readable(uri), storage.open_binary(uri, decompress=reader.packable) as file, intact(uri):
        for row in reader.read(file, uri, columns, advance):
            said = said or any(row.values())
            for name, value in row.items():
                if isinstance(value, _MAYBE_NAN) and math.isnan(value):
                    row = row | {name: None}  # noqa: PLW2901 - pandas writes missing ones so
            yield row
    if not said and _is_packed(uri):
        _refuse_empty(uri)


def _is_packed(uri: str) -> bool:
    return storage.without_query(uri).lower().endswith(COMPRESSED)


def _refuse_empty(uri: str) -> None:
    """Raise where a packed file has no byte: packed nothing has some."""
    with storage.open_binary(uri) as file:
        if not file.read(1):
            raise InputError(
                "expected a packed file, found an empty one",
                where=uri,
                remedy="write or copy it again",
            )


@contextmanager
def intact(uri: str) -> Iterator[None]:
    """Say what to do where a file is damaged, or a pointer of Git LFS lies in its place."""
    expected: tuple[type[Exception], ...] = (InputError, *_damage())
    try:
        yield
    except expected as error:
        if _of_storage(error):
            raise
        with storage.open_binary(uri) as whatever:
            refuse_pointer(whatever.read(LONGEST), uri)
        cause = _damage_behind(uri) if isinstance(error, InputError) else error
        if cause is None:
            raise
        raise InputError(
            f"the file is damaged or truncated ({type(cause).__name__}: {cause})",
            where=uri,
            remedy="write or copy it again",
        ) from error


def _damage() -> tuple[type[Exception], ...]:
    """Return what decoders raise of content that is not what was written."""
    import pyarrow as pa

    packed = (OSError, EOFError, zlib.error, lzma.LZMAError)
    return (*packed, RecursionError, tarfile.TarError, pa.ArrowException)


def _damage_behind(uri: str) -> Exception | None:
    """Return what the checksum of a packed file says, which stands behind what was read of it."""
    if not _is_packed(uri):
        return None
    try:
        with storage.open_binary(uri, decompress=True) as file:
            for _ in range(_READ_ON // BUFFER):
                if not file.read(BUFFER):
                    break
    except _damage() as damage:
        return None if _of_storage(damage) else damage
    return None


def _of_storage(error: Exception) -> bool:
    """Tell whether reading failed rather than what was read: decoders set no error number."""
    return isinstance(error, FileNotFoundError) or (
        isinstance(error, OSError) and error.errno is not None
    )


@contextmanager
def readable(uri: str) -> Iterator[None]:
    """Say what to do where a file is gone or may not be read."""
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(
            f"expected a file that can be read ({error.strerror or type(error).__name__})",
            where=uri,
            remedy="check that it is there and that you may read it",
        ) from error
