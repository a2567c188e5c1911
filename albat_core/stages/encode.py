"""Encodings: costly inputs of a backbone, such as the latents of pictures, computed once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albat_core.backbones import open_backbone, reading_identity
from albat_core.backbones.config import BackboneConfig
from albat_core.errors import BackboneError
from albat_core.progress import track
from albat_core.records.encodings import DIGESTS, STAGE
from albat_core.records.examples import Example
from albat_core.records.shards import Part, iterate_part
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built, artifact_ref
from albat_core.store.stage import Runtime

STAGE_VERSION = 1
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

    identity = reading_identity(backbone_config, runtime)
    return store.produce(STAGE, STAGE_VERSION, {}, _inputs_of(part, identity), build)


def find_encoded(
    parts: Sequence[Part], backbone_config: BackboneConfig, runtime: Runtime
) -> list[ArtifactRef | None]:
    """Return what ``encode_part`` would find finished of each part, else None; all at once."""
    identity = reading_identity(backbone_config, runtime)
    refs = [artifact_ref(STAGE, STAGE_VERSION, {}, _inputs_of(p, identity)) for p in parts]
    return ArtifactStore(runtime.root).reused(refs)


def _inputs_of(part: Part, identity: Mapping[str, Any]) -> dict[str, Any]:
    return {"part": part.sha256, "backbone": identity}


def _refuse_not_finite(rows: NDArray[Any], examples: Sequence[Example]) -> None:
    bad = ~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
    if bad.any():
        raise BackboneError(
            "expected finite encodings, got NaN or infinity",
            where=f"example {examples[int(np.argmax(bad))].example_id}",
            remedy="check the backbone's weights, or set backbone.dtype to float32",
        )
