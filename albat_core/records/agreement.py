"""Agreement: how far a smaller backbone ranks candidates as the run's own does."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

STAGE = "agreement"
AGREEMENT = "agreement.parquet"

AGREEMENT_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("backbone", pa.float32(), nullable=False),
        pa.field("smaller", pa.float32(), nullable=False),
    ]
)
"""Scores of a sample of the candidates by a surrogate of each."""


def agreement_notes(facts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return whether a smaller backbone is trusted, from the facts of agreements."""
    return tuple(map(_told, facts))


def _told(facts: Mapping[str, Any]) -> str:
    low, high = facts["interval"]
    ranks = f"ranks correlate by {facts['agreement']:.2f} ({low:.2f} to {high:.2f})"
    if facts["trusted"]:
        return f"{ranks}: the smaller backbone scores the candidates"
    said = f"{ranks}, not surely by {facts['least']:g} (scoring.smaller.least_agreement)"
    if facts["scored_by_smaller"]:
        return f"{said}: the smaller backbone scores all the same (scoring.smaller.fall_back)"
    return f"{said}: the smaller backbone is not trusted, the backbone scores the candidates"
