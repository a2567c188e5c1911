"""Losses: of one arm on the held-out examples, and summed by document."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from albat_core.records.tables import read_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "evaluation"
LOSSES = "losses.parquet"

Floats = NDArray[np.float64]

LOSS_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),  # nats, summed over the units
        pa.field("units", pa.int64(), nullable=False),  # tokens that carry loss
    ]
)
"""Held-out losses of one arm, one row an example."""


def losses_by_document(store: ArtifactStore, evaluation: ArtifactRef) -> pa.Table:
    """Return ``document``, ``loss_sum`` (nats) and ``units_sum`` of each, sorted by name."""
    return summed_by_document(read_table(store.folder(evaluation) / LOSSES))


def summed_by_document(losses: pa.Table) -> pa.Table:
    """Return ``document``, ``loss_sum`` (nats) and ``units_sum`` of each, sorted by name.

    Args:
        losses: with the columns of ``LOSS_SCHEMA``, an example a row.
    """
    grouped = losses.group_by("document").aggregate([("loss", "sum"), ("units", "sum")])
    return grouped.sort_by("document")


def document_losses(store: ArtifactStore, evaluation: ArtifactRef) -> tuple[Floats, Floats]:
    """Return total loss in nats and units of each held-out document, (n_documents,), by name."""
    grouped = losses_by_document(store, evaluation)
    return (
        grouped["loss_sum"].to_numpy().astype(np.float64),
        grouped["units_sum"].to_numpy().astype(np.float64),
    )
