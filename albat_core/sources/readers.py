"""Rows of a file, whatever its format."""

import lzma
import math
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal

from albat_core.errors import InputError
from albat_core.sources.formats import FORMATS
from albat_core.sources.formats.base import Advance, Columns, Row, refuse_pointer
from albat_core.store import storage
from albat_core.store.pointers import LONGEST

_MAYBE_NAN = (float, Decimal)


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
    reader = FORMATS[form]
    with readable(uri), storage.open_binary(uri, decompress=reader.packable) as file, intact(uri):
        for row in reader.read(file, uri, columns, advance):
            for name, value in row.items():
                if isinstance(value, _MAYBE_NAN) and math.isnan(value):
                    row = row | {name: None}  # noqa: PLW2901 - pandas writes missing ones so
            yield row


@contextmanager
def intact(uri: str) -> Iterator[None]:
    """Say what to do where a file is damaged, or a pointer of Git LFS lies in its place."""
    import pyarrow as pa

    damage = (
        *(OSError, EOFError, RecursionError, zlib.error, lzma.LZMAError),
        *(tarfile.TarError, pa.ArrowException),
    )
    try:
        yield
    except (InputError, *damage) as error:
        if _of_storage(error):
            raise
        with storage.open_binary(uri) as whatever:
            refuse_pointer(whatever.read(LONGEST), uri)
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the file is damaged or truncated ({type(error).__name__}: {error})",
            where=uri,
            remedy="write or copy it again",
        ) from error


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
