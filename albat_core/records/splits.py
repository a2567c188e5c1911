"""Splits: the adaptation set, a file of examples for each role that documents have."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
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


def carried_roles(
    earlier: Iterable[tuple[str, Example]], rows: Iterable[Example]
) -> dict[str, str]:
    """Return the roles that documents have already, by what their rows say.

    A document is the one of its name if it has a row in common with it, or else those that have
    half of its rows or more, or else the one of its name if nothing of that is anywhere else: where
    documents are named by place, one that goes moves all after it.

    Args:
        earlier: roles and rows of an earlier split.
        rows: of now, with documents by the names that they are given with.
    """
    before: dict[str, tuple[str, set[str]]] = {}
    roles: dict[str, set[str]] = defaultdict(set)
    for there, row in earlier:
        before.setdefault(row.document, (there, set()))[1].add(row.digest())
        roles[row.digest()].add(there)
    present: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        present[row.document].append(row.digest())
    everywhere = set(chain.from_iterable(present.values()))
    found: dict[str, str] = {}
    role: str | None
    for name, contents in present.items():
        role, its = before.get(name, (None, set[str]()))
        if role is None or not its.intersection(contents):
            # what several roles have in common is boilerplate, and tells nothing
            told = [*chain.from_iterable(roles[c] for c in contents if len(roles[c]) == 1)]
            if told and 2 * len(told) >= len(contents):
                role = min(told, key=lambda one: (-told.count(one), rank_of(one)))
            elif its & everywhere:
                role = None
        if role is not None:
            found[name] = role
    return found


def rank_of(role: str | None) -> int:
    """Return which document's role is that of those that are the same: the lowest one's."""
    return (TEST, VALIDATION, TRAIN, UNUSED, None).index(role)


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
