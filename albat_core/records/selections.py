"""Selections: the candidates chosen, with weights, and what a later selection goes on from."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from albat_core.records.scores import SCORE_SCHEMA
from albat_core.records.tables import read_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "selection"
SELECTION = "selection.parquet"

SELECTION_SCHEMA = SCORE_SCHEMA.append(pa.field("weight", pa.float64(), nullable=False))
"""Selected candidates; weights are >= 0 and sum to 1 over the selection."""


def read_selection(store: ArtifactStore, selection: ArtifactRef) -> pa.Table:
    """Return the selected rows as a table of ``SELECTION_SCHEMA``."""
    return read_table(store.folder(selection) / SELECTION)


def short_notes(facts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return how far selections stay below what was wanted, from their facts."""
    return tuple(
        f"{each['lacking']:,} fewer than the {each['wanted']:,} of selection.rows: no more "
        "candidates could be selected"
        for each in facts
        if each.get("lacking")
    )


class Selected(BaseModel):
    """What a selection leaves for the next one of the same run to start from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adaptation: ArtifactRef
    """The adaptation set, split by document."""
    prefiltered: tuple[ArtifactRef, ...] = ()
    """Shards of the corpus rows that were kept by their words; none where all were."""
    surrogate: ArtifactRef | None
    """None where the scorer needs none."""
    smaller: ArtifactRef | None = None
    """The surrogate of a smaller backbone; None where none was to score."""
    scores: ArtifactRef | None = None
    """Of the candidates; None for a selection that did not keep them."""
    mixture: ArtifactRef
    estimate: ArtifactRef | None = None
    """None where alpha was configured."""
    folds: tuple[tuple[ArtifactRef, ArtifactRef], ...] = ()
    """What alpha was computed at: splits of the adaptation set, or of what it was once, each with a
    surrogate."""

    @property
    def refs(self) -> list[ArtifactRef]:
        """All artifacts that it names."""
        perhaps = (self.surrogate, self.smaller, self.scores, self.estimate)
        folds = [ref for fold in self.folds for ref in fold]
        named = (self.adaptation, *self.prefiltered, self.mixture, *folds)
        return [*named, *(ref for ref in perhaps if ref is not None)]
