"""Listings that say of each file how large it is and when it last changed."""

import math
from datetime import datetime
from typing import Any, NamedTuple

from albat_core.store import storage


class FileState(NamedTuple):
    """What a listing says of a file."""

    bytes: int
    changed: float
    """POSIX time; infinite where the storage does not say."""


def file_states(uri: str) -> dict[str, FileState]:
    """Return path (relative to ``uri``) and state of every file below a folder, by one listing."""
    fs, path = storage.filesystem(uri)
    with storage.explained(uri):
        found = fs.find(path, detail=True)
    base = len(path.rstrip("/")) + 1
    return {str(n)[base:]: FileState(int(e["size"]), _changed(e)) for n, e in found.items()}


def _changed(details: dict[str, Any]) -> float:
    said = next((details[n] for n in ("mtime", "LastModified", "created") if n in details), None)
    said = said.timestamp() if isinstance(said, datetime) else said
    return float(said) if isinstance(said, int | float) else math.inf
