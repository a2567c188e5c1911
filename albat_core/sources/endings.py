"""Which format each file of a source is read in."""

from collections.abc import Iterable, Sequence

from albat_core.errors import InputError
from albat_core.sources.config import SourceConfig
from albat_core.sources.formats import COMPRESSED, base_name, ending_formats, format_of
from albat_core.sources.formats.images import Images
from albat_core.sources.formats.text import Text

_ARCHIVES = (".zip", ".7z", ".rar")


def formats_of(
    named: Iterable[str], source: SourceConfig, root: str, *, whole_folder: bool
) -> dict[str, str]:
    """Return the format of each file that is to be read.

    Args:
        named: the files' names.
        source: what they are of.
        root: of its path, for errors.
        whole_folder: whether all of a folder is named, of which only what has a set format is read.

    Raises:
        InputError: no format is known, or several are that are not read together.
    """
    read = named if not whole_folder or source.format == "auto" else ()
    if packed := [name for name in read if name.lower().endswith(_ARCHIVES)]:
        raise InputError(
            f"expected files, got an archive of them ({_some(packed)})",
            where=root,
            remedy="unpack it, and name what was in it",
        )
    if source.format == "auto":
        by_ending = {name: format_of(name) for name in named}
        formats = {name: form for name, form in by_ending.items() if form}
        if unknown := [name for name, form in by_ending.items() if not form]:
            raise InputError(
                f"expected endings that say the format ({', '.join(ending_formats())}; lines and "
                f"text also with {', '.join(COMPRESSED)}), got {_some(unknown)}",
                where=root,
                remedy="set format, or give a glob that names only the files to read",
            )
        others = [name for name, form in formats.items() if form != Images.name]
        if 0 < len(others) < len(formats):
            raise InputError(
                f"expected pictures or other files, found both ({len(formats) - len(others)} "
                f"pictures, and {_some(others)})",
                where=root,
                remedy="set format to images, or give a glob that names only the files to read; "
                "where a table names the pictures, set image_column to its column of paths",
            )
        texts = [name for name, form in formats.items() if form == Text.name]
        if 0 < len(texts) < len(formats):
            raise InputError(
                f"expected rows or text documents, found both ({len(formats) - len(texts)} files "
                f"of rows, and {_some(texts)})",
                where=root,
                remedy="set format, or give a glob that names only the files to read",
            )
    else:
        form = source.format
        formats = {name: form for name in named if not whole_folder or format_of(name) == form}
        if not formats:
            endings = sorted({base_name(name)[1] or name for name in named})
            raise InputError(
                f"expected {form} files in the folder, found only {_some(endings)}",
                where=root,
                remedy="set another format, or give a glob: its files are read as the format says",
            )
    for form in sorted(set(formats.values())):
        if problems := source.misfits(form):
            raise InputError("; ".join(problems), where=root, remedy="change it in the source")
    given = [f for f in source.columns.values() if getattr(source, f) is not None]
    if given and Text.name in formats.values():
        raise InputError(
            f"text files have no columns, but {' and '.join(dict.fromkeys(given))} is set",
            where=root,
            remedy="drop it, or set format to that of a table",
        )
    return formats


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
