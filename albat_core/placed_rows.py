"""Rows of an input file as examples, each with its place; pictures are fetched only when asked."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from albat_core.formats import ONE_ROW, Advance, Row
from albat_core.input_files import InputFile
from albat_core.picture_folders import read_picture_row
from albat_core.picture_paths import Picture, load_picture, picture_of
from albat_core.readers import stream_rows
from albat_core.records.examples import Example
from albat_core.sources import SourceConfig, as_example


@dataclass(frozen=True)
class PlacedRow:
    """A row as an example without its picture.

    Args:
        where: its place, "file:row", rows from 0.
        example: with neither text nor messages where they are null or blank.
        picture: its file or the address of that; None where the row has none.
    """

    where: str
    example: Example
    picture: Picture | None

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
    for number_of_file, (uri, name) in enumerate(zip(file.uris, file.names, strict=True)):
        document = name if file.format in ONE_ROW else ""
        for number, row in enumerate(_rows(file, number_of_file, advance)):
            where = f"{uri}:{number}"
            example = as_example(row, config, f"{name}:{number}", document, file.label, where)
            picture = picture_of(row[column], uri, where) if column else None
            yield PlacedRow(where, example, picture)


def _rows(file: InputFile, number: int, advance: Advance) -> Iterator[Row]:
    """Yield the rows of one of the files that are read as one."""
    uri, columns = file.uris[number], file.config.columns
    if file.format != "images":
        yield from stream_rows(uri, file.format, columns, advance)
        return
    yield read_picture_row(uri, file.beside[number], columns)
    advance(1)
