"""How far a smaller backbone ranks candidates as the run's own: on a sample that both score."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from albat_core.backbones import check_smaller, input_fingerprint
from albat_core.backbones.config import BackboneConfig, SmallerBackbone
from albat_core.records.agreement import AGREEMENT, AGREEMENT_SCHEMA, STAGE
from albat_core.records.candidates import (
    NEIGHBOUR_SCHEMA,
    Candidates,
    read_candidates,
    write_candidates,
)
from albat_core.records.candidates import STAGE as CANDIDATES
from albat_core.records.scores import read_scores
from albat_core.records.tables import write_table
from albat_core.scorers.base import rank_correlation
from albat_core.seeding import numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime

STAGE_VERSION = 1
_RESAMPLES = 2000


def draw_sample(
    candidates: ArtifactRef,
    backbone_config: BackboneConfig,
    smaller: SmallerBackbone,
    seed: int,
    runtime: Runtime,
) -> ArtifactRef:
    """Draw the candidates that both backbones score, evenly at random, in the candidates' order.

    Args:
        candidates: of the run; where they are no more than the sample, all are taken.
        backbone_config: the run's backbone.
        smaller: the other one, which must read the rows drawn as the same tokens.
        seed: of the draw.
        runtime: where artifacts are kept.

    Raises:
        BackboneError: it reads others.
    """
    store = ArtifactStore(runtime.root)
    other = smaller.of(backbone_config)

    def build(folder: Path) -> Built:
        table = read_candidates(store, candidates)
        drawn = numpy_generator(seed, "sample for agreement").permutation(table.num_rows)
        sample = table.take(pa.array(np.sort(drawn[: smaller.sample])))
        rows = [row for block in Candidates(store, sample).blocks() for row in block]
        check_smaller(backbone_config, other, rows)
        write_candidates(folder, sample, NEIGHBOUR_SCHEMA.empty_table())
        return Built(rows=sample.num_rows)

    return store.produce(
        CANDIDATES,
        STAGE_VERSION,
        {"sample": smaller.sample, "seed": seed},
        {
            "candidates": candidates.key,
            "tokens": [input_fingerprint(each) for each in (backbone_config, other)],
        },
        build,
    )


def measure_agreement(
    scores: ArtifactRef,
    smaller_scores: ArtifactRef,
    smaller: SmallerBackbone,
    seed: int,
    runtime: Runtime,
) -> ArtifactRef:
    """Measure how far two surrogates rank a sample alike, and say which one scores the candidates.

    Args:
        scores: of the sample, by the backbone's own surrogate.
        smaller_scores: by the smaller backbone's, of the same rows.
        smaller: how far they have to agree, and what happens if they do not.
        seed: of the bootstrap.
        runtime: where artifacts are kept.

    Returns:
        an artifact with both scores; its facts: Spearman's correlation (``agreement``), in [-1, 1],
        its 95% ``interval`` by drawing rows with replacement, whether that lies at or above the
        bound (``trusted``), and whether the smaller one's scores are taken (``scored_by_smaller``).
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        from scipy.stats import bootstrap

        own, other = (read_scores(store, ref) for ref in (scores, smaller_scores))
        columns = [own["example_id"], own["score"], other["score"]]
        write_table(pa.table(columns, schema=AGREEMENT_SCHEMA), folder / AGREEMENT)
        ranked = [column.to_numpy().astype(np.float64) for column in columns[1:]]
        drawn = bootstrap(
            ranked,
            rank_correlation,
            paired=True,
            vectorized=False,
            n_resamples=_RESAMPLES,
            method="percentile",
            rng=numpy_generator(seed, "bootstrap of agreement"),
        ).confidence_interval
        trusted = bool(drawn.low >= smaller.least_agreement)
        return Built(
            rows=own.num_rows,
            facts={
                "agreement": rank_correlation(*ranked),
                "interval": [float(drawn.low), float(drawn.high)],
                "least": smaller.least_agreement,
                "trusted": trusted,
                "scored_by_smaller": trusted or not smaller.fall_back,
            },
        )

    return store.produce(
        STAGE,
        STAGE_VERSION,
        {"least": smaller.least_agreement, "fall_back": smaller.fall_back, "seed": seed},
        {"scores": scores.key, "smaller": smaller_scores.key},
        build,
    )
