"""The stage that gives candidates their scores; the scorers are in ``scorers/``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from albat_core.backbones import backbone_identity, open_backbone
from albat_core.backbones.base import Backbone, FixedNoise, adapted
from albat_core.backbones.config import BackboneConfig
from albat_core.errors import BackboneError
from albat_core.measures.gradients import AdapterGradients
from albat_core.records.candidates import Candidates, read_candidates
from albat_core.records.encodings import Encodings
from albat_core.records.examples import Example
from albat_core.records.scores import SCORE_SCHEMA, SCORES, STAGE, read_scores
from albat_core.records.shards import read_examples
from albat_core.records.splits import TRAIN, VALIDATION, read_role, role_digest
from albat_core.records.tables import write_table
from albat_core.scorers.advantage import Advantage, choose_noise_levels
from albat_core.scorers.base import Scorer, Scores
from albat_core.scorers.gradient import Gradient
from albat_core.scorers.known import score_what_is_new
from albat_core.scorers.matching import Matching
from albat_core.scorers.nearest import Nearest
from albat_core.scorers.ngram import Ngram
from albat_core.scorers.random import Random
from albat_core.seeding import numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig
from albat_core.training.checkpoint import read_checkpoints

STAGE_VERSION = 2
_SAMPLE = 128  # candidates on which the number of noise levels is chosen


ScorerName = Literal["advantage", "nearest", "ngram", "gradient", "matching", "random"]


WITHOUT_SURROGATE = ("nearest", "ngram", "random")
"""Scorers that need none."""


class ScoringConfig(StageConfig):
    """How candidates are scored."""

    scorer: ScorerName = "advantage"
    """`advantage`: how much better the surrogate predicts a row than the backbone, in nats per
    unit; `nearest`: similarity to the nearest adaptation example, in [-1, 1]; `ngram`: log
    importance weight of a text's words and word pairs, in nats; `gradient`: how much a training
    step on the row would help, in [-1, 1]; `matching`: weight at which the rows' mean gradient is
    the target's, mean 1; `random`: evenly drawn from [0, 1)."""
    dimension: int = Field(2048, ge=16)
    """Coordinates of the random projection of gradients (scorers `gradient` and `matching`)."""
    damping: float = Field(10.0, gt=0)
    """Damping of the Hessian in units of its mean eigenvalue (scorer `matching`)."""
    checkpoints: int = Field(4, ge=1)
    """Surrogates on the way to the best one whose gradients are compared (scorer `gradient`)."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens in a batch, padding included; of pictures, positions of their latents."""
    noise_levels: Annotated[int, Field(ge=1, le=1000)] | Literal["auto"] = "auto"
    """Noise levels of a diffusion model at which a row is looked at; `auto`: as few as give the
    rows of a sample the same ranks when other noise is drawn (`rank_agreement`)."""
    rank_agreement: float = Field(0.9, gt=0, lt=1)
    """Spearman correlation that counts as the same ranks, in (0, 1). When adaptation data has
    changed, rows keep the scores of the last selection where a sample of them is ranked alike."""


def score_candidates(
    candidates: ArtifactRef,
    surrogate: ArtifactRef | None,
    adaptation: ArtifactRef,
    encodings: Sequence[ArtifactRef],
    backbone_config: BackboneConfig,
    config: ScoringConfig,
    seed: int,
    runtime: Runtime,
    earlier: ArtifactRef | None = None,
) -> ArtifactRef:
    """Score all candidates.

    Args:
        candidates: what is scored.
        surrogate: trained on the adaptation set's training rows; None for a scorer that reads none.
        adaptation: whose validation rows the surrogate was not trained on.
        encodings: costly inputs of the rows, where the backbone has any.
        backbone_config: what is adapted.
        config: by which scorer.
        seed: of the scorer `random`.
        runtime: where and with what.
        earlier: scores of an earlier surrogate, kept where the new one ranks alike (scorer
            `advantage`).

    Raises:
        BackboneError: a score is not finite.
        ConfigError: a scorer of similarity is given candidates that are near to nothing.
        InputError: a scorer of words finds none.
    """
    store = ArtifactStore(runtime.root)
    knobs = _knobs(config) | ({"seed": seed} if config.scorer == "random" else {})
    alike = earlier is not None and store.manifest(earlier).config == knobs
    known_before = earlier if alike and config.scorer == "advantage" else None

    def build(folder: Path) -> Built:
        table = read_candidates(store, candidates)
        pool = Candidates(store, table)
        facts: dict[str, Any] = {}
        scorer: Scorer
        if config.scorer in WITHOUT_SURROGATE:
            scorer = _light_scorer(config, store, adaptation, seed)
            columns = scorer.score(pool)
        else:
            assert surrogate is not None  # whoever calls gives one to a scorer that reads it
            known = Encodings(store, encodings)
            with open_backbone(backbone_config, runtime, known) as backbone:
                folder_of_surrogate = store.folder(surrogate)
                with adapted(backbone, folder_of_surrogate):
                    noise, facts = _noise(backbone, config, store, table, known_before)
                    heldout = read_role(store, adaptation, VALIDATION)
                    scorer = _scorer(backbone, folder_of_surrogate, heldout, config, noise)
                    if known_before is None:
                        columns = scorer.score(pool)
                    else:
                        before = read_scores(store, known_before)
                        columns, facts["earlier"] = score_what_is_new(
                            scorer, pool, before, config.rank_agreement
                        )
        if not np.isfinite(columns["score"]).all():
            worst = int(np.flatnonzero(~np.isfinite(columns["score"]))[0])
            raise BackboneError(
                "expected finite scores, got NaN or infinity",
                where=f"example {table['example_id'][worst].as_py()}",
                remedy="lower surrogate.learning_rate, or set backbone.dtype to float32",
            )
        write_table(_with_scores(table, columns), folder / SCORES)
        score = columns["score"]
        return Built(
            rows=table.num_rows,
            facts={
                "mean": float(score.mean()),
                "deviation": float(score.std()),
                "positive": float((score > 0).mean()),
                "passes": scorer.passes,
                **facts,
            },
        )

    return store.produce(
        STAGE,
        STAGE_VERSION,
        knobs,
        {
            "candidates": candidates.key,
            "surrogate": surrogate.key if surrogate else None,
            **_rows_read(config, store, adaptation),
            "backbone": backbone_identity(backbone_config, runtime),
        }
        | ({"earlier": known_before.key} if known_before else {}),
        build,
    )


