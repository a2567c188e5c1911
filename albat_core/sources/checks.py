"""A look at a source before anything is computed."""

from collections import Counter
from collections.abc import Mapping
from itertools import islice

from albat_core.errors import AlbatError, InputError
from albat_core.pictures import check_picture
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import InputFile, find_problems
from albat_core.sources.formats import FORMATS
from albat_core.sources.formats.base import HEAD
from albat_core.sources.rows import PlacedRow, placed_rows, untold

_PICTURES_LOOKED_AT = 8  # of a file, before anything is computed


def null_row(lacking: str, row: PlacedRow, config: SourceConfig) -> InputError:
    """Return the error for a row without text, or without its picture or caption."""
    if lacking == "uncaptioned":
        expected = "expected a caption, the picture's is null or blank"
    elif config.image_column and row.picture is None:
        expected = "expected a picture, the row has none"
    else:
        expected = "expected text, the row's is null or blank"
    return InputError(expected, where=row.where, remedy="fill it, or set on_null to skip")


def refuse_empty(file: InputFile, counts: Mapping[str, int]) -> None:
    """Raise where a file gave no example; a text file may be blank, as a row may be."""
    skipped = counts["null"] + counts["uncaptioned"] + counts["damaged"]
    if FORMATS[file.format].one_row and skipped == counts["rows"]:
        return
    pictures = ""
    if file.config.image_column:
        pictures = f", {counts['uncaptioned']} without caption, {counts['damaged']} damaged"
    raise InputError(
        f"expected rows with text, got {counts['rows']} rows, {counts['null']} of them null or "
        f"blank{pictures} and {counts['unfit']} with no room for what is learned",
        where=file.uris[0],
        remedy="check that the columns are the right ones, or take the file out",
    )


def check_source(source: SourceConfig) -> list[AlbatError]:
    """Return every problem found in a source, from a look at the head of each file."""
    files, problems = find_problems(source)
    texts, unseen = 0, False
    for file in files:
        counts: Counter[str] = Counter()
        head = _PICTURES_LOOKED_AT if file.config.image_column else HEAD
        try:
            for row in islice(placed_rows(file, untold), head):
                counts["rows"] += 1
                lacking = row.lacks(file.config)
                counts["null"] += lacking is not None
                if lacking and source.on_null == "refuse":
                    raise null_row(lacking, row, file.config)
                if row.picture is not None and source.on_damaged == "refuse":
                    check_picture(row.whole().image or b"", row.place)
            if counts["rows"] == counts["null"] and counts["rows"] < head:
                refuse_empty(file, counts)
        except AlbatError as error:
            problems.append(error)
        texts += counts["rows"] - counts["null"]
        unseen = unseen or counts["rows"] == head
    if files and not problems and not texts and not unseen:
        problems.append(
            InputError(
                "expected text, every file is blank",
                where=", ".join(source.paths),
                remedy="check the path",
            )
        )
    return problems
