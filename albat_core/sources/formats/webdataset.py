"""WebDataset: tar archives whose consecutive members of one key are a row."""

import json
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO, Any, ClassVar, NoReturn, Self

from albat_core.errors import InputError
from albat_core.sources.formats.base import (
    HEAD,
    LONGEST_ROW,
    Advance,
    Columns,
    FileFormat,
    Row,
    refuse_missing,
    too_long,
)
from albat_core.sources.formats.images import Images

_CAPTIONS = ("txt", "caption")
_LONGEST_NAME = 1 << 20
_NAMING = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
"""Members that tell of the next one's name, and are read whole."""
_NO_COLUMN_OF = {"text"}  # a missing caption is one of null


class WebDataset(FileFormat):
    """Tar archives, streamed: one row's wanted members are held at once.

    A member's name up to the first dot of its last part is the row's key, the rest its column.
    Beside these, ``image`` is the picture, ``text`` the content of ``txt`` or ``caption``,
    ``__key__`` the key, and the keys of ``json`` are columns too. Text is UTF-8. Archives that were
    joined to one file are read to its end.
    """

    name: ClassVar[str] = "webdataset"
    endings: ClassVar[tuple[str, ...]] = (".tar",)
    packable: ClassVar[bool] = True
    pictures: ClassVar[bool] = True

    def read(self, file: IO[bytes], uri: str, columns: Columns, advance: Advance) -> Iterator[Row]:
        """See ``FileFormat``."""
        wanted = columns or {"image": "image_column", "text": "text_column"}
        seen: dict[str, None] = {}
        rows = 0
        for where, key, members, columns_there in _samples(file, uri, wanted, advance):
            row = _row(members, where) | {"__key__": key}
            seen.update(dict.fromkeys(row) | dict.fromkeys(columns_there))
            rows += 1
            yield {name: _value(row.get(name), name, wanted, where) for name in wanted}
            if rows == HEAD:
                _refuse_unseen(wanted, seen, uri)
        if 0 < rows < HEAD:
            _refuse_unseen(wanted, seen, uri)


def _refuse_unseen(wanted: Mapping[str, str], seen: Mapping[str, None], uri: str) -> None:
    dotted = [name for name in seen if f".{name.rpartition('.')[2]}" in Images.endings]
    if dotted and "image" in wanted and "image" not in seen:
        raise InputError(
            f"expected a picture, got column {dotted[0]!r}: a key ends at the first dot of a name",
            where=uri,
            remedy="name members so that their ending alone follows a dot (a_b.jpg, not a.b.jpg), "
            f"or set image_column to {dotted[0]}",
        )
    refuse_missing({n: f for n, f in wanted.items() if n not in _NO_COLUMN_OF}, list(seen), uri)


class _Header(tarfile.TarInfo):
    """A member's header; where none can be read, `tarfile` would take the archive as ended."""

    def _proc_member(self, tarfile_: tarfile.TarFile) -> Self:
        if self.type in _NAMING and self.size > _LONGEST_NAME:
            raise tarfile.ReadError(f"a name of {self.size:,} bytes at byte {self.offset}")
        member: Self = super()._proc_member(tarfile_)  # type: ignore[misc]
        return member

    def _refuse_sparse(self, *_: object) -> NoReturn:
        """A map of holes may be longer than the archive, and no picture has any."""
        raise tarfile.ReadError(f"a sparse file at byte {self.offset}")

    _proc_sparse = _proc_gnusparse_00 = _refuse_sparse
    _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        start = tarfile_.offset
        try:
            member = super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            kind = type(error).__name__
            if kind == "EOFHeaderError":  # the blocks that end an archive; another may follow
                tarfile_.ignore_zeros = True
                raise
            if kind == "EmptyHeaderError" and tarfile_.ignore_zeros:
                raise
            why = "no header of a member" if start else "no tar archive"
            raise tarfile.ReadError(f"{why} at byte {start}: {error}") from error
        except ValueError as error:  # of a number in an extended header
            raise tarfile.ReadError(f"no number in a header at byte {start}: {error}") from error
        tarfile_.ignore_zeros = False
        return member


