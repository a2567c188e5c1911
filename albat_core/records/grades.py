"""Grades: what one metric says of an arm's answers, and summed by document."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from albat_core.records.tables import read_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "grades"
GRADES = "grades.parquet"

Floats = NDArray[np.float64]

GRADE_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),  # higher is better
    ]
)
"""Scores of one arm's answers, one row an answer."""


def metric_of(store: ArtifactStore, grades: ArtifactRef) -> str:
    """Return the name of the metric that gave them, as settings have it."""
    return str(store.manifest(grades).facts["metric"])


def document_grades(store: ArtifactStore, grades: ArtifactRef) -> tuple[Floats, Floats]:
    """Return sum of scores and number of answers of each document, (n_documents,), by name."""
    table = read_table(store.folder(grades) / GRADES)
    grouped = table.group_by("document").aggregate([("score", "sum"), ("score", "count")])
    grouped = grouped.sort_by("document")
    return (
        grouped["score_sum"].to_numpy().astype(np.float64),
        grouped["score_count"].to_numpy().astype(np.float64),
    )
