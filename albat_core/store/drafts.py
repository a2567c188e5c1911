"""Drafts: folders that artifacts are written in, named by who writes, swept once that is gone."""

import logging
import os
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

from albat_core.store.claims import here, is_running

logger = logging.getLogger(__name__)

PREFIX = "albat-draft-"
"""How drafts in the temporary directory begin, where other things are too."""
_NAME = re.compile(r"(?:albat-draft-)?(?P<space>[0-9a-f]{8})\.(?P<process>\d+)\.")


def new_draft(parent: Path, prefix: str = "") -> Path:
    """Return a new empty folder; those that processes left which are gone are removed first.

    Args:
        parent: folder of drafts.
        prefix: of the name.
    """
    sweep(parent)
    return Path(tempfile.mkdtemp(dir=parent, prefix=f"{prefix}{here()}.{os.getpid()}."))


@cache
def sweep(parent: Path) -> None:
    """Remove the drafts of processes of this machine that are gone; once in a process."""
    for draft in parent.iterdir():
        if is_left(draft):
            logger.info("%s was left by a process that is gone: it is removed", draft)
            shutil.rmtree(draft, ignore_errors=True)


def is_left(draft: Path) -> bool | None:
    """Tell whether a draft's process is gone; None where it is not known to be of this machine."""
    said = _NAME.match(draft.name)
    if said is None or said["space"] != here():
        return None
    return not is_running(int(said["process"]))
