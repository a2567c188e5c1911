"""How far a corpus that stands for the backbone's own is from what the backbone models.

On texts that the backbone writes itself, at temperature 1, its loss is its own entropy H(M). On a
corpus C its loss is the cross-entropy H(C, M) = H(C) + KL(C || M). The distance is the loss on the
corpus less that on the backbone's own rows,

    d = KL(C || M) + H(C) - H(M), per unit.

Near 0 the corpus is much like what the backbone models; far above 0 it is not, or it is by nature
less predictable. Below 0 it is more regular than what the backbone writes. Losses of a
text-to-image backbone are no likelihoods: there the distance says only how much harder the corpus
is than the backbone's own pictures.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from albat_core.backbones import backbone_identity, loss_unit, open_backbone
from albat_core.backbones.base import Backbone, FixedNoise
from albat_core.backbones.config import BackboneConfig
from albat_core.errors import InputError
from albat_core.measures.bootstrap import bootstrap_samples
from albat_core.measures.losses import example_losses, refuse_not_finite
from albat_core.records.encodings import Encodings
from albat_core.records.examples import Example
from albat_core.records.losses import LOSS_SCHEMA, summed_by_document
from albat_core.records.shards import Part, parts_of, read_examples
from albat_core.records.tables import write_table
from albat_core.seeding import numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

STAGE = "proxy"
STAGE_VERSION = 1
LOSSES = "losses.parquet"
CORPUS, GENERATED = "corpus", "generated"

PROXY_SCHEMA = LOSS_SCHEMA.append(pa.field("origin", pa.string(), nullable=False))
"""The untouched backbone's losses, one row an example; origin: ``corpus`` or ``generated``."""

Floats = NDArray[np.float64]


class ProxyConfig(StageConfig):
    """How a corpus is compared with rows that the backbone makes."""

    enabled: bool = False
    """The corpus stands for the backbone's own, which is closed: say how far it is from what the
    backbone models."""
    rows: int = Field(500, ge=1)
    """Corpus rows looked at, drawn evenly at random; all where there are fewer."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens in a batch, padding included; of pictures, positions of their latents."""
    noise_levels: int = Field(32, ge=1, le=1000)
    """Noise levels of a diffusion model that a row's loss is the mean of."""


def measure_proxy(
    corpus: Sequence[ArtifactRef],
    generated: ArtifactRef,
    encodings: Sequence[ArtifactRef],
    backbone_config: BackboneConfig,
    config: ProxyConfig,
    seed: int,
    runtime: Runtime,
) -> ArtifactRef:
    """Measure the distance of a corpus from what the untouched backbone models.

    A unit far into a row is easier than one at its beginning, so of corpus rows no more units are
    counted than the longest generated row has.

    Args:
        corpus: shards.
        generated: shards of the rows that the backbone made, at temperature 1; without prompts,
            or else with ones that corpus rows could begin with: prompts carry no loss.
        encodings: costly inputs of rows, where the backbone has any.
        backbone_config: which backbone.
        config: how many rows, and how.
        seed: of the rows drawn and of the bootstrap.
        runtime: where and with what.

    Returns:
        an artifact with the losses; its facts have ``corpus_loss`` and ``generated_loss`` (means
        per unit), their difference ``distance`` with its 95% bootstrap interval over documents,
        ``low`` and ``high``, the corpus ``rows`` looked at, and the ``unit``.

    Raises:
        InputError: the corpus has no rows.
        BackboneError: a loss is not finite.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        drawn = _draw(store, parts_of(store, corpus), config.rows, seed)
        own = _all(store, parts_of(store, [generated]))
        with open_backbone(backbone_config, runtime, Encodings(store, encodings)) as backbone:
            theirs = _losses(backbone, own, GENERATED, config)
            longest = int(max(theirs["units"].to_pylist()))
            ours = _losses(backbone, drawn, CORPUS, config, longest)
        write_table(pa.concat_tables([ours, theirs]), folder / LOSSES)
        loss, samples = _resampled(ours, seed, CORPUS)
        own_loss, own_samples = _resampled(theirs, seed, GENERATED)
        low, high = np.quantile(samples - own_samples, [0.025, 0.975])
        return Built(
            rows=len(drawn) + len(own),
            facts={
                "corpus_loss": loss,
                "generated_loss": own_loss,
                "distance": loss - own_loss,
                "low": float(low),
                "high": float(high),
                "rows": len(drawn),
                "unit": loss_unit(backbone_config),
            },
        )

    return store.produce(
        STAGE,
        STAGE_VERSION,
        config.settings(without={"enabled"}, seed=seed),
        {
            "corpus": [ref.key for ref in corpus],
            "generated": generated.key,
            "backbone": backbone_identity(backbone_config, runtime),
        },
        build,
    )


def _draw(store: ArtifactStore, parts: Sequence[Part], count: int, seed: int) -> list[Example]:
    """Return rows of parts, drawn evenly at random without replacement, in their order."""
    ends = np.cumsum([0, *(part.rows for part in parts)])
    if not ends[-1]:
        raise InputError(
            "expected corpus rows to compare with the backbone's own, got none",
            where="corpus",
            remedy="name files with rows",
        )
    generator = numpy_generator(seed, "proxy rows")
    drawn = np.sort(generator.choice(ends[-1], min(count, ends[-1]), replace=False, shuffle=False))
    place = np.searchsorted(ends, drawn, side="right") - 1
    return read_examples(store, [parts[p].address for p in place], (drawn - ends[place]).tolist())


def _all(store: ArtifactStore, parts: Sequence[Part]) -> list[Example]:
    return [
        example
        for part in parts
        for example in read_examples(store, [part.address] * part.rows, range(part.rows))
    ]


def _losses(
    backbone: Backbone,
    examples: Sequence[Example],
    origin: str,
    config: ProxyConfig,
    units_each: int | None = None,
) -> pa.Table:
    """Return losses of examples as a table of ``PROXY_SCHEMA``.

    Raises:
        BackboneError: one is not finite.
    """
    noise = FixedNoise(config.noise_levels)
    totals, units = example_losses(
        backbone,
        backbone.encode(examples),
        config.batch_tokens,
        noise,
        f"measure {origin} rows",
        units_each,
    )
    names = [e.example_id for e in examples]
    refuse_not_finite(totals, names, "check the backbone's weights, or set dtype to float32")
    columns = [names, [e.document for e in examples], totals, units, [origin] * len(names)]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, PROXY_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=PROXY_SCHEMA)


def _resampled(losses: pa.Table, seed: int, origin: str) -> tuple[float, Floats]:
    """Return the mean loss per unit, and those of bootstrap samples of its documents."""
    grouped = summed_by_document(losses)
    totals = grouped["loss_sum"].to_numpy()
    units = grouped["units_sum"].to_numpy().astype(np.float64)
    generator = numpy_generator(seed, "bootstrap", origin)
    return float(totals.sum() / units.sum()), bootstrap_samples(totals, units, generator)
