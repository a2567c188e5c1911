"""Text: a file is a document."""

from collections.abc import Iterator
from typing import IO, ClassVar

from albat_core.sources.formats.base import (
    LONGEST_FILE,
    Advance,
    Columns,
    FileFormat,
    Row,
    not_utf8,
    refuse_binary,
    too_long,
)


class Text(FileFormat):
    """A file of text is one row with the column ``text``."""

    name: ClassVar[str] = "text"
    endings: ClassVar[tuple[str, ...]] = (".txt", ".md")
    packable: ClassVar[bool] = True
    one_row: ClassVar[bool] = True

    def read(self, file: IO[bytes], uri: str, columns: Columns, advance: Advance) -> Iterator[Row]:
        """See ``FileFormat``."""
        content = file.read(LONGEST_FILE + 1)
        if len(content) > LONGEST_FILE:
            raise too_long(uri, LONGEST_FILE)
        advance(len(content))
        refuse_binary(content, uri, "text")
        try:
            text = content.decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise not_utf8(uri, f"byte {error.start}", error) from error
        yield dict.fromkeys(columns or ("text",), text)
