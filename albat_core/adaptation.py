"""The adaptation set and its split into training, validation and test documents."""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from albat_core.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.errors import InputError
from albat_core.records import (
    EXAMPLE_SCHEMA,
    TEST,
    TRAIN,
    UNUSED,
    VALIDATION,
    Example,
    read_table,
    table_to_examples,
    write_table,
)
from albat_core.shards import Part, parts_of
from albat_core.stage import Runtime, StageConfig

STAGE = "adaptation"
STAGE_VERSION = 2
ROLES = (TRAIN, VALIDATION, TEST, UNUSED)


class SplitConfig(StageConfig):
    """How the documents of the adaptation set are divided; never rows of one document."""

    test: float = Field(0.2, ge=0, lt=1)
    """Share of the documents held out for the evaluation, in [0, 1); 0 where `heldout` is given."""
    folds: int = Field(5, ge=2, le=100)
    """One in so many of the remaining documents validates: it stops training, and is not trained
    on."""
    use: float = Field(1.0, gt=0, le=1)
    """Share of the documents left after the test split that is used, in (0, 1]; for learning
    curves."""


def assign_roles(
    documents: Sequence[str], config: SplitConfig, seed: int, fold: int = 0
) -> dict[str, str]:
    """Return the role of each distinct document; ``fold`` of ``config.folds`` validates.

    Documents are ordered by a hash, so that a document that is added moves few others, and the
    documents of a smaller ``use`` are among those of a larger one.

    Raises:
        InputError: there are fewer documents than the split needs.
    """
    ranked = sorted(
        set(documents),
        key=lambda name: hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(),
    )
    tests = max(math.ceil(config.test * len(ranked)), 1) if config.test > 0 else 0
    rest = ranked[tests:]
    used = rest[: max(round(config.use * len(rest)), 1)] if rest else []
    if len(used) < config.folds:
        raise InputError(
            f"expected at least {config.folds} documents to train and validate on "
            f"(split.folds), got {len(used)} of {len(ranked)}",
            where="adaptation",
            remedy="give more documents, or lower split.folds, split.test or raise split.use; "
            "rows of one document count once (document_column)",
        )
    roles = dict.fromkeys(ranked[:tests], TEST)
    roles |= dict.fromkeys(rest[len(used) :], UNUSED)
    # every folds-th validates: a document's role depends on its place alone as `use` grows
    for place, name in enumerate(used, start=1):
        roles[name] = VALIDATION if place % config.folds == fold else TRAIN
    return roles


def split_adaptation(
    shards: Sequence[ArtifactRef],
    heldout: Sequence[ArtifactRef],
    config: SplitConfig,
    seed: int,
    runtime: Runtime,
    fold: int = 0,
) -> ArtifactRef:
    """Divide the adaptation set by document; one Parquet file a role.

    Args:
        shards: the adaptation set's shards.
        heldout: shards of documents that are for the evaluation only; may be empty.
        config: the shares.
        seed: decides which documents go where.
        runtime: where artifacts are kept.
        fold: which part of the documents that are not held out validates, from 0.

    Raises:
        InputError: too few documents, one of them is in both sets, or an id occurs twice.
    """
    store = ArtifactStore(runtime.root)
    own, other = parts_of(store, shards), parts_of(store, heldout)
    if heldout:
        config = config.model_copy(update={"test": 0.0})

    def build(folder: Path) -> Built:
        table = _read(store, own)
        test_only = _read(store, other)
        names = pa.concat_tables([table, test_only])
        ids, sources = names["example_id"].to_pylist(), names["source"].to_pylist()
        refuse_repeated(list(zip(ids, sources, strict=True)))
        roles = assign_roles(table["document"].to_pylist(), config, seed, fold)
        refuse_common(roles, test_only["document"].to_pylist())
        role_column = pa.array([roles[name] for name in table["document"].to_pylist()])
        facts = {}
        for role in ROLES:
            rows = table.filter(pc.equal(role_column, role))
            if role == TEST:
                rows = pa.concat_tables([rows, test_only])
            facts[role] = {
                "rows": rows.num_rows,
                "documents": len(set(rows["document"].to_pylist())),
            }
            write_table(rows, folder / f"{role}.parquet")
        refuse_no_test(facts[TEST]["rows"])
        return Built(rows=table.num_rows + test_only.num_rows, facts=facts)

    return store.produce(
        STAGE,
        STAGE_VERSION,
        config.model_dump(mode="json") | {"seed": seed} | ({"fold": fold} if fold else {}),
        {"parts": [p.sha256 for p in own], "heldout": [p.sha256 for p in other]},
        build,
    )


def _read(store: ArtifactStore, parts: Sequence[Part]) -> pa.Table:
    tables = [read_table(store.folder(p.shards) / p.name) for p in parts]
    return pa.concat_tables([EXAMPLE_SCHEMA.empty_table(), *tables])


def refuse_repeated(names: Sequence[tuple[str, str]]) -> None:
    """Raise an InputError if an id occurs twice.

    Args:
        names: id and source of each row of both sets.
    """
    counts = Counter(example_id for example_id, _ in names)
    if repeated := [example_id for example_id, count in counts.items() if count > 1]:
        sources = dict.fromkeys(source for name, source in names if name == repeated[0])
        raise InputError(
            f"expected each id once, {repeated[0]!r} and {len(repeated) - 1} more "
            f"occur several times, in {' and '.join(sources)}",
            where="adaptation and heldout",
            remedy="make the ids unique; where file names make them, give each source a name",
        )


def refuse_common(documents: Collection[str], heldout: Collection[str]) -> None:
    """Raise an InputError if a document is in both sets."""
    if common := sorted(set(documents) & set(heldout)):
        raise InputError(
            f"document {common[0]!r} and {len(common) - 1} more are in both sets",
            where="adaptation and heldout",
            remedy="remove them from one: held-out documents must not be trained on",
        )


def refuse_no_test(held_out: float) -> None:
    """Raise an InputError if nothing is held out, by rows or by share."""
    if not held_out:
        raise InputError(
            "expected held-out documents for the evaluation, got none",
            where="split.test",
            remedy="raise split.test above 0 or give heldout",
        )


def read_role(store: ArtifactStore, adaptation: ArtifactRef, role: str) -> list[Example]:
    """Return the examples of one role, in the order of the source."""
    return table_to_examples(read_table(store.folder(adaptation) / f"{role}.parquet"))


def role_digest(store: ArtifactStore, adaptation: ArtifactRef, role: str) -> str:
    """Return a digest of one role's rows, so that what reads only them depends only on them."""
    files = {f.path: f.sha256 for f in store.manifest(adaptation).files}
    return files[f"{role}.parquet"]
