"""Files held against their digests: each is read for that once in a process, until it changes."""

import functools
from collections.abc import Mapping
from pathlib import Path

from albat_core.store import storage

NO_FILE = "no file"


def wrong_files(folder: Path, digests: Mapping[str, str]) -> dict[str, str]:
    """Return the files that are not what they should be, each with the digest that it has.

    Args:
        folder: on this machine.
        digests: expected SHA-256 by file, hexadecimal.
    """
    found = {name: _digest(folder / name) for name in digests}
    return {name: got for name, got in found.items() if got != digests[name]}


def _digest(file: Path) -> str:
    try:
        state = file.stat()
        return _digest_of(file, state.st_size, state.st_mtime_ns, state.st_ino)
    except FileNotFoundError:
        return NO_FILE


@functools.cache
def _digest_of(file: Path, *_state: int) -> str:
    """Return the digest of a file in a state: of another state, it is computed again."""
    return storage.digest(file)
