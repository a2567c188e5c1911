"""Encodings: costly inputs of a backbone, such as the latents of pictures, computed once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albat_core.backbones import backbone_identity, open_backbone
from albat_core.backbones.base import BackboneConfig
from albat_core.errors import BackboneError
from albat_core.progress import track
from albat_core.records import Example
from albat_core.shards import Part, iterate_part
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime

STAGE = "encodings"
STAGE_VERSION = 1
DIGESTS = "digests.npy"
_BLOCK = 64  # examples encoded at once


def encode_part(
    part: Part, label: str, backbone_config: BackboneConfig, runtime: Runtime
) -> ArtifactRef:
    """Compute the costly inputs of a part's examples; keyed by its content.

    Args:
        part: of the corpus, the adaptation set or the held-out documents.
        label: names the progress line.
        backbone_config: whose inputs.
        runtime: where and with what.

    Raises:
        BackboneError: a value is not finite.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        digests: list[str] = []
        columns: dict[str, list[NDArray[Any]]] = {}
        with (
            open_backbone(backbone_config, runtime) as backbone,
            track(f"encode {label}", part.rows, "examples") as advance,
        ):
            for examples in iterate_part(store, part, _BLOCK):
                for name, rows in backbone.precompute(examples).items():
                    _refuse_not_finite(rows, examples)
                    columns.setdefault(name, []).append(rows)
                digests += [e.digest() for e in examples]
                advance(len(examples))
        np.save(folder / DIGESTS, np.array(digests, dtype="S32"))
        for name, blocks in columns.items():
            np.save(folder / f"{name}.npy", np.concatenate(blocks))
        return Built(rows=len(digests), facts={"inputs": sorted(columns)})

    return store.produce(
        STAGE,
        STAGE_VERSION,
        {},
        {"part": part.sha256, "backbone": backbone_identity(backbone_config, runtime)},
        build,
    )


def _refuse_not_finite(rows: NDArray[Any], examples: Sequence[Example]) -> None:
    bad = ~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
    if bad.any():
        raise BackboneError(
            "expected finite encodings, got NaN or infinity",
            where=f"example {examples[int(np.argmax(bad))].example_id}",
            remedy="check the backbone's weights, or set backbone.dtype to float32",
        )


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
