"""The mixing weight and the verdict, computed before an adapter is trained on the mixture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from albat_core.adaptation import read_role, role_digest
from albat_core.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.backbones import backbone_identity, open_backbone
from albat_core.backbones.base import (
    AdapterConfig,
    Backbone,
    BackboneConfig,
    FixedNoise,
    adapted,
)
from albat_core.encoding import Encodings
from albat_core.gradients import AdapterGradients
from albat_core.mixture import effective_sample_size, read_selection
from albat_core.records import TRAIN, VALIDATION, Example
from albat_core.seeding import derive_seed, numpy_generator
from albat_core.shards import read_rows
from albat_core.stage import Runtime, StageConfig
from albat_core.theory import Estimate, Floats, FoldGradients, estimate_terms

STAGE = "mixing"
STAGE_VERSION = 1
LEAST = 0.02
"""A mixing weight below this is not worth the rows: do not mix."""
HIGHEST = 0.9
"""The adaptation set always keeps a part in the objective: estimates are not that sure."""
_PARTS = 8  # of the documents, where gradients are those of a new adapter
_LABEL = "gradients"


class MixingConfig(StageConfig):
    """How the mixing weight and the verdict are computed."""

    at: Literal["surrogates", "start"] = "surrogates"
    """Where gradients are looked at: at surrogates, each of which is trained; or at the untouched
    backbone, which costs next to nothing and is less exact."""
    folds: int = Field(3, ge=1, le=100)
    """Surrogates trained, each without another part of the adaptation documents, at most
    `split.folds`; more give a narrower interval."""
    rows: int = Field(512, ge=16)
    """Selected rows whose gradients are looked at, drawn by their weights."""
    dimension: int = Field(2048, ge=16)
    """Coordinates of the random projection of gradients."""
    damping: float = Field(10.0, gt=0)
    """Damping of the Hessian, in units of its mean eigenvalue: directions of less curvature do not
    count for more, as a training of few steps does not go far along them."""
    stands_for: float = Field(1.0, ge=1)
    """How many times as large the selection is that the selected rows stand for."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens in a batch, padding included; of pictures, positions of their latents."""
    noise_levels: int = Field(8, ge=1, le=1000)
    """Noise levels of a diffusion model that a gradient is the mean of."""


def estimate_mixing(
    selection: ArtifactRef,
    adaptation: ArtifactRef,
    folds: Sequence[tuple[ArtifactRef, ArtifactRef]],
    encodings: Sequence[ArtifactRef],
    backbone_config: BackboneConfig,
    adapter: AdapterConfig,
    config: MixingConfig,
    seed: int,
    runtime: Runtime,
) -> ArtifactRef:
    """Compute alpha* and what the selection is worth, from gradients.

    Args:
        selection: weighted corpus rows.
        adaptation: the set that is adapted to.
        folds: adaptation set and surrogate of each; the surrogate did not see its validation rows.
            None: gradients are those of a new adapter, and folds are made of the documents.
        encodings: costly inputs of the rows, where the backbone has any.
        backbone_config: what is adapted.
        adapter: shape of a new adapter.
        config: how.
        seed: of the rows drawn, of a new adapter, and of the bootstrap.
        runtime: where and with what.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        del folder
        table = read_selection(store, selection)
        weights = table["weight"].to_numpy()
        rows = _drawn_rows(store, table, weights, config.rows, seed)
        with open_backbone(backbone_config, runtime, Encodings(store, encodings)) as backbone:
            noise = FixedNoise(config.noise_levels)
            gradients = AdapterGradients(backbone, config.batch_tokens, noise, config.dimension)
            if folds:
                found = [
                    _at_surrogate(
                        gradients, backbone, store.folder(surrogate),
                        read_role(store, split, VALIDATION), rows,
                    )
                    for split, surrogate in folds
                ]  # fmt: skip
            else:
                backbone.attach_adapter(adapter, derive_seed(seed, "adapter"))
                own = [e for r in (TRAIN, VALIDATION) for e in read_role(store, adaptation, r)]
                found = _at_start(gradients, own, rows, seed)
        ess = effective_sample_size(weights) * config.stands_for
        estimate = estimate_terms(found, ess, config.damping, seed)
        return Built(rows=len(rows), facts=_facts(estimate) | {"passes": gradients.passes})

    return store.produce(
        STAGE,
        STAGE_VERSION,
        config.model_dump(mode="json") | {"seed": seed, "adapter": adapter.model_dump(mode="json")},
        {
            "selection": selection.key,
            "surrogates": [surrogate.key for _, surrogate in folds],
            "heldout": [role_digest(store, split, VALIDATION) for split, _ in folds],
            "adaptation": [role_digest(store, adaptation, r) for r in (TRAIN, VALIDATION)],
            "backbone": backbone_identity(backbone_config, runtime),
        },
        build,
    )


def _at_surrogate(
    gradients: AdapterGradients,
    backbone: Backbone,
    surrogate: Path,
    heldout: Sequence[Example],
    rows: Sequence[Example],
) -> FoldGradients:
    """Return gradients at a surrogate that was not trained on the examples held out."""
    with adapted(backbone, surrogate):
        found = gradients.of([*heldout, *rows], _LABEL).astype(np.float64)
    documents = np.array([e.document for e in heldout])
    return FoldGradients(found[: len(heldout)], documents, found[len(heldout) :])


def _at_start(
    gradients: AdapterGradients, own: Sequence[Example], rows: Sequence[Example], seed: int
) -> list[FoldGradients]:
    """Return gradients at the attached adapter, with each part of the documents held out."""
    found = gradients.of([*own, *rows], _LABEL).astype(np.float64)
    target, corpus = found[: len(own)], found[len(own) :]
    documents = np.array([e.document for e in own])
    names = numpy_generator(seed, "folds").permutation(np.unique(documents))
    parts = [np.isin(documents, part) for part in np.array_split(names, _PARTS) if len(part)]
    return [
        FoldGradients(target[part], documents[part], corpus, trained=target[~part])
        for part in parts
    ]


def _drawn_rows(
    store: ArtifactStore, table: pa.Table, weights: Floats, count: int, seed: int
) -> list[Example]:
    """Return selected rows drawn by their weights, with replacement."""
    generator = numpy_generator(seed, "rows for gradients")
    drawn = np.sort(generator.choice(len(weights), size=count, p=weights / weights.sum()))
    chosen = table.take(pa.array(drawn))
    return read_rows(store, chosen["shard"].to_pylist(), chosen["row"].to_pylist())


def _facts(estimate: Estimate) -> dict[str, Any]:
    """Return what the manifest says: the mixing weight is 0 where mixing does not pay."""
    terms = estimate.terms
    alpha = min(terms.alpha, HIGHEST) if terms.alpha >= LEAST else 0.0
    return {
        "alpha": alpha,
        "alpha_estimate": terms.alpha,
        "alpha_interval": list(estimate.alpha),
        "multiplier": terms.multiplier if alpha else 1.0,
        "multiplier_interval": list(estimate.multiplier),
        "target_variance": terms.target_variance,
        "corpus_variance": terms.corpus_variance,
        "bias": terms.bias,
    }
