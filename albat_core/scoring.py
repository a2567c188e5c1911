"""Scores: how much each candidate helps. One small class a scorer; higher is better."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from albat_core.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.backbones import backbone_identity, open_backbone
from albat_core.backbones.base import Backbone, BackboneConfig, FixedNoise, adapted
from albat_core.encoding import Encodings
from albat_core.errors import BackboneError
from albat_core.losses import advantages
from albat_core.records import SCORE_SCHEMA, Example, read_table, write_table
from albat_core.retrieval import CANDIDATES
from albat_core.seeding import numpy_generator
from albat_core.shards import read_rows
from albat_core.stage import Runtime, StageConfig

STAGE = "scores"
STAGE_VERSION = 2
SCORES = "scores.parquet"
_BLOCK = 4096  # candidates that are in memory at once
_SAMPLE = 128  # candidates on which the number of noise levels is chosen
_LEVELS = (4, 8, 16, 32, 64)

Scores = NDArray[np.float64]


class ScoringConfig(StageConfig):
    """How candidates are scored."""

    scorer: Literal["advantage", "nearest"] = "advantage"
    """`advantage`: how much better the surrogate predicts a row than the backbone, in nats per
    unit; `nearest`: similarity to the nearest adaptation example, in [-1, 1]."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens in a batch, padding included; of pictures, positions of their latents."""
    noise_levels: int | Literal["auto"] = "auto"
    """Noise levels of a diffusion model at which a row is looked at; `auto`: as few as give the
    rows of a sample the same ranks when other noise is drawn (`rank_agreement`)."""
    rank_agreement: float = Field(0.9, gt=0, lt=1)
    """Spearman correlation that counts as the same ranks, in (0, 1)."""


class Scorer(Protocol):
    """Gives candidates their scores."""

    def score(self, examples: Sequence[Example], similarity: Scores) -> dict[str, Scores]:
        """Return columns (n,) by name: ``score``, and the losses behind it where there are any.

        Args:
            examples: the candidates.
            similarity: (n,) similarity to the nearest adaptation example.
        """


class Advantage:
    """Surrogate advantage s(c) = l(c; backbone) - l(c; surrogate), loss per unit, any sign.

    It estimates log P_T(c) / P_C(c) per unit: the backbone models the corpus and the surrogate
    the adaptation set (cross-entropy difference, Moore and Lewis 2010; RHO-loss, arXiv 2206.07137).

    Args:
        backbone: with the surrogate's adapter attached.
        batch_tokens: tokens in a batch.
        noise: the same for every candidate and both passes.
    """

    def __init__(self, backbone: Backbone, batch_tokens: int, noise: FixedNoise) -> None:
        self._backbone = backbone
        self._batch_tokens = batch_tokens
        self._noise = noise

    def score(self, examples: Sequence[Example], similarity: Scores) -> dict[str, Scores]:
        """Return the advantage with its standard error, and both losses."""
        del similarity
        found = advantages(
            self._backbone,
            self._backbone.encode(examples),
            self._batch_tokens,
            self._noise,
            "score candidates",
        )
        return {
            "loss_backbone": found.untouched,
            "loss_surrogate": found.adapted,
            "score": found.untouched - found.adapted,
            "score_error": found.error,
        }


class Nearest:
    """Similarity to the nearest adaptation example, in [-1, 1] (RDS+, arXiv 2503.01807)."""

    def score(self, examples: Sequence[Example], similarity: Scores) -> dict[str, Scores]:
        """Return the similarity itself."""
        del examples
        return {"score": similarity}


def choose_noise_levels(
    backbone: Backbone, examples: Sequence[Example], batch_tokens: int, agreement: float
) -> tuple[int, list[dict[str, float]]]:
    """Return the fewest noise levels at which ranks do not depend on the noise drawn.

    The advantage of every example is measured twice, with independent noise; levels are doubled
    until both give nearly the same ranks (Spearman).

    Args:
        backbone: with the surrogate's adapter attached.
        examples: a sample of the candidates.
        batch_tokens: tokens in a batch.
        agreement: the correlation asked for.

    Returns:
        the levels, and what was tried: ``levels`` with their ``agreement``.
    """
    encoded = backbone.encode(examples)
    tried = []
    for levels in _LEVELS:
        pair = [
            advantages(backbone, encoded, batch_tokens, FixedNoise(levels, replicate))
            for replicate in (1, 2)
        ]
        first, second = (a.untouched - a.adapted for a in pair)
        tried.append({"levels": levels, "agreement": rank_correlation(first, second)})
        if tried[-1]["agreement"] >= agreement:
            break
    return levels, tried


def rank_correlation(first: Scores, second: Scores) -> float:
    """Return Spearman's correlation of two scores (n,), in [-1, 1]; 1 where neither varies."""
    if len(first) < 2:
        return 1.0
    ranks = [np.argsort(np.argsort(v, kind="stable")).astype(np.float64) for v in (first, second)]
    first, second = (r - r.mean() for r in ranks)
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))


def score_candidates(
    candidates: ArtifactRef,
    surrogate: ArtifactRef,
    encodings: Sequence[ArtifactRef],
    backbone_config: BackboneConfig,
    config: ScoringConfig,
    runtime: Runtime,
) -> ArtifactRef:
    """Score all candidates.

    Raises:
        BackboneError: a score is not finite.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        table = read_table(store.folder(candidates) / CANDIDATES)
        blocks = []
        with (
            open_backbone(backbone_config, runtime, Encodings(store, encodings)) as backbone,
            adapted(backbone, store.folder(surrogate)),
        ):
            scorer: Scorer = Nearest()
            noise_facts: dict[str, Any] = {}
            if config.scorer == "advantage":
                noise, noise_facts = _noise(backbone, config, store, table)
                scorer = Advantage(backbone, config.batch_tokens, noise)
            for start in range(0, table.num_rows, _BLOCK):
                block = table.slice(start, _BLOCK)
                examples = read_rows(store, block["shard"].to_pylist(), block["row"].to_pylist())
                blocks.append(scorer.score(examples, block["similarity"].to_numpy()))
        columns = {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}
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
                **noise_facts,
            },
        )

    return store.produce(
        STAGE,
        STAGE_VERSION,
        config.model_dump(mode="json"),
        {
            "candidates": candidates.key,
            "surrogate": surrogate.key,
            "backbone": backbone_identity(backbone_config, runtime),
        },
        build,
    )


def _noise(
    backbone: Backbone, config: ScoringConfig, store: ArtifactStore, candidates: pa.Table
) -> tuple[FixedNoise, dict[str, Any]]:
    """Return the noise that candidates are scored with, and what the manifest says of it."""
    if not backbone.noisy:
        return FixedNoise(), {}
    if config.noise_levels != "auto":
        return FixedNoise(config.noise_levels), {"noise_levels": config.noise_levels}
    drawn = numpy_generator(0, "sample for noise levels").permutation(candidates.num_rows)
    sample = candidates.take(pa.array(np.sort(drawn[:_SAMPLE])))
    examples = read_rows(store, sample["shard"].to_pylist(), sample["row"].to_pylist())
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
