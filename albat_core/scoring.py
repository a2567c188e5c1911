"""Scores: how much each candidate helps. One small class a scorer; higher is better."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from albat_core.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.backbones import backbone_identity, open_backbone
from albat_core.backbones.base import Backbone, BackboneConfig, adapted
from albat_core.errors import BackboneError
from albat_core.losses import advantages
from albat_core.records import SCORE_SCHEMA, Example, read_table, write_table
from albat_core.retrieval import CANDIDATES
from albat_core.shards import read_rows
from albat_core.stage import Runtime, StageConfig

STAGE = "scores"
STAGE_VERSION = 1
SCORES = "scores.parquet"
_BLOCK = 8192  # candidates whose text is in memory at once

Scores = NDArray[np.float64]


class ScoringConfig(StageConfig):
    """How candidates are scored."""

    scorer: Literal["advantage", "nearest"] = "advantage"
    """`advantage`: how much better the surrogate predicts a row than the backbone, in nats per
    unit; `nearest`: similarity to the nearest adaptation example, in [-1, 1]."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens in a batch, padding included."""


class Scorer(Protocol):
    """Gives candidates their scores."""

    def score(self, examples: Sequence[Example], similarity: Scores) -> dict[str, Scores]:
        """Return columns (n,) by name: ``score``, and the losses behind it where there are any.

        Args:
            examples: the candidates.
            similarity: (n,) similarity to the nearest adaptation example.
        """


class Advantage:
    """Surrogate advantage s(c) = l(c; backbone) - l(c; surrogate), nats per unit, any sign.

    It estimates log P_T(c) / P_C(c) per unit: the backbone models the corpus and the surrogate
    the adaptation set (cross-entropy difference, Moore and Lewis 2010; RHO-loss, arXiv 2206.07137).

    Args:
        backbone: with the surrogate's adapter attached.
        batch_tokens: tokens in a batch.
    """

    def __init__(self, backbone: Backbone, batch_tokens: int) -> None:
        self._backbone = backbone
        self._batch_tokens = batch_tokens

    def score(self, examples: Sequence[Example], similarity: Scores) -> dict[str, Scores]:
        """Return the advantage and both losses."""
        del similarity
        encoded = self._backbone.encode(examples)
        before, after = advantages(self._backbone, encoded, self._batch_tokens, "score candidates")
        return {"loss_backbone": before, "loss_surrogate": after, "score": before - after}


class Nearest:
    """Similarity to the nearest adaptation example, in [-1, 1] (RDS+, arXiv 2503.01807)."""

    def score(self, examples: Sequence[Example], similarity: Scores) -> dict[str, Scores]:
        """Return the similarity itself."""
        del examples
        return {"score": similarity}


def score_candidates(
    candidates: ArtifactRef,
    surrogate: ArtifactRef,
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
            open_backbone(backbone_config, runtime) as backbone,
            adapted(backbone, store.folder(surrogate)),
        ):
            scorer: Scorer = (
                Advantage(backbone, config.batch_tokens)
                if config.scorer == "advantage"
                else Nearest()
            )
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
