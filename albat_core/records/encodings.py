"""Encodings: costly inputs of a backbone, such as the latents of pictures, found by content."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albat_core.records.examples import Example
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "encodings"
DIGESTS = "digests.npy"


class Encodings:
    """Looks examples up in encodings, by their content; arrays are mapped, not read.

    Args:
        store: where the encodings are.
        refs: artifacts of ``encode_part``; opened one after the other as examples are looked for.
    """

    def __init__(self, store: ArtifactStore, refs: Sequence[ArtifactRef]) -> None:
        self._store = store
        self._waiting = list(reversed(refs))
        self._places: dict[bytes, tuple[int, int]] = {}
        self._arrays: list[dict[str, NDArray[Any]]] = []

    def find(self, example: Example) -> dict[str, NDArray[Any]] | None:
        """Return an example's inputs by name, None where they were not computed."""
        digest = example.digest().encode()
        while digest not in self._places and self._waiting:
            self._open(self._waiting.pop())
        if digest not in self._places:
            return None
        number, row = self._places[digest]
        return {name: array[row] for name, array in self._arrays[number].items()}

    def _open(self, ref: ArtifactRef) -> None:
        folder = self._store.folder(ref)
        digests = np.load(folder / DIGESTS, allow_pickle=False)
        names = self._store.manifest(ref).facts["inputs"]
        number = len(self._arrays)
        self._arrays.append(
            {n: np.load(folder / f"{n}.npy", mmap_mode="r", allow_pickle=False) for n in names}
        )
        self._places |= {digest: (number, row) for row, digest in enumerate(digests.tolist())}
