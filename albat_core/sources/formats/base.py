"""What a file format is, and what readers of several formats share."""

import difflib
import io
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import IO, Any, ClassVar, Protocol

from albat_core.errors import InputError
from albat_core.store.pointers import REMEDY, is_pointer

Row = dict[str, Any]
Columns = Mapping[str, str] | None
"""Wanted columns, each with the configuration's field that names it; None: all there are."""
Advance = Callable[[int], None]

HEAD = 200
"""Rows looked at before a file is taken for what it seems to be."""
BUFFER = 1 << 20  # bytes read at once
LONGEST_ROW = 256 << 20
"""Bytes of a row at most: a small compressed file may hold a line of gigabytes."""
LONGEST_LINE = 32 << 20
"""Bytes of a line of a table: as JSON or CSV it may take thirty times as many in memory."""
LONGEST_FILE = 1 << 30
"""Bytes of a file that is read whole, at most."""
EXACT = 2**53
"""From here on a float stands for several whole numbers."""

_UNSEEN = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})
_KINDS = {
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"\xff\xff\xff\xff": "Arrow",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def is_blank(text: str) -> bool:
    """Tell whether nothing of a text can be seen: spaces, marks of direction or of no width."""
    # that the first character can be seen is soon told
    return not text[:1].isalnum() and all(unicodedata.category(c) in _UNSEEN for c in text)


def says_nothing(value: Any) -> bool:
    """Tell whether a value is null, or text that is blank."""
    return value is None or (isinstance(value, str) and is_blank(value))


class FileFormat(Protocol):
    """A format of files: one class in one file, and its line in the table of ``formats``."""

    name: ClassVar[str]
    """What settings call it."""
    endings: ClassVar[tuple[str, ...]]
    """Endings of file names that mean it, in lower case."""
    packable: ClassVar[bool] = False
    """Whether a file of it may be compressed as a whole."""
    one_row: ClassVar[bool] = False
    """Whether a file is one row, which is its own document and may be blank."""
    filled: ClassVar[bool] = False
    """Whether all rows have one type, so that a key which a row has not comes as null."""
    pictures: ClassVar[bool] = False
    """Whether its rows have a column `image` by themselves."""

    def read(self, file: IO[bytes], uri: str, columns: Columns, advance: Advance) -> Iterator[Row]:
        """Yield a file's rows in order, each with the wanted columns only; a few hundred are held.

        Args:
            file: opened for reading, decompressed.
            uri: its name, for errors.
            columns: that are wanted.
            advance: told the bytes read since it was last called.

        Raises:
            InputError: the file is not of this format, or lacks a column.
        """
        ...


def kind_of(head: bytes) -> str:
    """Return what a file that begins with ``head`` is."""
    if not head:
        return "an empty file"
    for magic, kind in _KINDS.items():
        if head.startswith(magic):
            return kind
    return "something else"


def refuse_missing(wanted: Mapping[str, str], there: Collection[str], where: str) -> None:
    """Raise an InputError that names the wanted columns that are not there, or there twice."""
    counts = Counter(list(there))
    for name in wanted:
        if counts[name] > 1:
            raise InputError(
                f"expected one column {name!r}, the file has {counts[name]}",
                where=where,
                remedy="rename one of them",
            )
    missing = [name for name in wanted if name not in counts]
    if not missing:
        return
    asked = " and ".join(f"{wanted[name]} names column {name!r}" for name in missing)
    near = [close[0] for name in missing if (close := difflib.get_close_matches(name, there, 1))]
    raise InputError(
        f"{asked}, which the file does not have; it has {', '.join(map(repr, there)) or 'none'}",
        where=where,
        remedy=f"did you mean {' and '.join(map(repr, near))}?"
        if near
        else f"set {' and '.join(dict.fromkeys(wanted[name] for name in missing))} to what it has",
    )


def too_long(where: str, limit: int) -> InputError:
    """Return the error for a row or file that would fill the memory."""
    return InputError(
        f"expected at most {limit >> 20:,} MiB at once, got more",
        where=where,
        remedy="set rows apart by line ends, or cut the file into several",
    )


def decoded_lines(
    file: IO[bytes], uri: str, form: str, advance: Advance, longest: int | None = None
) -> Iterator[str]:
    """Yield decoded lines with their ends, a byte order mark taken off.

    Raises:
        InputError: one is no text, or longer than ``longest`` bytes (``LONGEST_LINE``).
    """
    longest = longest or LONGEST_LINE
    buffered = io.BufferedReader(file, BUFFER)  # type: ignore[type-var] # any IO[bytes] will do
    # a binary file may have no line end for gigabytes, so the first block is looked at as such
    refuse_binary(buffered.peek(), uri, form)
    for number, line in enumerate(iter(lambda: buffered.readline(longest + 1), b""), 1):
        if len(line) > longest:
            raise too_long(f"{uri}: line {number}", longest)
        advance(len(line))
        if b"\0" in line:
            raise _binary(uri, form, f"a NUL byte in line {number}")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(uri, f"line {number}, byte {error.start} of it", error) from error
        text = text.removeprefix("\ufeff") if number == 1 else text
        if text:  # else the mark is all there is
            yield text


def refuse_binary(head: bytes, uri: str, form: str) -> None:
    """Raise an InputError where what should be text begins as other files do."""
    refuse_pointer(head, uri)
    kind = kind_of(head)
    known = kind in _KINDS.values()
    # a text may begin with the letters PAR1, but not go on with NUL bytes
    if known and (b"\0" in head or not head[:6].isascii()):
        raise _binary(uri, form, kind)
    low, high = head[:HEAD:2], head[1:HEAD:2]
    if any(
        zero and not zero.strip(b"\0") and b"\0" not in other
        for zero, other in ((low, high), (high, low))
    ):
        raise _binary(uri, form, "UTF-16")  # without a byte order mark
    if b"\0" in head:
        raise _binary(uri, form, f"a NUL byte at byte {head.index(0)}")


def refuse_pointer(head: bytes, uri: str) -> None:
    """Raise an InputError where a pointer of Git LFS lies in a file's place."""
    if is_pointer(head):
        raise InputError(
            "expected the file itself, found a pointer of Git LFS in its place",
            where=uri,
            remedy=REMEDY,
        )


def _binary(uri: str, form: str, found: str) -> InputError:
    return InputError(
        f"expected {form} in UTF-8, found {found}",
        where=uri,
        remedy="save it as UTF-8"
        if found == "UTF-16"
        else "set format to what the file is; compressed files need an ending that says so",
    )


def not_utf8(uri: str, place: str, error: UnicodeDecodeError) -> InputError:
    """Return the error for bytes that are no UTF-8."""
    return InputError(
        f"expected UTF-8, got 0x{error.object[error.start]:02x} at {place}",
        where=uri,
        remedy="save it as UTF-8",
    )
