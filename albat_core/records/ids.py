"""Ids of a corpus, as hashes by which it is seen that none occurs twice."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "ids"
_FILE = "ids.npz"

KnownHashes = Mapping[str, NDArray[np.uint64]]
"""Of the ids in shards, by the shards' key."""


def write_hashes(folder: Path, keys: Sequence[str], hashes: Sequence[NDArray[np.uint64]]) -> None:
    """Write the hashes of the ids in shards, one array (n,) for each key."""
    every = np.concatenate([np.zeros(0, np.uint64), *hashes])
    ends = np.cumsum([len(its) for its in hashes], dtype=np.int64)
    np.savez(folder / _FILE, keys=np.array(keys, "S32"), ends=ends, hashes=every)


def read_hashes(store: ArtifactStore, ref: ArtifactRef) -> KnownHashes:
    """Return the hashes of the ids in shards."""
    with np.load(store.file(ref, _FILE), allow_pickle=False) as arrays:
        hashes, ends = arrays["hashes"], [0, *arrays["ends"].tolist()]
        keys = map(bytes.decode, arrays["keys"].tolist())
        return {key: hashes[ends[n] : ends[n + 1]] for n, key in enumerate(keys)}
