"""Pictures as files, with what describes them beside them."""

from collections.abc import Iterator
from typing import IO, ClassVar

from albat_core.sources.formats.base import Advance, Columns, FileFormat, Row


class Images(FileFormat):
    """A picture file is a row; captions and tables beside it are read by ``picture_folders``."""

    name: ClassVar[str] = "images"
    endings: ClassVar[tuple[str, ...]] = (
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".avif",
        ".ppm",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
    )
    one_row: ClassVar[bool] = True
    pictures: ClassVar[bool] = True

    def read(self, file: IO[bytes], uri: str, columns: Columns, advance: Advance) -> Iterator[Row]:
        """Yield the picture itself."""
        content = file.read()
        advance(len(content))
        yield {name: content if name == "image" else None for name in columns or ("image",)}
