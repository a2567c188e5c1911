"""Digests of local files, noted by size and times: what did not change is read once.

Notes of a folder's files are lines of one file in the user's cache, each with a checksum; lines
are only added, so that processes may write at once, and what cannot be read counts as not noted.
"""

import hashlib
import json
import logging
import os
import time
import zlib
from functools import lru_cache
from pathlib import Path

from albat_core.store import storage

logger = logging.getLogger(__name__)

_SETTLED = 2.0  # seconds after which no further change has the time of this one, on any disk

State = tuple[int, int, int, int]
Noted = dict[str, tuple[State, str]]


def known_digest(uri: str) -> str:
    """Return the SHA-256 of a local file's content, hexadecimal.

    A file is read unless this machine's user has read it before, and size, inode, time of change
    and time of the inode's change (which copies and archives cannot set) are what they were.

    Raises:
        OSError: it cannot be read.
    """
    path = Path(storage.absolute(uri))
    notes = _notes(path.parent, storage.cache_folder("digests"))
    state = _state(path)
    known = notes.by_name.get(path.name)
    if known is not None and known[0] == state:
        return known[1]
    digest = storage.digest(path)
    if _state(path) == state and time.time() - max(state[1:3]) / 1e9 > _SETTLED:
        notes.add(path.name, state, digest)
    return digest


def _state(path: Path) -> State:
    its = path.stat()
    return its.st_size, its.st_mtime_ns, its.st_ctime_ns, its.st_ino


class _Notes:
    """What is known of a folder's files.

    Args:
        place: of the lines.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self.by_name: Noted = {}
        try:
            lines = place.read_bytes().splitlines()
        except OSError:
            lines = []
        for line in lines:
            checksum, _, said = line.partition(b" ")
            if checksum == _checksum(said):
                name, *state, digest = json.loads(said)
                self.by_name[name] = (tuple(state), digest)

    def add(self, name: str, state: State, digest: str) -> None:
        """Note a file's digest, for later processes too where the cache can be written."""
        self.by_name[name] = (state, digest)
        said = json.dumps([name, *state, digest]).encode()
        try:
            self._place.parent.mkdir(parents=True, exist_ok=True)
            with self._place.open("ab") as file:
                file.write(_checksum(said) + b" " + said + b"\n")
        except OSError as error:
            logger.debug("a digest is not noted: %s", error)


@lru_cache(maxsize=256)
def _notes(folder: Path, cache: Path) -> _Notes:
    return _Notes(cache / hashlib.sha256(os.fsencode(folder)).hexdigest()[:32])


def _checksum(said: bytes) -> bytes:
    return f"{zlib.crc32(said):08x}".encode()
