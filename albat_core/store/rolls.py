"""Rolls: the manifests of a stage's artifacts in one file, so that many are looked up at once.

``rolls/<stage>.json.gz`` below the root is safe to lose. What it says of an artifact counts where a
listing has the manifest and all files as they were; other manifests are read themselves.
"""

import gzip
import json
import logging
import zlib
from collections.abc import Collection

from albat_core.errors import AlbatError
from albat_core.store import storage, transfer
from albat_core.store.manifests import MANIFEST, Manifest, is_whole, read_manifest

logger = logging.getLogger(__name__)

ROLLS = "rolls"
_MOST = 1 << 16  # bytes of a manifest, of which a roll has some
_WORTH_IT = 32  # manifests that were not in the roll, for it to be written anew

_Roll = dict[str, tuple[list[float], str]]
"""Bytes and time of each manifest, and what it says, by key."""


def find_many(root: str, stage: str, keys: Collection[str]) -> dict[str, Manifest]:
    """Return the manifests of those of a stage's artifacts that are finished, by key.

    Args:
        root: of the artifacts.
        stage: of all of them.
        keys: of the artifacts that are looked for.
    """
    place = storage.join(root, stage)
    listed = storage.file_states(place)
    sizes = {name: state.bytes for name, state in listed.items()}
    there = {key: list(listed[n]) for key in keys if (n := f"{key}/{MANIFEST}") in listed}
    noted = _read(root, stage, _MOST * (1 + len(listed)))
    said = {key: noted[key][1] for key, its in there.items() if noted.get(key, ([],))[0] == its}
    others = {name: sizes[name] for key in there.keys() - said if (name := f"{key}/{MANIFEST}")}
    read = {name[: -len(MANIFEST) - 1]: c for name, c in transfer.read_all(place, others).items()}
    found = {}
    for key, content in ({key: text.encode() for key, text in said.items()} | read).items():
        manifest = read_manifest(content, stage, key)
        if manifest and is_whole(manifest, sizes, f"{key}/{manifest.attempt}/"):
            found[key] = manifest
    fresh = {key: (there[key], read[key].decode()) for key in read.keys() & found}
    if len(fresh) > _WORTH_IT:
        kept = {key: its for key, its in noted.items() if f"{key}/{MANIFEST}" in listed}
        _write(root, stage, kept | fresh)
    return found


def _read(root: str, stage: str, most: int) -> _Roll:
    """Return what a roll says, nothing where it is longer than a roll of these artifacts."""
    try:
        content = storage.read_bytes(_place(root, stage))
        unpacked = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(content, most)
        return {key: (its, text) for key, its, text in json.loads(unpacked)}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, OSError, RecursionError, zlib.error) as error:
        logger.debug("the roll of %s cannot be read: %s", stage, error)
        return {}


def _write(root: str, stage: str, roll: _Roll) -> None:
    content = json.dumps([[key, its, text] for key, (its, text) in sorted(roll.items())])
    try:
        packed = gzip.compress(content.encode(), compresslevel=1, mtime=0)
        storage.write_bytes(_place(root, stage), packed, lasting=False)
    except (AlbatError, OSError) as error:
        logger.debug("the roll of %s is not written: %s", stage, error)


def _place(root: str, stage: str) -> str:
    return storage.join(root, ROLLS, f"{stage}.json.gz")
