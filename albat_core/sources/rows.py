"""Rows of an input file as examples, each with its place; pictures are fetched only when asked."""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from numbers import Number
from uuid import UUID

from albat_core.errors import InputError
from albat_core.records.examples import Example
from albat_core.sources.chats import read_messages, read_tools
from albat_core.sources.config import TEMPLATES, TOKEN, SourceConfig, template_parts
from albat_core.sources.files import InputFile
from albat_core.sources.formats import FORMATS
from albat_core.sources.formats.base import EXACT, Advance, Row, is_blank, says_nothing
from albat_core.sources.formats.images import Images
from albat_core.sources.picture_folders import KEY, read_picture_row
from albat_core.sources.picture_paths import Picture, load_picture, picture_of
from albat_core.sources.readers import stream_rows

_WHOLE = re.compile(r"^(-?\d+)\.0+$")
_FLOAT = re.compile(r"^-?\d+(\.\d+)?(e\+\d+)?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """A row as an example without its picture.

    Args:
        where: its place, "file:row", rows from 0.
        example: with neither text nor messages where they are null or blank.
        picture: its file or the address of that; None where the row has none.
        blank: columns that are null or blank: those for want of which the row has no text or
            picture, else those that stand empty in a template.
        printed: whether the text was a number, which stands as it is printed.
    """

    where: str
    example: Example
    picture: Picture | None
    blank: tuple[str, ...] = ()
    printed: bool = False

    @property
    def place(self) -> str:
        """Where the row is, and where its picture's file if that is another."""
        other = isinstance(self.picture, str) and not self.where.startswith(self.picture)
        return f"{self.where} ({self.picture!s})" if other else self.where

    def lacks(self, config: SourceConfig) -> str | None:
        """Return what is wanting: "null" for text or picture, "uncaptioned" for a picture's."""
        if config.image_column and self.picture is None:
            return "null"
        if self.example.text is None and self.example.messages is None:
            return "uncaptioned" if config.image_column else "null"
        return None

    def whole(self) -> Example:
        """Return the example with its picture's file as it is.

        Raises:
            InputError: there is none at its address, or it may not be read.
        """
        if self.picture is None:
            return self.example
        return replace(self.example, image=load_picture(self.picture, self.where))


def untold(_done: int) -> None:
    """Take an amount of progress that nobody waits for."""


def placed_rows(file: InputFile, advance: Advance) -> Iterator[PlacedRow]:
    """Yield every row of a file, in order.

    Args:
        file: what is read.
        advance: told the bytes read since it was last called, of a folder the pictures.

    Raises:
        InputError: the file or one of its rows cannot be used; it says where.
    """
    config, column = file.config, file.config.image_column
    form, text = FORMATS[file.format], _text_column(file.config)
    fields = [[text]] if text else []
    fields += [columns for f in TEMPLATES if (columns := config.template_columns(f))]
    for number_of_file, (uri, name) in enumerate(zip(file.uris, file.names, strict=True)):
        whole = form.one_row and not file.config.delimiter
        document = name if whole else ""
        for number, row in enumerate(_rows(file, number_of_file, advance)):
            where = f"{uri}:{number}"
            names = (f"{name}:{number}", document, file.label)
            example = as_example(row, config, *names, where, filled=form.filled)
            picture = picture_of(row[column], uri, where, config) if column else None
            if file.holds_pictures and isinstance(picture, str):
                raise InputError(
                    "expected a picture in the table, as its first rows have them, got a path",
                    where=where,
                    remedy="keep rows that name their pictures in a file of their own",
                )
            used = bool(example.text or example.messages)
            blank = _blank_columns(row, config, fields, used=used)
            if column and picture is None:
                blank = (*blank, column)
            printed = not isinstance(value := row.get(text), str) and isinstance(value, Number)
            yield PlacedRow(where, example, picture, blank, printed)


def _text_column(config: SourceConfig) -> str:
    """Return the column that is the text by itself, "" where templates or chats make it."""
    if config.messages_column or config.template is not None or config.answer_template is not None:
        return ""
    return config.text_column or "text"


def _blank_columns(
    row: Row, config: SourceConfig, fields: Sequence[Sequence[str]], *, used: bool
) -> tuple[str, ...]:
    """Return the columns that a text wants; of a row that is not used, the cause: a whole field.

    Args:
        row: the source's columns.
        config: says which column is what.
        fields: columns of each field that makes a text.
        used: whether the row has a text.
    """
    if config.messages_column:
        return () if used else (f"{config.messages_column} (answers)",)
    found: dict[str, None] = {}
    for columns in fields:
        blank = [column for column in columns if says_nothing(row[column])]
        if used or len(blank) == len(columns):
            found |= dict.fromkeys(blank)
    return tuple(found)


def _rows(file: InputFile, number: int, advance: Advance) -> Iterator[Row]:
    """Yield the rows of one of the files that are read as one."""
    uri, columns = file.uris[number], file.config.columns
    if file.format != Images.name:
        rows = stream_rows(uri, file.format, columns, advance)
        yield from rows if file.config.delimiter is None else _documents(rows, file.config)
        return
    yield read_picture_row(uri, file.beside[number], columns)
    advance(1)


def _documents(rows: Iterable[Row], config: SourceConfig) -> Iterator[Row]:
    """Yield the documents of text files, but blank ones; ends of lines are as the delimiter's."""
    delimiter = (config.delimiter or "").replace("\r\n", "\n")
    for row in rows:
        text = row["text"].replace("\r\n", "\n")
        yield from ({"text": part} for part in text.split(delimiter) if not is_blank(part))


def as_example(
    row: Row,
    config: SourceConfig,
    name: str,
    document: str,
    label: str,
    where: str,
    *,
    filled: bool = False,
) -> Example:
    """Return the example that a row makes, with neither text nor messages where it has none.

    Its picture is not looked at.

    Args:
        row: the source's columns.
        config: says which column is what.
        name: its id where no column gives one.
        document: its document where no column gives one; blank for the row itself.
        label: its source where no column gives one.
        where: the row's place, "file:row".
        filled: see ``FileFormat``.

    Raises:
        InputError: a column has what cannot be used.
    """
    example_id, source = name, label
    if config.id_column:
        example_id = label_of(row, config.id_column, "id_column", where)
    if config.document_column and not says_nothing(row[config.document_column]):
        document = label_of(row, config.document_column, "document_column", where).strip()
        if not document.isascii():
            document = unicodedata.normalize("NFC", document)  # Macs write accents apart
        if document.endswith("0"):
            document = _WHOLE.sub(r"\1", document)  # a table beside may have it as a float
    if config.source_column and not says_nothing(row[config.source_column]):
        source = label_of(row, config.source_column, "source_column", where)
    names = (example_id, document or example_id, source)
    if config.messages_column:
        tools = row[config.tools_column] if config.tools_column else None
        messages = read_messages(row[config.messages_column], where, filled=filled)
        tools = read_tools(tools, where, filled=filled)
        example = Example(*names, messages=messages, tools=tools)
    else:
        example = Example(*names, *_content(row, config, where))
    _refuse_surrogates(example, where)
    return example


def _content(row: Row, config: SourceConfig, where: str) -> tuple[str | None, str | None]:
    """Return text and prompt of a row; both None where it has none."""
    if config.answer_template is not None:
        prompt = _fill(config.prompt_template or "", row, config, where)
        answer = _fill(config.answer_template, row, config, where)
        if prompt is None or answer is None:
            return None, None
        return prompt + answer, prompt
    if config.template is not None:
        return _fill(config.template, row, config, where), None
    column = _text_column(config)
    text = row[column]
    if not says_nothing(text) and not isinstance(text, str | Number):
        raise InputError(
            f"expected text in column {column!r}, got {type(text).__name__}",
            where=where,
            remedy="write the column as text, or name another",
        )
    return (None if says_nothing(text) else str(text)), None


def _fill(template: str, row: Row, config: SourceConfig, where: str) -> str | None:
    """Return a template with a row's values, "" for null; None where all are null or blank."""
    text, blank, columns = "", True, 0
    for literal, column in template_parts(template):
        text += literal
        if column is None:
            continue
        if column == TOKEN and config.token is not None:
            text += config.token
            continue
        value = row[column]
        if value is None:
            value = ""
        if not isinstance(value, str | Number):
            raise InputError(
                f"expected text or a number in column {column!r}, got {type(value).__name__}",
                where=where,
                remedy="leave it out of the template, or write the column as text",
            )
        if column != KEY or not config.image_column:  # a file's name says nothing of the picture
            columns += 1
            blank = blank and says_nothing(value)
        text += str(value)
    return None if columns and blank else text


def label_of(row: Row, column: str, field: str, where: str) -> str:
    """Return a row's name or id as text; a whole number is written alike where it is a float.

    Args:
        row: its columns.
        column: that holds it.
        field: the setting that names the column.
        where: the row's place.

    Raises:
        InputError: it is neither text nor a number, blank, or a rounded number.
    """
    value = row[column]
    if isinstance(value, UUID):
        value = str(value)
    if not isinstance(value, str | Number) or isinstance(value, bool) or says_nothing(value):
        found = "a blank" if isinstance(value, str) else "null" if value is None else repr(value)
        raise InputError(
            f"expected text or a number in {field} {column!r}, got {found}",
            where=where,
            remedy=f"fill the column, or drop {field}",
        )
    if _rounded(value):
        raise InputError(
            f"expected whole names in {field} {column!r}, got {value}, to which others are rounded",
            where=where,
            remedy="write the column anew as whole numbers or text: pandas and spreadsheets make "
            "floats of long numbers (pandas: dtype Int64 or str)",
        )
    return _printed(value)


def _rounded(value: str | Number) -> bool:
    """Tell whether a number is a float that several whole numbers are rounded to."""
    number: object = value
    if isinstance(value, str):
        if value[0] != "-" and not value[0].isdecimal():
            return False
        if not value.strip("-").isdecimal() and _FLOAT.match(value):
            number = float(value)
    return isinstance(number, float) and abs(number) >= EXACT


def _printed(value: object) -> str:
    """Return a value as text; a whole number is written alike where pandas made a float of it."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _refuse_surrogates(example: Example, where: str) -> None:
    """Raise where JSON's escapes gave half of a character, which UTF-8 cannot write."""
    names = (example.example_id, example.document, example.source)
    if example.messages is None and all(map(str.isascii, (*names, example.text or ""))):
        return
    words = [*names, example.text or ""]
    words += [json.dumps(example.messages or (), ensure_ascii=False), example.tools or ""]
    try:
        "".join(words).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"expected Unicode, got half of a surrogate pair ({error.object[error.start]!a})",
            where=where,
            remedy="write the row again from well-formed text",
        ) from error


def read_rows(file: InputFile) -> Iterator[Example]:
    """Yield every row of a file as an example, in order, before any cutting and sharing.

    A row whose text is null or blank has neither ``text`` nor ``messages``; pictures are as they
    were read, and None where there is none, or none at its path and ``on_damaged`` is skip.

    Raises:
        InputError: the file or one of its rows cannot be used; it says where.
    """
    for placed in placed_rows(file, untold):
        try:
            yield placed.whole()
        except InputError:
            if file.config.on_damaged == "refuse":
                raise
            yield placed.example


@lru_cache(maxsize=1024)  # rows of a document follow each other
def document_hash(document: str) -> int:
    """Return a number in [0, 2**64) of the name alone: a share takes those below its part."""
    return int.from_bytes(blake2b(document.encode(), digest_size=8, person=b"share").digest())


def is_used(row: Example, config: SourceConfig) -> bool:
    """Tell whether a row has text and its document is in the source's share."""
    empty = row.text is None and row.messages is None
    return not empty and in_share(document_hash(row.document), config)


def in_share(document: int, config: SourceConfig) -> bool:
    """Tell whether a document, given by its hash, is in the source's share."""
    return document < config.share * 2**64
