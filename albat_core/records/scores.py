"""Scores: candidates with what a scorer found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from albat_core.records.candidates import CANDIDATE_SCHEMA
from albat_core.records.tables import read_table, write_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "scores"
SCORES = "scores.parquet"
PART_STAGE = "score_part"
_COLUMNS = "columns.parquet"

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


def write_score_part(folder: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write what a scorer measured of a block of candidates, columns (n,) by name."""
    write_table(pa.table(dict(columns)), folder / _COLUMNS)


def read_score_parts(store: ArtifactStore, refs: Sequence[ArtifactRef]) -> dict[str, NDArray[Any]]:
    """Return what a scorer measured of all blocks, one after the other, columns (n,) by name."""
    table = pa.concat_tables([read_table(store.folder(ref) / _COLUMNS) for ref in refs])
    return {name: table[name].to_numpy() for name in table.column_names}
