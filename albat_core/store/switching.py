"""A folder put in another's place, in one step where the system can."""

import ctypes
import os
import sys
import uuid
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux, see renameat2(2)


def switch(fresh: Path, target: Path) -> None:
    """Put ``fresh`` in the place of ``target``; what was there is found at ``fresh`` then.

    Args:
        fresh: a folder beside it.
        target: a folder or file, or nothing yet.
    """
    if not os.path.lexists(target):
        fresh.rename(target)
    elif not _exchanged(fresh, target):
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        target.rename(aside)
        fresh.rename(target)
        aside.rename(fresh)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two paths; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        exchange = ctypes.CDLL(None).renameat2
    except AttributeError:  # another C library
        return False
    paths = (os.fsencode(one), os.fsencode(other))
    done: int = exchange(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE)
    return done == 0
