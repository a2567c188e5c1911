"""Splits: the adaptation set, a file of examples for each role that documents have."""

from collections.abc import Mapping, Sequence
from typing import Any

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


def split_notes(facts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return which documents were not taken as they are named, from splits' facts."""
    said = {
        "joined_documents": "repeated by others, with which they count as one",
        "documents_held_out_too": "repeated by held-out ones, not trained on",
    }
    counts = {name: sum(f.get(name, 0) for f in facts) for name in said}
    return tuple(
        f"{n:,} document{'s' if n > 1 else ''} {said[name]}" for name, n in counts.items() if n
    )
