"""What an adapter is worth: losses on held-out documents, with intervals."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from albat_core.backbones import backbone_identity, loss_unit, open_backbone
from albat_core.backbones.base import BackboneConfig, FixedNoise, adapted
from albat_core.losses import example_losses, refuse_not_finite
from albat_core.records.encodings import Encodings
from albat_core.records.losses import LOSS_SCHEMA, LOSSES, STAGE
from albat_core.records.splits import TEST, read_role, role_digest
from albat_core.records.tables import write_table
from albat_core.seeding import numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

STAGE_VERSION = 1
_DRAWN_AT_ONCE = 100  # bootstrap samples in memory

Floats = NDArray[np.float64]


class EvaluationConfig(StageConfig):
    """How adapters are compared on the held-out documents."""

    batch_tokens: int = Field(8192, ge=1)
    """Tokens in a batch, padding included; of pictures, positions of their latents."""
    noise_levels: int = Field(32, ge=1, le=1000)
    """Noise levels of a diffusion model that a held-out example's loss is the mean of."""


def evaluate(
    adapter: ArtifactRef | None,
    adaptation: ArtifactRef,
    encodings: Sequence[ArtifactRef],
    backbone_config: BackboneConfig,
    config: EvaluationConfig,
    runtime: Runtime,
    label: str = "evaluate",
) -> ArtifactRef:
    """Measure the loss of every held-out example with an adapter (None: without).

    Raises:
        BackboneError: the adapter was made for another backbone, or a loss is not finite.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        examples = read_role(store, adaptation, TEST)
        with (
            open_backbone(backbone_config, runtime, Encodings(store, encodings)) as backbone,
            adapted(backbone, store.folder(adapter) if adapter else None),
        ):
            encoded = backbone.encode(examples)
            totals, units = example_losses(
                backbone, encoded, config.batch_tokens, FixedNoise(config.noise_levels), label
            )
        names = [e.example_id for e in examples]
        refuse_not_finite(totals, names, "check the adapter and the backbone's weights")
        columns = [
            names,
            [e.document for e in examples],
            totals,
            units,
        ]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, LOSS_SCHEMA, strict=True)]
        write_table(pa.Table.from_arrays(arrays, schema=LOSS_SCHEMA), folder / LOSSES)
        return Built(
            rows=len(examples),
            facts={"loss": float(totals.sum() / units.sum()), "unit": loss_unit(backbone_config)},
        )

    return store.produce(
        STAGE,
        STAGE_VERSION,
        config.model_dump(mode="json"),
        {
            "adapter": adapter.key if adapter else None,
            "heldout": role_digest(store, adaptation, TEST),
            "backbone": backbone_identity(backbone_config, runtime),
        },
        build,
    )


def bootstrap_interval(
    totals: Sequence[Floats], units: Floats, seed: int, draws: int = 2000
) -> tuple[float, float, float]:
    """Return a loss, or the difference of two, with its 95% percentile interval over documents.

    Documents are drawn with replacement, whole and paired: both arms see the same draw.

    Args:
        totals: one or two of (n_documents,), nats; the second is subtracted.
        units: (n_documents,), the same for both.
        seed: of the generator.
        draws: bootstrap samples.

    Returns:
        value, low and high, nats per unit.
    """
    difference = totals[0] - totals[1] if len(totals) == 2 else totals[0]
    samples = bootstrap_samples(difference, units, numpy_generator(seed, "bootstrap"), draws)
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(difference.sum() / units.sum()), float(low), float(high)


def bootstrap_samples(
    totals: Floats, units: Floats, generator: np.random.Generator, draws: int = 2000
) -> Floats:
    """Return the loss of documents drawn with replacement, as many as there are, (draws,).

    Args:
        totals: (n_documents,), nats.
        units: (n_documents,).
        generator: of the draws.
        draws: bootstrap samples.
    """
    samples = np.empty(draws)
    for start in range(0, draws, _DRAWN_AT_ONCE):
        block = samples[start : start + _DRAWN_AT_ONCE]
        drawn = generator.integers(0, len(units), size=(len(block), len(units)))
        block[:] = totals[drawn].sum(axis=1) / units[drawn].sum(axis=1)
    return samples
