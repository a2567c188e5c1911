"""Temporary files, which lie in a folder of the machine's (TMPDIR) and not below the root."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from albat_core.errors import StorageFullError
from albat_core.store import storage


@contextmanager
def scratch() -> Iterator[None]:
    """Say what to do where temporary files that are written inside find no room.

    Raises:
        StorageFullError: their folder is full.
    """
    try:
        yield
    except Exception as error:
        if storage.is_full(error):
            raise no_scratch() from error
        raise


def no_scratch() -> StorageFullError:
    """Return the error for a full folder of temporary files."""
    folder = tempfile.gettempdir()
    size = shutil.disk_usage(folder).total
    return StorageFullError(
        f"no space left for temporary files, {size / 1e6:,.0f} MB are all there is",
        where=folder,
        remedy="free some space there or set TMPDIR to a folder of a larger disk, and run the "
        "same command again: what was finished is kept",
    )
