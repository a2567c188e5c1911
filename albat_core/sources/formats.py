"""Formats of the files that rows come in: their endings, first bytes and columns."""

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from albat_core.errors import InputError

Format = Literal["parquet", "jsonl", "csv", "text", "dataset", "images", "webdataset"]
Row = dict[str, Any]
Advance = Callable[[int], None]

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
ENDINGS: dict[str, Format] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".txt": "text",
    ".md": "text",
    ".arrow": "dataset",
    ".tar": "webdataset",
    **dict.fromkeys(PICTURE_ENDINGS, "images"),
}
WITH_PICTURES: tuple[Format, ...] = ("images", "webdataset")
"""Formats whose rows have a column `image` by themselves."""
ONE_ROW: tuple[Format, ...] = ("text", "images")
"""Formats whose files are one row each, which is its own document and may be blank."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
HEAD = 200
"""Rows looked at before a file is taken for what it seems to be."""

KINDS = {
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


def base_name(name: str) -> tuple[str, str]:
    """Split a file's name into its stem and its ending, folders and compression taken off."""
    last = name.rsplit("/", 1)[-1]
    for ending in COMPRESSED:
        if last.lower().endswith(ending):
            last = last[: -len(ending)]
            break
    stem, dot, ending = last.rpartition(".")
    return (stem, f"{dot}{ending}".lower()) if stem else (last, "")


def format_of(name: str) -> Format | None:
    """Return the format that a file's ending means, None for endings that mean none."""
    found = ENDINGS.get(base_name(name)[1])
    packed = name.lower().endswith(COMPRESSED)
    return None if packed and found in ("parquet", "dataset", "images") else found


def kind_of(head: bytes) -> str:
    """Return what a file that begins with ``head`` is."""
    if not head:
        return "an empty file"
    for magic, kind in KINDS.items():
        if head.startswith(magic):
            return kind
    return "something else"


def refuse_missing(wanted: Mapping[str, str], there: Collection[str], where: str) -> None:
    """Raise an InputError that names the wanted columns that are not there, if any."""
    missing = [name for name in wanted if name not in there]
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
