"""The mixing weight and the verdict, computed before an adapter is trained on the mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from albat_core.backbones import backbone_identity, kind_of, open_backbone
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.base import FixedNoise, adapted
from albat_core.backbones.config import BackboneConfig
from albat_core.measures.theory import Estimate, Floats, FoldGradients, estimate_terms
from albat_core.measures.weights import effective_sample_size
from albat_core.records.adapters import ended_early
from albat_core.records.encodings import Encodings
from albat_core.records.examples import Example
from albat_core.records.selections import read_selection
from albat_core.records.shards import read_examples
from albat_core.records.splits import TRAIN, VALIDATION, read_role, role_digest
from albat_core.records.tables import read_table, write_table
from albat_core.seeding import derive_seed, numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

if TYPE_CHECKING:
    from albat_core.measures.gradients import AdapterGradients

STAGE = "estimate"
STAGE_VERSION = 5
DOUBT = {"surrogates": 0.8, "start": 1.2}
"""Standard deviation of log V_T / (V_w + B) about what was measured: docs/calibration.md."""
LEAST = 0.02
"""A mixing weight below this is not worth the rows: do not mix."""
_PARTS = 8  # of the documents, where gradients are those of a new adapter
_LABEL = "gradients"
GRADIENTS = "gradients.parquet"

Gradient = NDArray[np.float32]
"""Of one example, (k,)."""


class EstimateConfig(StageConfig):
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
    batch_tokens: int = Field(2048, ge=1)
    """Tokens in a batch, padding included; of pictures, positions of their latents. A gradient
    keeps what a loss lets go of, so these are fewer than elsewhere."""
    noise_levels: int = Field(8, ge=1, le=1000)
    """Noise levels of a diffusion model that a gradient is the mean of."""


def estimate_worth(
    selection: ArtifactRef,
    adaptation: ArtifactRef,
    folds: Sequence[tuple[ArtifactRef, ArtifactRef]],
    encodings: Sequence[ArtifactRef],
    backbone_config: BackboneConfig,
    adapter: AdapterConfig,
    config: EstimateConfig,
    seed: int,
    runtime: Runtime,
    earlier: ArtifactRef | None = None,
) -> ArtifactRef:
    """Compute alpha* and what the selection is worth, from gradients.

    Args:
        selection: weighted corpus rows.
        adaptation: the set that is adapted to.
        folds: of each a split of the adaptation set, or of what it was once, and a surrogate that
            was trained on its training rows. Documents that it was not trained on are held out.
            None: gradients are those of a new adapter, and folds are made of the documents.
        encodings: costly inputs of the rows, where the backbone has any.
        backbone_config: what is adapted.
        adapter: shape of a new adapter.
        config: how.
        seed: of the rows drawn, of a new adapter, and of the bootstrap.
        runtime: where and with what.
        earlier: an estimate of the same folds, whose gradients are not computed again.
    """
    from albat_core.measures.gradients import AdapterGradients

    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        table = read_selection(store, selection)
        weights = table["weight"].to_numpy()
        rows = _drawn_rows(store, table, weights, config.rows, seed)
        with open_backbone(backbone_config, runtime, Encodings(store, encodings)) as backbone:
            noise = FixedNoise(config.noise_levels)
            gradients = AdapterGradients(backbone, config.batch_tokens, noise, config.dimension)
            own = [e for r in (TRAIN, VALIDATION) for e in read_role(store, adaptation, r)]
            more_rows = 1.0
            if folds:
                known = KnownGradients(store, earlier, config)
                trained = [read_role(store, split, TRAIN) for split, _ in folds]
                found = []
                for (_, surrogate), seen in zip(folds, trained, strict=True):
                    with adapted(backbone, store.folder(surrogate)):
                        at = known.at(surrogate.key, gradients)
                        found.append(_beside(seen, own, rows, at))
                known.write(folder)
                will_train = store.manifest(adaptation).facts[TRAIN]["rows"]
                more_rows = will_train / np.mean([len(seen) for seen in trained])
            else:
                backbone.attach_adapter(adapter, derive_seed(seed, "adapter"))
                found = _at_start(gradients, own, rows, seed)
        ess = effective_sample_size(weights) * config.stands_for
        highest = kind_of(backbone_config).highest_alpha
        estimate = estimate_terms(
            found,
            ess,
            config.damping,
            seed,
            more_rows=more_rows,
            highest=highest,
            doubt=DOUBT[config.at],
        )
        early = [ended_early(store.manifest(surrogate).facts) for _, surrogate in folds]
        facts = _facts(estimate, highest) | {"ended_early": any(early)}
        return Built(rows=len(rows), facts=facts | {"passes": gradients.passes})

    return store.produce(
        STAGE,
        STAGE_VERSION,
        config.settings(seed=seed, adapter=adapter.settings()),
        {
            "selection": selection.key,
            "surrogates": [surrogate.key for _, surrogate in folds],
            "trained": [role_digest(store, split, TRAIN) for split, _ in folds],
            "adaptation": [role_digest(store, adaptation, r) for r in (TRAIN, VALIDATION)],
            "backbone": backbone_identity(backbone_config, runtime),
        }
        | ({"earlier": earlier.key} if earlier else {}),
        build,
    )


class KnownGradients:
    """Gradients by adapter and example, those of an earlier estimate to begin with.

    Args:
        store: where that is.
        earlier: the estimate; None: none are known.
        config: of the new one; gradients taken otherwise are not of use.
    """

    def __init__(
        self, store: ArtifactStore, earlier: ArtifactRef | None, config: EstimateConfig
    ) -> None:
        self._dimension = config.dimension
        self._earlier: dict[tuple[str, str], Gradient] = {}
        self._used: dict[tuple[str, str], Gradient] = {}
        if earlier is None:
            return
        taken = store.manifest(earlier).config
        if any(
            taken[name] != getattr(config, name) for name in ("at", "dimension", "noise_levels")
        ):
            return
        table = read_table(store.folder(earlier) / GRADIENTS)
        values = table["gradient"].combine_chunks().flatten().to_numpy()
        names = zip(table["adapter"].to_pylist(), table["example"].to_pylist(), strict=True)
        self._earlier = dict(zip(names, values.reshape(-1, self._dimension), strict=True))

    def at(
        self, adapter: str, gradients: AdapterGradients
    ) -> Callable[[Sequence[Example]], Floats]:
        """Return what gives the gradients of examples, (n, k), at the adapter that is attached."""

        def of(examples: Sequence[Example]) -> Floats:
            names = [(adapter, example.digest()) for example in examples]
            there = self._earlier | self._used
            new = {n: e for n, e in zip(names, examples, strict=True) if n not in there}
            there |= dict(zip(new, gradients.of(list(new.values()), _LABEL), strict=True))
            self._used |= {name: there[name] for name in names}
            return np.array([there[name] for name in names], dtype=np.float64)

        return of

    def write(self, folder: Path) -> None:
        """Write those that were asked for."""
        values = np.concatenate([np.zeros(0, np.float32), *self._used.values()])
        table = pa.table(
            {
                "adapter": [adapter for adapter, _ in self._used],
                "example": [example for _, example in self._used],
                "gradient": pa.FixedSizeListArray.from_arrays(values, self._dimension),
            }
        )
        write_table(table, folder / GRADIENTS)


def _beside(
    trained: Sequence[Example],
    own: Sequence[Example],
    rows: Sequence[Example],
    gradients: Callable[[Sequence[Example]], Floats],
) -> FoldGradients:
    """Return gradients at an adapter, beside which the documents not trained on are held out."""
    seen = {example.document for example in trained}
    heldout = [example for example in own if example.document not in seen]
    found = gradients([*heldout, *rows])
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
    drawn = draw_alike(table["example_id"].to_pylist(), weights, count, seed)
    chosen = table.take(pa.array(np.sort(drawn)))
    return read_examples(store, chosen["shard"].to_pylist(), chosen["row"].to_pylist())


def draw_alike(names: Sequence[str], weights: Floats, count: int, seed: int) -> NDArray[np.int64]:
    """Return ``count`` places drawn by weight, with replacement: similar weights, similar draws.

    Each name brings Gumbel noise of its own, and the largest log w + noise is drawn: a draw changes
    only where the weights of what was or is drawn do (Gumbel max).

    Args:
        names: distinct.
        weights: (n,) >= 0, one of them > 0.
        count: of draws.
        seed: of the noise.
    """
    best, drawn = np.full(count, -np.inf), np.zeros(count, dtype=np.int64)
    for place in np.flatnonzero(weights).tolist():
        noise = numpy_generator(seed, "rows for gradients", names[place]).gumbel(size=count)
        value = np.log(weights[place]) + noise
        drawn[value > best] = place
        best = np.maximum(best, value)
    return drawn


def _facts(estimate: Estimate, highest: float) -> dict[str, Any]:
    """Return what the manifest says: the mixing weight is 0 where mixing does not pay.

    The adaptation set always keeps a part in the objective: estimates are not that sure.
    """
    terms = estimate.terms
    alpha = min(terms.alpha, highest) if terms.alpha >= LEAST else 0.0
    return {
        "alpha": alpha,
        "alpha_estimate": terms.alpha,
        "alpha_interval": list(estimate.alpha),
        "multiplier": terms.worth(alpha),
        "multiplier_interval": list(estimate.multiplier),
        "target_variance": terms.target_variance,
        "corpus_variance": terms.corpus_variance,
        "bias": terms.bias,
    }
