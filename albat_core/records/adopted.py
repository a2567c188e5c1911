"""Vectors that were computed elsewhere, as they are kept: by file, and matched with rows by id."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from albat_core.records.vectors import VECTORS
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "vectors"
MATCH_STAGE = "matches"
IDS, DIGESTS, FLAWS = "ids.parquet", "digests.npy", "flaws.npy"
PLACES = "places.npy"
NOT_FINITE, ZERO = 1, 2
"""What may be wrong with a vector; 0: nothing."""

Digests = NDArray[np.bytes_]


def digests_of(ids: Iterable[str]) -> Digests:
    """Return what ids are compared by: (n,) of 16 bytes each, which no two ids share by chance."""
    found = [hashlib.blake2b(name.encode(), digest_size=16).digest() for name in ids]
    return np.array(found, dtype="S16")


def load_each(store: ArtifactStore, refs: Sequence[ArtifactRef], name: str) -> NDArray[Any]:
    """Return an array of each of several artifacts, one behind the other."""
    return np.concatenate([np.load(store.file(ref, name), allow_pickle=False) for ref in refs])


def ids_at(store: ArtifactStore, ref: ArtifactRef, rows: Sequence[int]) -> list[str]:
    """Return the ids of some of a file's vectors, by their places in it."""
    ids = pq.read_table(store.file(ref, IDS), columns=["id"])["id"]
    return [ids[row].as_py() for row in rows]


def starts_of(rows: Sequence[int]) -> NDArray[np.int64]:
    """Return where each of several files or parts begins, and behind them where the last ends."""
    return np.cumsum([0, *rows], dtype=np.int64)


def take_vectors(
    store: ArtifactStore,
    files: Mapping[int, ArtifactRef],
    starts: NDArray[np.int64],
    places: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return vectors (n, d) by their places, counted through all files.

    Args:
        store: where artifacts are.
        files: artifacts of ``keep_vectors`` by number, those that are needed.
        starts: of every file, see ``starts_of``.
        places: (n,), at least one, in [0, all vectors).
    """
    numbers = np.searchsorted(starts, places, side="right") - 1
    taken: NDArray[np.float32] = np.zeros((0, 0), np.float32)
    for number in np.unique(numbers):
        mine = np.flatnonzero(numbers == number)
        mine = mine[np.argsort(places[mine], kind="stable")]  # a disk reads in order fast
        path = store.file(files[int(number)], VECTORS)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not taken.size:
            taken = np.empty((len(places), array.shape[1]), np.float32)
        taken[mine] = array[places[mine] - starts[number]]
    return taken


def match_notes(facts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return what became of vectors that no row has, from the facts of matches."""
    return tuple(
        f"{its['unknown']:,} vectors of no row that is used, passed over: their ids are such as "
        f"{', '.join(map(repr, its['unknown_ids']))}"
        for its in facts
        if its["unknown"]
    )
