"""Splits: the adaptation set, a file of examples for each role that documents have."""

from albat_core.records.examples import Example, table_to_examples
from albat_core.records.tables import read_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

TRAIN, VALIDATION, TEST, UNUSED = "train", "validation", "test", "unused"
STAGE = "split"
ROLES = (TRAIN, VALIDATION, TEST, UNUSED)


def read_role(store: ArtifactStore, adaptation: ArtifactRef, role: str) -> list[Example]:
    """Return the examples of one role, in the order of the source."""
    return table_to_examples(read_table(store.folder(adaptation) / f"{role}.parquet"))


def role_digest(store: ArtifactStore, adaptation: ArtifactRef, role: str) -> str:
    """Return a digest of one role's rows, so that what reads only them depends only on them."""
    files = {f.path: f.sha256 for f in store.manifest(adaptation).files}
    return files[f"{role}.parquet"]
