"""Held-out pictures drawn anew by an arm from their captions, and compared pixel by pixel."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from albat_core.backbones import open_backbone, reading_identity
from albat_core.backbones.base import adapted
from albat_core.backbones.config import BackboneConfig, SamplingConfig
from albat_core.errors import InputError
from albat_core.pictures import picture_pixels, picture_size
from albat_core.progress import track
from albat_core.records.examples import Example, examples_to_table
from albat_core.records.losses import LOSS_SCHEMA, LOSSES
from albat_core.records.redrawn import MADE, STAGE, TRUE
from albat_core.records.splits import TEST, read_role, role_digest
from albat_core.records.tables import write_table
from albat_core.seeding import derive_seed
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime

STAGE_VERSION = 1
_BLOCK = 16  # captions given to the backbone at once; their places seed what is drawn


def redraw_heldout(
    adapter: ArtifactRef | None,
    adaptation: ArtifactRef,
    backbone_config: BackboneConfig,
    sampling: SamplingConfig,
    seed: int,
    runtime: Runtime,
    label: str = "redraw",
    *,
    most: int,
    per_prompt: int = 1,
) -> ArtifactRef:
    """Have the backbone draw held-out pictures from their captions with an adapter (None: without).

    Equal seeds give every adapter the same noise: what differs is the adapter's doing.

    Args:
        adapter: of the arm.
        adaptation: the adaptation set, split.
        backbone_config: of the backbone.
        sampling: how they are drawn.
        seed: of the run.
        runtime: where to compute.
        label: names the progress line.
        most: held-out pictures; of more, as many are taken in even steps.
        per_prompt: drawn of each caption.

    Returns:
        an artifact of pictures, true and drawn, with the squared error of each; its facts have the
        mean ``error``, of pixels in [0, 1].

    Raises:
        InputError: held-out rows have no pictures.
        BackboneError: the adapter was made for another backbone.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        true = _evenly(_pictures(read_role(store, adaptation, TEST)), most)
        captions = [e.text or "" for e in true for _ in range(per_prompt)]
        sizes = [picture_size(e.image or b"") for e in true for _ in range(per_prompt)]
        made: list[Example] = []
        with (
            open_backbone(backbone_config, runtime) as backbone,
            adapted(backbone, store.folder(adapter) if adapter else None),
            track(label, len(captions), "pictures") as advance,
        ):
            for start in range(0, len(captions), _BLOCK):
                block = slice(start, start + _BLOCK)
                drawn = derive_seed(seed, STAGE, start)
                made += backbone.generate(captions[block], sampling, drawn, sizes[block])
                advance(len(captions[block]))
        named = [
            replace(e, example_id=f"redrawn/{n}", document=f"redrawn/{n}", source=STAGE)
            for n, e in enumerate(made)
        ]
        write_table(examples_to_table(true), folder / TRUE)
        write_table(examples_to_table(named), folder / MADE)
        errors = [
            sum(_squared_error(e, one) for one in named[n * per_prompt : (n + 1) * per_prompt])
            for n, e in enumerate(true)
        ]
        columns = [
            [e.example_id for e in true],
            [e.document for e in true],
            errors,
            [per_prompt] * len(true),
        ]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, LOSS_SCHEMA, strict=True)]
        write_table(pa.Table.from_arrays(arrays, schema=LOSS_SCHEMA), folder / LOSSES)
        return Built(
            rows=len(true),
            facts={"error": sum(errors) / len(named), "per_prompt": per_prompt},
        )

    return store.produce(
        STAGE,
        STAGE_VERSION,
        {"most": most, "per_prompt": per_prompt, "sampling": sampling.settings(), "seed": seed},
        {
            "adapter": adapter.key if adapter else None,
            "heldout": role_digest(store, adaptation, TEST),
            "backbone": reading_identity(backbone_config, runtime),
        },
        build,
    )


def _pictures(examples: Sequence[Example]) -> Sequence[Example]:
    bare = [e.example_id for e in examples if e.image is None]
    if bare:
        raise InputError(
            f"expected held-out pictures, {len(bare)} of {len(examples)} rows have none",
            where="samples.heldout",
            remedy="leave samples.heldout out: it is for pictures",
        )
    return examples


def _evenly(examples: Sequence[Example], most: int) -> list[Example]:
    """Return as many of some examples as are wanted, in even steps."""
    kept = min(most, len(examples))
    return [examples[n * len(examples) // kept] for n in range(kept)]


def _squared_error(true: Example, made: Example) -> float:
    """Return the mean squared difference of two pictures of one size, pixels in [0, 1]."""
    one, other = (picture_pixels(e.image or b"").astype(np.float64) / 255 for e in (true, made))
    return float(np.square(one - other).mean())
