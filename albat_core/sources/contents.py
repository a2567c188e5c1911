"""What the files of a source contain, as fingerprints, and whether one was written to since."""

from collections.abc import Sequence
from pathlib import Path

from albat_core.errors import InputError
from albat_core.sources.formats.base import Advance
from albat_core.sources.readers import readable
from albat_core.store import fingerprints, storage


def contents_of(uris: Sequence[str], advance: Advance = lambda _: None) -> dict[str, str]:
    """Return the fingerprint of each file by its address.

    Args:
        uris: of the files.
        advance: told each file that was looked at.

    Raises:
        InputError: one is gone or may not be read.
    """
    prints = {}
    for uri, content in zip(uris, fingerprints.fingerprints(uris), strict=True):
        prints[uri] = content
        advance(1)
    for uri, content in prints.items():
        if not content:
            with readable(uri):
                prints[uri] = fingerprints.fingerprint(uri)
    return prints


def refuse_changed(uris: Sequence[str], states: Sequence[str]) -> None:
    """Check that files are as they were found.

    Args:
        uris: of the files.
        states: what ``state_of`` or ``contents_of`` said of them then; none: nothing is known.

    Raises:
        InputError: one was written to since.
    """
    now = {uri: state_of(uri) for uri in uris}
    now |= contents_of(list(filter(tells_by_tag, uris)))
    for uri, before in zip(uris, states, strict=False):
        if now[uri] != before:
            raise InputError(
                "expected a file that stays as it was found, it changed while the run was reading",
                where=uri,
                remedy="let nobody write to it meanwhile, and run the same command again",
            )


def state_of(uri: str) -> str:
    """Return what changes when a local file is written to, "" of a remote one."""
    if storage.is_remote(uri):
        return ""
    with readable(uri), storage.explained(uri):
        its = Path(storage.absolute(uri)).stat()
    return f"{its.st_size} {its.st_mtime_ns}"


def tells_by_tag(uri: str) -> bool:
    """Tell whether a listing says that a file has changed; of the web all may have to be read."""
    return storage.is_remote(uri) and not uri.startswith("http")
