"""Fingerprints: what changes when the content of files changes."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from albat_core.store import storage
from albat_core.store.digests import known_digest

_ASKED_ONE_BY_ONE = 32  # files of a folder
_TAGS = ("ETag", "etag", "blob_id", "Content-MD5", "Digest", "LastModified", "Last-Modified")
"""What S3, Google, Azure, the Hub and web servers say of a file's content, the surest first."""


def fingerprint(uri: str) -> str:
    """Return what changes when a file's content changes.

    Of local files the SHA-256 is taken, see ``known_digest``, and of what web servers say nothing
    of; of other remote files the store's own tag and size.
    """
    if not storage.is_remote(uri):
        with storage.explained(uri):
            return known_digest(uri)
    fs, path = storage.filesystem(uri)
    with storage.explained(uri):
        details = fs.info(path)
    if uri.startswith("http") and not any(details.get(name) for name in _TAGS):
        return storage.digest(uri)
    return _tag(fs, path, details)


def fingerprints(uris: Iterable[str]) -> Iterator[str]:
    """Yield the fingerprint of each file, in order; "" where there is none that can be read.

    A remote folder is listed once where many of its files are asked for.
    """
    asked: Counter[str] = Counter()
    listings: dict[str, dict[str, str]] = {}
    for uri in uris:
        folder, _, name = uri.rpartition("/")
        # a web server lists nothing
        asked[folder] += storage.is_remote(uri) and not uri.startswith("http")
        if asked[folder] > _ASKED_ONE_BY_ONE:
            if folder not in listings:
                listings[folder] = _folder_tags(folder)
            yield listings[folder].get(name, "")
            continue
        try:
            yield fingerprint(uri)
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            yield ""


def _folder_tags(folder: str) -> dict[str, str]:
    fs, path = storage.filesystem(folder)
    try:
        with storage.explained(folder):
            entries = fs.ls(path, detail=True)
    except FileNotFoundError:  # though files of it were listed: each is asked for by itself
        return {}
    return {
        str(entry["name"]).rpartition("/")[2]: _tag(fs, entry["name"], entry)
        for entry in entries
        if entry["type"] == "file"
    }


def tree_fingerprint(uri: str) -> str:
    """Return what changes when anything below a remote folder changes, by one listing."""
    fs, path = storage.filesystem(uri)
    with storage.explained(uri):
        found = fs.find(path, detail=True)
    tags = [f"{name} {_tag(fs, name, found[name])}" for name in sorted(found)]
    return hashlib.sha256("\n".join(tags).encode()).hexdigest()


def _tag(fs: Any, path: str, details: dict[str, Any]) -> str:
    tag = next((details[name] for name in _TAGS if details.get(name)), None) or fs.ukey(path)
    return hashlib.sha256(f"{tag}|{details['size']}".encode()).hexdigest()
