"""Claims: who makes an artifact, so that others wait for it and do not make it too.

A claim is a small file, renewed by its holder. One that has not changed for a while, as its watcher
counts time, or whose process on this machine is gone, is taken over. Where two hold one all the
same, both make the artifact: time is lost and nothing else, because a manifest vouches for the
files of its own attempt.
"""

import hashlib
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from albat_core.errors import AlbatError, ArtifactError
from albat_core.progress import track
from albat_core.store import storage

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

_RENEWED = 15.0  # seconds between renewals
_LAPSES = 60.0  # seconds without one, on the clock of who waits: others' may be minutes off
_OLD = 3600.0  # seconds from now of a time that no clock is off by
_LOOK = 0.5  # seconds between looks at another's claim
_PASSING = ContextVar("passing_by", default=False)


class HeldError(ArtifactError):
    """Another makes an artifact, where nobody is waited for."""


@contextmanager
def passing_by(yes: bool = True) -> Iterator[None]:
    """Wait for no claim in this context: who would have to gets ``HeldError``."""
    token = _PASSING.set(yes)
    try:
        yield
    finally:
        _PASSING.reset(token)


class _Claim(BaseModel):
    model_config = ConfigDict(frozen=True)

    host: str
    process: int = Field(gt=0)
    renewed: float = Field(allow_inf_nan=False)
    """When it was written, POSIX time on its holder's clock; tells one renewal from another."""
    space: str = ""
    """Where its process number means something, see ``here``; claims of before had none."""
    holder: str = ""
    """Its own, so that nobody gives up or renews another's."""

    def may_be_held(self) -> bool:
        """Tell whether its holder may be at work: neither gone nor of long ago."""
        its_own = self.space == here() if self.space else self.host == socket.gethostname()
        gone = its_own and not is_running(self.process)
        return not gone and abs(time.time() - self.renewed) < _OLD


_BROKEN = _Claim(host="", process=1, renewed=0.0)


@contextmanager
def claimed(uri: str, what: str, find: Callable[[], Found | None]) -> Iterator[Found | None]:
    """Hold the claim at ``uri`` while the context lasts, or give what another has made meanwhile.

    Args:
        uri: of the claim.
        what: is claimed; named where it is waited for.
        find: returns what others wait for, once it is there.

    Raises:
        ArtifactError: there is a folder in the claim's place.
        HeldError: another may hold it, and is passed by.
    """
    if _PASSING.get() and may_be_held(uri):
        raise HeldError(
            "expected what nobody else makes, another run does",
            where=what,
            remedy="wait for that run",
        )
    with passing_by(yes=False):  # what is made in it may have to wait for more
        yield from _held(uri, what, find)


def _held(uri: str, what: str, find: Callable[[], Found | None]) -> Iterator[Found | None]:
    """Hold a claim for as long as this stands still, see ``claimed``."""
    found, holder = None, uuid.uuid4().hex
    while found is None and not _take(uri, holder):
        others = _Watched(uri)
        with track(f"wait for another run: {what}", 1, "") as advance:
            while found is None and others.is_held():
                advance(0)  # a person may ask to stop
                time.sleep(_LOOK)
                found = find()
        if found is None and others.stays:
            logger.warning("the claim %s cannot be taken away: on without one", uri)
            break
    if found is not None:
        yield found
        return
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(uri, holder, ended), name="renew", daemon=True)
    renewing.start()
    try:
        yield find()  # its maker may have ended just before this claim
    finally:
        ended.set()
        renewing.join()
        _give_up(uri, holder)


def may_be_held(uri: str) -> bool:
    """Tell whether somebody may hold the claim at ``uri``, by one look.

    Raises:
        ArtifactError: there is a folder in the claim's place.
    """
    claim = _read(uri)
    return claim is not None and claim.may_be_held()


def _take(uri: str, holder: str) -> bool:
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
                    fs.pipe_file(path, _content(holder), mode="create")
                else:
                    with Path(path).open("xb") as file:
                        file.write(_content(holder))
            except FileExistsError:
                return remote and _is_own(uri, holder)  # a first try's answer may be lost
    except AlbatError as error:
        logger.debug("nothing can be claimed: %s", error)
    return True


class _Watched:
    """A claim of another's, and since when it has not changed."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._said: _Claim | None = None
        self._since = 0.0
        self.stays = False
        """Whether it cannot be removed."""

    def is_held(self) -> bool:
        """Tell whether the claim is renewed; one that is not is removed."""
        claim = _read(self._uri)
        if claim is None:
            return False
        if claim != self._said:
            self._said, self._since = claim, time.monotonic()
        if claim.may_be_held() and time.monotonic() - self._since < _LAPSES:
            return True
        if _read(self._uri) == claim:  # another who waits may have taken it over meanwhile
            _remove(self._uri)
            self.stays = _read(self._uri) == claim
        return False


def _read(uri: str, *, again: bool = True) -> _Claim | None:
    """Return a claim, or None where there is none; one that cannot be read is nobody's."""
    try:
        return _Claim.model_validate_json(storage.read_bytes(uri))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError as error:
        raise ArtifactError(
            "expected a claim, which is a file, got a folder",
            where=uri,
            remedy="remove the folder",
        ) from error
    except ValidationError:
        if not again:
            return _BROKEN
    time.sleep(_LOOK)  # its holder may be writing it
    return _read(uri, again=False)


def _is_own(uri: str, holder: str) -> bool:
    claim = _read(uri)
    return claim is not None and claim.holder == holder


def _renew(uri: str, holder: str, ended: threading.Event) -> None:
    while not ended.wait(_RENEWED):
        try:
            if not _is_own(uri, holder):
                logger.debug("the claim %s was taken over", uri)
                return
            storage.write_bytes(uri, _content(holder), lasting=False)
        except (AlbatError, OSError) as error:
            logger.debug("a claim is not renewed: %s", error)


def _give_up(uri: str, holder: str) -> None:
    try:
        if _is_own(uri, holder):
            _remove(uri)
    except (AlbatError, OSError) as error:
        logger.debug("a claim is left to lapse: %s", error)


def _remove(uri: str) -> None:
    try:
        storage.remove(uri)
    except (AlbatError, FileNotFoundError) as error:
        logger.debug("a claim is left to lapse: %s", error)


def _content(holder: str) -> bytes:
    claim = _Claim(
        host=socket.gethostname(),
        process=os.getpid(),
        renewed=time.time(),
        space=here(),
        holder=holder,
    )
    return claim.model_dump_json().encode()


@cache
def here() -> str:
    """Return what tells this machine from others, and a container from others of the machine."""
    space = Path("/proc/self/ns/pid")  # whose process numbers mean the same
    boot = Path("/proc/sys/kernel/random/boot_id")  # machines may share a name
    host = boot.read_text("utf-8") if boot.is_file() else str(uuid.getnode())
    name = f"{socket.gethostname()} {host} {space.readlink() if space.is_symlink() else ''}"
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def is_running(process: int) -> bool:
    """Tell whether a process of this machine is there."""
    if sys.platform == "win32":
        return True  # there, to ask is to kill
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # or no number that a process can have
        return False
    except PermissionError:
        return True  # another user's
    return True
