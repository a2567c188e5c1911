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
from albat_core.measures.known_gradients import LABEL, KnownGradients
from albat_core.measures.theory import Estimate, Floats, FoldGradients, estimate_terms
from albat_core.measures.weights import effective_sample_size
from albat_core.records.adapters import ended_early
from albat_core.records.encodings import Encodings
from albat_core.records.examples import Example
from albat_core.records.selections import read_selection
from albat_core.records.shards import read_examples
from albat_core.records.splits import (
    TRAIN,
    VALIDATION,
    carried_roles,
    read_role,
    role_digest,
)
from albat_core.seeding import derive_seed, numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

if TYPE_CHECKING:
    from albat_core.measures.gradients import AdapterGradients

STAGE = "estimate"
STAGE_VERSION = 7
DOUBT = {"surrogates": 0.8, "start": 1.2}
"""Standard deviation of log V_T / (V_w + B) about what was measured: docs/calibration.md."""
LEAST = 0.02
"""A mixing weight below this is not worth the rows: do not mix."""
_PARTS = 8  # of the documents, where gradients are those of a new adapter
_LABEL = "gradients"
GRADIENTS_STAGE = "gradients"
_TAKEN = {"at", "dimension", "noise_levels"}  # settings by which gradients are taken


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
    """How many times as large the selection is that the selected rows stand for: the look before a
    run (`albat check --verdict`) selects from a tenth. Otherwise 1."""
    batch_tokens: int = Field(2048, ge=1)
    """Tokens in a batch, padding included; of pictures, positions of their latents. A gradient
    keeps what a loss lets go of, so these are fewer than elsewhere."""
    noise_levels: int = Field(8, ge=1, le=1000)
    """Noise levels of a diffusion model that a gradient is the mean of."""

    @property
    def one_surrogate(self) -> bool:
        """Whether one surrogate alone tells, the run's own."""
        return self.at == "surrogates" and self.folds == 1


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
    gradients: Sequence[ArtifactRef] = (),
    chose: ArtifactRef | None = None,
    looked_at: Sequence[ArtifactRef] = (),
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
        gradients: what ``take_gradients`` found at each fold; none: they are taken here.
        chose: a split whose validation documents the rows were selected by: what these say of them
            is no news, and they are not held out. None: there are none.
        looked_at: surrogates whose trainings were looked at too, and tell whether steps suffice.
    """
    from albat_core.measures.gradients import AdapterGradients

    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        table = read_selection(store, selection)
        weights = table["weight"].to_numpy()
        rows = _drawn_rows(store, table, weights, config.rows, seed)
        own = _own_rows(store, adaptation, chose)
        more_rows = 1.0
        passes = sum(store.manifest(ref).facts["passes"] for ref in gradients)
        trained = [read_role(store, split, TRAIN) for split, _ in folds]
        if folds:
            how = config.model_dump(include=_TAKEN)
            known = KnownGradients(store, gradients or ([earlier] if earlier else []), how)
            will_train = store.manifest(adaptation).facts[TRAIN]["rows"]
            more_rows = will_train / np.mean([len(seen) for seen in trained])
        if gradients:
            found = [
                _beside(seen, own, rows, known.at(surrogate.key))
                for (_, surrogate), seen in zip(folds, trained, strict=True)
            ]
        else:
            with open_backbone(backbone_config, runtime, Encodings(store, encodings)) as backbone:
                noise = FixedNoise(config.noise_levels)
                taken = AdapterGradients(backbone, config.batch_tokens, noise, config.dimension)
                found = []
                for (_, surrogate), seen in zip(folds, trained, strict=True):
                    with adapted(backbone, store.folder(surrogate)):
                        found.append(_beside(seen, own, rows, known.at(surrogate.key, taken)))
                if not folds:
                    backbone.attach_adapter(adapter, derive_seed(seed, "adapter"))
                    found = _at_start(taken, own, rows, seed)
            passes = taken.passes
        if folds:
            known.write(folder)
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
        surrogates = [*looked_at, *(surrogate for _, surrogate in folds)]
        early = [ended_early(store.manifest(surrogate).facts) for surrogate in surrogates]
        facts = _facts(estimate, highest) | {"ended_early": any(early)}
        return Built(rows=len(rows), facts=facts | {"passes": passes})

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
        | ({"earlier": earlier.key} if earlier else {})
        | ({"looked_at": [ref.key for ref in looked_at]} if looked_at else {})
        | ({"chose": role_digest(store, chose, VALIDATION)} if chose else {}),
        build,
    )


def take_gradients(
    selection: ArtifactRef,
    adaptation: ArtifactRef,
    fold: tuple[ArtifactRef, ArtifactRef],
    encodings: Sequence[ArtifactRef],
    backbone_config: BackboneConfig,
    config: EstimateConfig,
    seed: int,
    runtime: Runtime,
    label: str,
    earlier: ArtifactRef | None = None,
    chose: ArtifactRef | None = None,
) -> ArtifactRef:
    """Take the gradients that ``estimate_worth`` reads at one fold.

    Args:
        selection: see ``estimate_worth``.
        adaptation: see ``estimate_worth``.
        fold: a split of the adaptation set, and a surrogate trained on its training rows.
        encodings: see ``estimate_worth``.
        backbone_config: see ``estimate_worth``.
        config: see ``estimate_worth``.
        seed: of the rows drawn.
        runtime: see ``estimate_worth``.
        label: names the fold.
        earlier: see ``estimate_worth``.
        chose: see ``estimate_worth``.
    """
    from albat_core.measures.gradients import AdapterGradients

    del label
    store, (split, surrogate) = ArtifactStore(runtime.root), fold

    def build(folder: Path) -> Built:
        table = read_selection(store, selection)
        rows = _drawn_rows(store, table, table["weight"].to_numpy(), config.rows, seed)
        known = KnownGradients(
            store, [earlier] if earlier else [], config.model_dump(include=_TAKEN)
        )
        with (
            open_backbone(backbone_config, runtime, Encodings(store, encodings)) as backbone,
            adapted(backbone, store.folder(surrogate)),
        ):
            noise = FixedNoise(config.noise_levels)
            taken = AdapterGradients(backbone, config.batch_tokens, noise, config.dimension)
            seen, own = read_role(store, split, TRAIN), _own_rows(store, adaptation, chose)
            _beside(seen, own, rows, known.at(surrogate.key, taken))
        known.write(folder)
        return Built(rows=len(rows), facts={"passes": taken.passes})

    return store.produce(
        GRADIENTS_STAGE,
        STAGE_VERSION,
        config.settings(without={"folds", "damping", "stands_for"}, seed=seed),
        {
            "selection": selection.key,
            "surrogate": surrogate.key,
            "trained": role_digest(store, split, TRAIN),
            "adaptation": [role_digest(store, adaptation, r) for r in (TRAIN, VALIDATION)],
            "backbone": backbone_identity(backbone_config, runtime),
        }
        | ({"earlier": earlier.key} if earlier else {})
        | ({"chose": role_digest(store, chose, VALIDATION)} if chose else {}),
        build,
    )


def _own_rows(
    store: ArtifactStore, adaptation: ArtifactRef, chose: ArtifactRef | None
) -> list[Example]:
    """Return the rows of the adaptation set that train or validate, and chose no selected row."""
    rows = [e for role in (TRAIN, VALIDATION) for e in read_role(store, adaptation, role)]
    choosing = {e.document for e in read_role(store, chose, VALIDATION)} if chose else set()
    return [e for e in rows if e.document not in choosing]


def _beside(
    trained: Sequence[Example],
    own: Sequence[Example],
    rows: Sequence[Example],
    gradients: Callable[[Sequence[Example]], Floats],
) -> FoldGradients:
    """Return gradients at an adapter, beside which the documents not trained on are held out.

    What it was trained on is known by what it says: it may have had another name then.
    """
    seen = carried_roles(((TRAIN, example) for example in trained), own)
    heldout = [example for example in own if example.document not in seen]
    found = gradients([*heldout, *rows])
    documents = np.array([e.document for e in heldout])
    return FoldGradients(found[: len(heldout)], documents, found[len(heldout) :])


def _at_start(
    gradients: AdapterGradients, own: Sequence[Example], rows: Sequence[Example], seed: int
) -> list[FoldGradients]:
    """Return gradients at the attached adapter, with each part of the documents held out."""
    found = gradients.of([*own, *rows], LABEL).astype(np.float64)
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
