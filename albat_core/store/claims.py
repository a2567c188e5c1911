"""Claims: who makes an artifact, so that others wait for it and do not make it too.

A claim is a small file, renewed by its holder. One that is not renewed, or whose process on this
machine is gone, is taken over. Where two hold one all the same, both make the artifact: time is
lost and nothing else, because a manifest vouches for the files of its own attempt.
"""

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from albat_core.errors import AlbatError
from albat_core.progress import track
from albat_core.store import storage

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

_RENEWED = 15.0  # seconds between renewals
_LAPSES = 60.0  # seconds without one; clocks that differ by more make others compute too
_LOOK = 0.5  # seconds between looks at another's claim


@contextmanager
def claimed(uri: str, what: str, find: Callable[[], Found | None]) -> Iterator[Found | None]:
    """Hold the claim at ``uri`` while the context lasts, or give what another has made meanwhile.

    Args:
        uri: of the claim.
        what: is claimed; named where it is waited for.
        find: returns what others wait for, once it is there.
    """
    found = None
    while found is None and not _take(uri):
        with track(f"wait for another run: {what}", 1, "") as advance:
            while found is None and _is_held(uri):
                advance(0)  # a person may ask to stop
                time.sleep(_LOOK)
                found = find()
    if found is not None:
        yield found
        return
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(uri, ended), daemon=True)
    renewing.start()
    try:
        yield find()  # its maker may have ended just before this claim
    finally:
        ended.set()
        renewing.join()
        _give_up(uri)


def _take(uri: str) -> bool:
    """Write a claim unless there is one; a storage that takes none holds nobody up."""
    fs, path = storage.filesystem(uri)
    remote = storage.is_remote(uri)
    try:
        with storage.writing(uri):
            if remote and fs.exists(path):  # not all servers know the condition below
                return False
            if not remote:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            try:
                if remote:
                    fs.pipe_file(path, _content(), mode="create")
                else:
                    with Path(path).open("xb") as file:
                        file.write(_content())
            except FileExistsError:
                return False
    except AlbatError as error:
        logger.debug("nothing can be claimed: %s", error)
    return True


def _is_held(uri: str) -> bool:
    """Tell whether a claim is renewed; one that is not is removed."""
    try:
        host, process, renewed = _read(uri)
    except FileNotFoundError:
        return False
    gone = host == socket.gethostname() and not _is_running(process)
    if not gone and abs(time.time() - renewed) < _LAPSES:
        return True
    _give_up(uri)
    return False


def _read(uri: str, *, again: bool = True) -> tuple[str, int, float]:
    """Return host, process and time of a claim; of one that cannot be read, a time long ago."""
    content = storage.read_bytes(uri)
    try:
        claim = json.loads(content)
        return claim["host"], claim["process"], float(claim["renewed"])
    except (ValueError, KeyError, TypeError):
        if not again:
            return "", 0, 0.0
    time.sleep(_LOOK)  # its holder may be writing it
    return _read(uri, again=False)


def _renew(uri: str, ended: threading.Event) -> None:
    while not ended.wait(_RENEWED):
        try:
            storage.write_bytes(uri, _content())
        except AlbatError as error:
            logger.debug("a claim is not renewed: %s", error)


def _give_up(uri: str) -> None:
    try:
        storage.remove(uri)
    except (AlbatError, FileNotFoundError) as error:
        logger.debug("a claim is left to lapse: %s", error)


def _content() -> bytes:
    claim = {"host": socket.gethostname(), "process": os.getpid(), "renewed": time.time()}
    return json.dumps(claim).encode()


def _is_running(process: int) -> bool:
    if sys.platform == "win32":
        return True  # there, to ask is to kill
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True