def _samples(
    file: IO[bytes], uri: str, wanted: Mapping[str, str], advance: Advance
) -> Iterator[tuple[str, str, dict[str, bytes], dict[str, None]]]:
    """Yield each row's place and key, its wanted members by column, and all of its columns."""
    key: str | None = None
    members: dict[str, bytes] = {}
    there: dict[str, None] = {}
    first: dict[str, dict[str, None]] = {}  # rows of this archive by key, with their columns
    known: set[int] = set()  # hashes of all keys: what is added to an archive behind them is no row
    number = done = end = 0
    with tarfile.open(fileobj=file, mode="r|", tarinfo=_Header) as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined] # else all headers are kept
            joined, end = member.offset != end, archive.offset  # another archive's first
            folder, slash, last = member.name.rpartition("/")
            stem, dot, column = last.partition(".")
            if not member.isfile() or not stem or not dot:
                continue
            column = column.lower()
            if joined or folder + slash + stem != key:
                if key is not None and (members or hash(key) not in known):
                    yield f"{uri}:{number} ({key})", key, members, there
                    number += 1
                    known.add(hash(key))
                key, members, there = folder + slash + stem, {}, {}
                first, known = ({}, set()) if joined else (first, known)
                if column not in first.get(key, {column}) and _is_used(column, wanted):
                    raise _scattered(f"{uri}:{number} ({key})", member.name)
                if number < HEAD:
                    first[key] = there
                advance(member.offset - done)
                done = member.offset
            there[column] = None
            if column in members:
                raise InputError(
                    f"expected one member {column!r} a row, got two",
                    where=f"{uri}:{number} ({key})",
                    remedy="rename one of them in the archive",
                )
            if _is_used(column, wanted):
                if member.size > LONGEST_ROW:
                    raise too_long(f"{uri}:{number} ({member.name[:200]})", LONGEST_ROW)
                opened = archive.extractfile(member)
                assert opened is not None
                members[column] = opened.read()
        if key is not None and (members or hash(key) not in known):
            yield f"{uri}:{number} ({key})", key, members, there


def _scattered(where: str, name: str) -> InputError:
    return InputError(
        f"expected the members of a row one after another, got {name[:200]} behind other rows",
        where=where,
        remedy="write the archive again in the order of names (tar --sort=name)",
    )


def _is_used(column: str, wanted: Mapping[str, str]) -> bool:
    if column in wanted or column == "json":
        return True
    if f".{column}" in Images.endings:
        return "image" in wanted
    return column in _CAPTIONS and "text" in wanted


def _row(members: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """Return a row's values by column: those of ``json``, then the members themselves."""
    row: dict[str, Any] = {}
    if "json" in members:
        try:
            row = json.loads(members["json"])
        except (ValueError, RecursionError) as error:
            raise _misshapen(f"what is not JSON ({error})", where) from error
        if not isinstance(row, dict):
            raise _misshapen(f"a JSON {type(row).__name__}", where)
    row |= members
    for name in reversed(_CAPTIONS):  # the first counts most
        row |= {"text": members[name]} if name in members else {}
    pictures = [name for name in members if f".{name}" in Images.endings]
    if len(pictures) > 1:
        raise InputError(
            f"expected one picture a row, got {' and '.join(pictures)}",
            where=where,
            remedy="set image_column to one of them",
        )
    return row | ({"image": members[pictures[0]]} if pictures else {})


def _misshapen(found: str, where: str) -> InputError:
    return InputError(
        f"expected a JSON object in the member json, got {found}",
        where=where,
        remedy="write the archive again",
    )


def _value(value: Any, name: str, wanted: Mapping[str, str], where: str) -> Any:
    """Return a wanted value: of members, text but for the picture."""
    if not isinstance(value, bytes) or wanted[name] == "image_column":
        return value
    try:
        return value.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"expected UTF-8 in {name!r}, got 0x{value[error.start]:02x} at byte {error.start}",
            where=where,
            remedy="save it as UTF-8, or name another column",
        ) from error
