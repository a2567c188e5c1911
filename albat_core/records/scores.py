"""Scores: candidates with what a scorer found."""

import pyarrow as pa

from albat_core.records.candidates import CANDIDATE_SCHEMA
from albat_core.records.tables import read_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "scores"
SCORES = "scores.parquet"

SCORE_SCHEMA = (
    CANDIDATE_SCHEMA.append(pa.field("loss_backbone", pa.float32()))
    .append(pa.field("loss_surrogate", pa.float32()))
    .append(pa.field("score", pa.float32()))
    .append(pa.field("score_error", pa.float32()))
)
"""Candidates with what a scorer found: losses per unit; scores, higher is better, that allow for
their standard errors (``scoring.discount``); and these, of scores as measured."""


def read_scores(store: ArtifactStore, ref: ArtifactRef) -> pa.Table:
    """Return scored candidates as a table of ``SCORE_SCHEMA``."""
    return read_table(store.folder(ref) / SCORES)
