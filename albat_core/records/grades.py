"""Grades: what metrics say of an arm's answers, and summed by document."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
        pa.field("metric", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),  # higher is better
    ]
)
"""Scores of one arm's answers, one row an answer and metric."""


def metrics_of(
    store: ArtifactStore, grades: Sequence[ArtifactRef]
) -> list[tuple[int, str, str | None]]:
    """Return an arm's metrics: place of their grades, name, and task of lm-eval, None for none."""
    facts = [store.manifest(ref).facts for ref in grades]
    return [(n, name, its.get("task")) for n, its in enumerate(facts) for name in its["metrics"]]


def document_grades(
    store: ArtifactStore, grades: ArtifactRef, metric: str
) -> tuple[Floats, Floats]:
    """Return sum of scores and number of answers of each document, (n_documents,), by name."""
    table = read_table(store.folder(grades) / GRADES)
    table = table.filter(pc.field("metric") == metric)
    grouped = table.group_by("document").aggregate([("score", "sum"), ("score", "count")])
    grouped = grouped.sort_by("document")
    return (
        grouped["score_sum"].to_numpy().astype(np.float64),
        grouped["score_count"].to_numpy().astype(np.float64),
    )
