"""Globs, and the files below a folder of this machine, links followed."""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from albat_core.errors import InputError

HIDDEN = re.compile(r"(^|/)(\.|_[^/]*/|_[^/.]*$)")
"""What readers of data sets pass over: names with a dot in front, and with an underscore those of
folders and of files without an ending, such as `_SUCCESS`."""
_BRACES = re.compile(r"(?<!\[)\{([^{}]*,[^{}]*|\d+\.\.\d+)\}")


def is_pattern(path: str) -> bool:
    """Tell whether a path is a glob: it has *, ?, [, or braces with a comma or two dots."""
    return glob.has_magic(path) or bool(_BRACES.search(path))


def above_glob(pattern: str) -> str:
    """Return the folder above the first part of a pattern that may match several names."""
    literal = re.match(r"(\[[*?\[{]\]|[^*?\[{])*", pattern)
    assert literal is not None
    return re.sub(r"\[(.)\]", r"\1", literal[0]).rpartition("/")[0]


def escape(path: str) -> str:
    """Return the glob that names just this path."""
    return glob.escape(path).replace("{", "[{]")


def braced(pattern: str) -> list[str]:
    """Return what a shell makes of `{a,b}` and `{000..012}`: one pattern for each."""
    found = _BRACES.search(pattern)
    if not found:
        return [pattern]
    first, comma, _ = found[1].partition(",")
    if comma:
        choices = found[1].split(",")
    else:
        first, last = found[1].split("..")
        low, high = sorted((int(first), int(last)))
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        choices = [f"{number:0{width}}" for number in range(low, high + 1)]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [each for c in choices for each in braced(f"{before}{c}{after}")]


def globbed(patterns: Iterable[str], translate: Callable[[str], str]) -> Iterator[str]:
    """Yield the files that globs of this machine name, links to folders followed.

    Args:
        patterns: without braces.
        translate: gives the regular expression that a glob with `**` means.

    Raises:
        InputError: a folder on the way cannot be listed.
    """
    for pattern in patterns:
        found: Iterable[str]
        if "**" in pattern:
            meant = re.compile(translate(pattern))
            found = filter(meant.match, walked(above_glob(pattern) or "."))
        else:
            _check_listed(pattern)
            found = glob.iglob(pattern, include_hidden=True)  # noqa: PTH207 - keeps its spelling
        yield from (name for name in found if not os.path.isdir(name))  # noqa: PTH112 - likewise


def _check_listed(pattern: str) -> None:
    """Look into the folders that a glob looks into: it would pass over what it cannot list."""
    parts = pattern.split("/")
    for number, part in enumerate(parts):
        if number and glob.has_magic(part):
            above = "/".join(parts[:number]) or "/"
            for folder in glob.iglob(above, include_hidden=True):  # noqa: PTH207 - as above
                if os.path.isdir(folder):  # noqa: PTH112 - keeps the path's spelling
                    try:
                        os.scandir(folder).close()
                    except OSError as error:
                        _refuse_unlisted(error)


def _refuse_unlisted(error: OSError) -> None:
    if isinstance(error, FileNotFoundError | NotADirectoryError):  # removed meanwhile, or no folder
        return
    name = str(error.filename).rstrip("/").rpartition("/")[2]
    if name.startswith(".") or name == "lost+found":  # a system's own, with nobody's rows
        return
    raise InputError(
        f"expected a folder that can be listed ({error.strerror or type(error).__name__})",
        where=str(error.filename),
        remedy="check that you may read it, or give a glob that names only the files to read",
    ) from error


def walked(folder: str) -> list[str]:
    """Return the files below a local folder; links are followed, and no folder is read twice.

    Raises:
        InputError: a folder cannot be listed: what is in it would be left out without a word.
    """
    found: list[str] = []
    known = {os.path.realpath(folder)}
    for place, folders, names in os.walk(
        folder.rstrip("/") or "/", onerror=_refuse_unlisted, followlinks=True
    ):
        found += [f"{place}/{name}" for name in names]
        inner = {name: os.path.realpath(f"{place}/{name}") for name in folders}
        # folders that are here themselves come before links to them
        order = sorted(folders, key=lambda n: (Path(place, n).is_symlink(), n))
        folders.clear()
        for name in order:
            if inner[name] not in known:
                known.add(inner[name])
                folders.append(name)
    return found
