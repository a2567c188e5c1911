"""Redrawn: held-out pictures that an arm drew anew, and how far they are from the pictures."""

import pyarrow as pa

from albat_core.records.examples import EXAMPLE_SCHEMA, Example, table_to_examples
from albat_core.records.tables import read_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "redrawn"
TRUE, MADE = "true.parquet", "made.parquet"


def read_redrawn(store: ArtifactStore, redrawn: ArtifactRef) -> list[tuple[Example, list[Example]]]:
    """Return each held-out picture with what was drawn of its caption, in order.

    What is drawn is compared in the artifact's ``losses.parquet`` (``LOSS_SCHEMA``): squared
    errors of pixels in [0, 1], summed over the drawn pictures, which are the units.
    """
    true, made = (_examples(store, redrawn, name) for name in (TRUE, MADE))
    each = store.manifest(redrawn).facts["per_prompt"]
    return [(example, made[n * each : (n + 1) * each]) for n, example in enumerate(true)]


def _examples(store: ArtifactStore, redrawn: ArtifactRef, name: str) -> list[Example]:
    table: pa.Table = read_table(store.folder(redrawn) / name, EXAMPLE_SCHEMA.names)
    return table_to_examples(table)