_OF_GRADIENTS = ("gradient", "matching")


def _knobs(config: ScoringConfig) -> dict[str, Any]:
    """Return what of the configuration the scorer reads."""
    unread = set() if config.scorer in _OF_GRADIENTS else {"dimension", "damping", "checkpoints"}
    return config.model_dump(mode="json", exclude=unread)


def _rows_read(
    config: ScoringConfig, store: ArtifactStore, adaptation: ArtifactRef
) -> dict[str, str]:
    """Return the adaptation rows that the scorer reads, for the key."""
    if config.scorer == "ngram":
        return {"target": role_digest(store, adaptation, TRAIN)}
    if config.scorer in _OF_GRADIENTS:
        return {"heldout": role_digest(store, adaptation, VALIDATION)}
    return {}


def _light_scorer(
    config: ScoringConfig, store: ArtifactStore, adaptation: ArtifactRef, seed: int
) -> Scorer:
    if config.scorer == "nearest":
        return Nearest()
    if config.scorer == "random":
        return Random(seed)
    return Ngram(read_role(store, adaptation, TRAIN))


def _scorer(
    backbone: Backbone,
    surrogate: Path,
    heldout: Sequence[Example],
    config: ScoringConfig,
    noise: FixedNoise,
) -> Scorer:
    if config.scorer not in _OF_GRADIENTS:
        return Advantage(backbone, config.batch_tokens, noise)
    gradients = AdapterGradients(backbone, config.batch_tokens, noise, config.dimension)
    if config.scorer == "gradient":
        return Gradient(backbone, read_checkpoints(surrogate), heldout, gradients)
    return Matching(heldout, gradients, config.damping)


def _noise(
    backbone: Backbone,
    config: ScoringConfig,
    store: ArtifactStore,
    candidates: pa.Table,
    earlier: ArtifactRef | None,
) -> tuple[FixedNoise, dict[str, Any]]:
    """Return the noise that candidates are scored with, and what the manifest says of it."""
    if not backbone.noisy:
        return FixedNoise(), {}
    if earlier is not None:  # scores are compared with those, so they share their noise
        then = store.manifest(earlier).facts
        kept = ("noise_levels", "rank_agreement")
        facts: dict[str, Any] = {name: then[name] for name in kept if name in then}
        return FixedNoise(facts["noise_levels"]), facts
    if config.noise_levels != "auto":
        return FixedNoise(config.noise_levels), {"noise_levels": config.noise_levels}
    drawn = numpy_generator(0, "sample for noise levels").permutation(candidates.num_rows)
    sample = candidates.take(pa.array(np.sort(drawn[:_SAMPLE])))
    examples = read_examples(store, sample["shard"].to_pylist(), sample["row"].to_pylist())
    levels, tried = choose_noise_levels(
        backbone, examples, config.batch_tokens, config.rank_agreement
    )
    return FixedNoise(levels), {"noise_levels": levels, "rank_agreement": tried}


def _with_scores(candidates: pa.Table, columns: dict[str, Scores]) -> pa.Table:
    """Return the candidates with score columns; null where a scorer has none."""
    for field in list(SCORE_SCHEMA)[candidates.num_columns :]:
        values = columns.get(field.name)
        column = (
            pa.nulls(candidates.num_rows, field.type)
            if values is None
            else pa.array(values, pa.float64()).cast(field.type)
        )
        candidates = candidates.append_column(field, column)
    return candidates.cast(SCORE_SCHEMA)
