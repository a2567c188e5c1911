"""Folders of pictures: the captions and tables that lie beside them."""

import glob
import json
import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pydantic import BaseModel, ConfigDict

from albat_core.errors import InputError
from albat_core.sources.config import SourceConfig
from albat_core.sources.formats import FORMATS, format_of
from albat_core.sources.formats.base import Row, refuse_missing, says_nothing
from albat_core.sources.formats.images import Images
from albat_core.sources.formats.text import Text
from albat_core.sources.picture_paths import one_spelling
from albat_core.sources.readers import readable, stream_rows
from albat_core.store import fingerprints, storage

KEY = "file_name"
"""Column of a table of pictures that names the file, as in `datasets`' image folders."""

_TABLES = ("metadata.jsonl", "metadata.csv")
_CAPTIONS = (".txt", ".caption")  # the latter: what kohya-ss/sd-scripts looks for by default
_OWN = ("image", "text")  # columns that a picture has without any table


class Beside(BaseModel):
    """What describes a picture, beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    caption: str | None = None
    """Text file of the same name."""
    table: str | None = None
    """The nearest `metadata` table in the picture's folder or one above."""
    version: str = ""
    """Fingerprint of the table."""
    key: str = ""
    """The picture's name in the table."""


@dataclass(frozen=True)
class _Table:
    """A `metadata` table; rows as JSON by file name, which takes the least memory."""

    rows: dict[str, str]
    columns: tuple[str, ...]


def without_descriptions(
    named: Mapping[str, str], source: SourceConfig, whole: Sequence[str] | None
) -> tuple[dict[str, str], dict[str, Beside]]:
    """Return the files that are rows or have them, and what lies beside those that are pictures.

    Args:
        named: address of each file by its name.
        source: what they are of.
        whole: addresses of all files of the folder; None where only some of them are named.

    Raises:
        InputError: a table names a picture that is not there, or a folder has two tables.
    """
    pictures = _pictures(named, source)
    if not pictures:
        if source.image_column:  # a table names them
            return {n: u for n, u in named.items() if format_of(n) != Images.name} or dict(
                named
            ), {}
        return dict(named), {}
    if whole is not None:
        _refuse_absent(whole)
    uris = [named[name] for name in pictures]
    beside = _describe(uris, _neighbours(pictures, uris) if whole is None else whole)
    described = {one.caption for one in beside} | {one.table for one in beside}
    rows = {name: uri for name, uri in named.items() if uri not in described}
    return rows, dict(zip(pictures, beside, strict=True))


def _pictures(named: Iterable[str], source: SourceConfig) -> list[str]:
    """Return the files that are rows as pictures; none where a table among them names these."""
    if source.format == Images.name:
        return [
            name
            for name in named
            if not _is_table(name)
            and format_of(name) != Text.name
            and not name.lower().endswith(_CAPTIONS)
        ]
    pictures = [name for name in named if format_of(name) == Images.name]
    if source.format != "auto" or not pictures:
        return []
    tables = any(
        (form := format_of(n)) and not FORMATS[form].one_row and not _is_table(n) for n in named
    )
    return [] if tables and source.image_column else pictures


def _is_table(name: str) -> bool:
    return name.rpartition("/")[2] in _TABLES


def _neighbours(names: Iterable[str], uris: Iterable[str]) -> Iterator[str]:
    """Yield the files in the folders of some pictures, and in those above, as their names begin."""
    folders = set()
    for name, uri in zip(names, uris, strict=True):
        folder = uri.rpartition("/")[0]
        folders |= {folder.rsplit("/", above)[0] for above in range(name.count("/") + 1)}
    for folder in sorted(folders):
        yield from storage.list_files(f"{glob.escape(folder)}/*")


