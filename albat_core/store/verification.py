"""Files held against their digests: each is read for that once in a process, until it changes."""

from collections.abc import Collection, Mapping
from pathlib import Path

from albat_core.store import storage

NO_FILE = "no file"

_known: dict[tuple[Path, int, int, int], str] = {}  # digest by file and its size, time and inode


def wrong_files(
    folder: Path, digests: Mapping[str, str], again: Collection[str] = ()
) -> dict[str, str]:
    """Return the files that are not what they should be, each with the digest that it has.

    Args:
        folder: on this machine.
        digests: expected SHA-256 by file, hexadecimal.
        again: files that have just been written anew: read, whatever was found before. A file that
            takes another's place within a tick of the clock can have its size, time and inode.
    """
    found = {name: _digest(folder / name, name in again) for name in digests}
    return {name: got for name, got in found.items() if got != digests[name]}


def _digest(file: Path, again: bool) -> str:
    try:
        state = file.stat()
        key = (file, state.st_size, state.st_mtime_ns, state.st_ino)
        if again or key not in _known:
            _known[key] = storage.digest(file)
        return _known[key]
    except FileNotFoundError:
        return NO_FILE
