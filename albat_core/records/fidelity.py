"""Fidelity: how close an arm's samples are to the subject and to their prompts."""

import pyarrow as pa

from albat_core.records.tables import read_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "fidelity"
FIDELITY = "fidelity.parquet"
MEASURES = ("dino", "clip_i", "clip_t")

FIDELITY_SCHEMA = pa.schema(
    [
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("pictures", pa.int64(), nullable=False),
        *(pa.field(name, pa.float64()) for name in MEASURES),
    ]
)
"""Mean cosines by prompt; null where the encoder of a measure is not configured, or a prompt is
longer than it takes."""


def prompt_fidelity(store: ArtifactStore, fidelity: ArtifactRef) -> pa.Table:
    """Return means by prompt as a table of ``FIDELITY_SCHEMA``."""
    return read_table(store.folder(fidelity) / FIDELITY)