def _describe(pictures: Sequence[str], listed: Iterable[str]) -> list[Beside]:
    """Return what lies beside each picture, of the files that are listed."""
    texts: dict[str, str] = {}
    tables: dict[str, str] = {}
    for uri in listed:
        folder, _, name = uri.rpartition("/")
        if name in _TABLES:
            if folder in tables:
                raise InputError(
                    f"expected one table of pictures, found {' and '.join(_TABLES)}",
                    where=folder,
                    remedy="take one of them out",
                )
            tables[folder] = uri
        elif name.lower().endswith(_CAPTIONS):
            stem = uri.rpartition(".")[0]
            texts[stem] = uri
            texts.setdefault(one_spelling(stem), uri)
    versions = {}
    for uri in tables.values():
        with readable(uri):
            versions[uri] = fingerprints.fingerprint(uri)
    found = []
    for uri in pictures:
        folder = uri.rpartition("/")[0]
        while folder and folder not in tables:
            folder = folder.rpartition("/")[0]
        table = tables.get(folder)
        stem = uri.rpartition(".")[0]
        found.append(
            Beside(
                caption=texts.get(stem) or texts.get(one_spelling(stem)),
                table=table,
                version=versions[table] if table else "",
                key=uri[len(folder) + 1 :] if table else "",
            )
        )
    return found


def _refuse_absent(listed: Collection[str]) -> None:
    """Check that the pictures are there that the tables of a folder name."""
    there = set(map(one_spelling, listed))
    for uri in sorted(filter(_is_table, listed)):
        folder = one_spelling(uri.rpartition("/")[0])
        with readable(uri):
            version = fingerprints.fingerprint(uri)
        absent = [name for name in _table(uri, version).rows if f"{folder}/{name}" not in there]
        if absent:
            more = f", nor {len(absent) - 1} more that the table names" if absent[1:] else ""
            raise InputError(
                f"expected the picture {absent[0]!r}, found none{more}",
                where=uri,
                remedy="bring them back, or take their rows out",
            )


@lru_cache(maxsize=4)
def _table(uri: str, version: str) -> _Table:
    """Return a table of pictures; ``version`` tells a changed one apart."""
    del version
    rows: dict[str, str] = {}
    columns: dict[str, None] = {}
    form = format_of(uri)
    assert form is not None
    for number, row in enumerate(stream_rows(uri, form, None, lambda _: None)):
        where = f"{uri}:{number}"
        name = row.get(KEY)
        if not isinstance(name, str) or not name.strip():
            raise InputError(
                f"expected a picture's name in column {KEY!r}, got {name!r}",
                where=where,
                remedy=f"name each row's picture, relative to the table, in {KEY!r}",
            )
        name = posixpath.normpath(one_spelling(name))
        if name in rows:
            raise InputError(
                f"expected one row a picture, {name!r} has two",
                where=where,
                remedy="take one of them out",
            )
        rows[name] = json.dumps(row, ensure_ascii=False)
        columns.update(dict.fromkeys(row))
    return _Table(rows, tuple(columns))


def row_of(beside: Beside) -> str:
    """Return the picture's row of the table as JSON, "" where none is."""
    if not beside.table:
        return ""
    return _table(beside.table, beside.version).rows.get(one_spelling(beside.key), "")


def read_picture_row(uri: str, beside: Beside, columns: Mapping[str, str]) -> Row:
    """Return the row of a picture: the wanted columns, ``image`` being its address.

    ``text`` is the table's, else, where that is blank, the caption's.

    Raises:
        InputError: a caption is not text, or a wanted column is in no row of the table.
    """
    row: Row = {}
    there = [*_OWN, KEY]
    if beside.table:
        found = row_of(beside)
        row = json.loads(found) if found else {}
        there += _table(beside.table, beside.version).columns
    refuse_missing(columns, dict.fromkeys(there), beside.table or uri)
    if "text" in columns and says_nothing(row.get("text")) and beside.caption:
        row |= next(stream_rows(beside.caption, Text.name, {"text": ""}, lambda _: None))
    row |= {"image": uri, KEY: beside.key or uri.rpartition("/")[2]}
    return {name: row.get(name) for name in columns}
