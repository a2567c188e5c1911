"""Formats of the files that rows come in, one class a file: the table, and the look-ups."""

from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from albat_core.sources.formats.arrow import Arrow
from albat_core.sources.formats.base import FileFormat
from albat_core.sources.formats.csv_table import CsvTable
from albat_core.sources.formats.images import Images
from albat_core.sources.formats.json_file import JsonFile
from albat_core.sources.formats.json_lines import JsonLines
from albat_core.sources.formats.parquet import Parquet
from albat_core.sources.formats.text import Text
from albat_core.sources.formats.webdataset import WebDataset

FORMATS: dict[str, FileFormat] = {
    form.name: form
    for form in (
        Parquet(),
        JsonLines(),
        JsonFile(),
        CsvTable(),
        Text(),
        Arrow(),
        Images(),
        WebDataset(),
    )
}
"""The formats by the name that settings have."""

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""Endings of files that are compressed as a whole."""


def _known(value: str) -> str:
    if value != "auto" and value not in FORMATS:
        raise ValueError(f"input should be one of auto, {', '.join(FORMATS)}")
    return value


FormatName = Annotated[
    str,
    AfterValidator(_known),
    WithJsonSchema({"type": "string", "enum": ["auto", *FORMATS]}),
]
"""A setting that names a format; `auto`: by the files' endings."""


def ending_formats() -> dict[str, str]:
    """Return the format that each ending means."""
    return {ending: form.name for form in FORMATS.values() for ending in form.endings}


def base_name(name: str) -> tuple[str, str]:
    """Split a file's name into its stem and its ending, folders and compression taken off."""
    last = name.rsplit("/", 1)[-1]
    for ending in COMPRESSED:
        if last.lower().endswith(ending):
            last = last[: -len(ending)]
            break
    stem, dot, ending = last.rpartition(".")
    return (stem, f"{dot}{ending}".lower()) if stem else (last, "")


def format_of(name: str) -> str | None:
    """Return the format that a file's ending means, None for endings that mean none."""
    found = ending_formats().get(base_name(name)[1])
    packed = name.lower().endswith(COMPRESSED)
    return None if packed and found and not FORMATS[found].packable else found
