"""The adaptation set and its split into training, validation and test documents."""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from albat_core.errors import InputError
from albat_core.measures.copies import SAME_COLOURS, first_pictures, same_documents
from albat_core.pictures import picture_colours
from albat_core.records.examples import (
    EXAMPLE_SCHEMA,
    Example,
    example_content,
    table_to_examples,
)
from albat_core.records.shards import Part, parts_of
from albat_core.records.splits import (
    ROLES,
    STAGE,
    TEST,
    TRAIN,
    UNUSED,
    VALIDATION,
    carried_roles,
    rank_of,
    read_role,
)
from albat_core.records.tables import read_table, write_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

STAGE_VERSION = 7
_NEARLY = 0.8  # Jaccard similarity of runs of words from which on rows are the same


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
    documents: Sequence[str],
    config: SplitConfig,
    seed: int,
    fold: int | None = 0,
    known: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the role of each distinct document; ``fold`` of ``config.folds`` validates.

    Documents are ordered by a hash, so that the documents of a smaller ``use`` are among those of a
    larger one.

    Args:
        documents: of the adaptation set.
        config: the shares.
        seed: of the order.
        fold: which part of the documents that are not held out validates, from 0; None: none does,
            all are trained on.
        known: roles that documents have already in fold 0 and keep there; new ones come after them
            in the order, and what was not used after these: it is where ``config.use`` wants more.
            What is held out in fold 0 is held out in all. Where no document is left that validated,
            one does that is new, or had been trained on.

    Raises:
        InputError: there are fewer documents than the split needs.
    """

    def order(name: str) -> bytes:
        return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()

    present = set(documents)
    kept = {name: role for name, role in (known or {}).items() if name in present}
    ranked = sorted(present - kept.keys(), key=order)
    tests = max(math.ceil(config.test * len(present)), 1) if config.test > 0 else 0
    tests = max(tests - list(kept.values()).count(TEST), 0)
    rest = ranked[tests:]
    before = sum(role in (TRAIN, VALIDATION) for role in kept.values())
    rest += sorted((name for name, role in kept.items() if role == UNUSED), key=order)
    wanted = max(round(config.use * (before + len(rest))), 1)
    used = rest[: max(wanted - before, 0)]
    if before + len(used) < config.folds:
        raise InputError(
            f"expected at least {config.folds} documents to train and validate on "
            f"(split.folds), got {before + len(used)} of {len(present)}",
            where="adaptation",
            remedy=(f"set split.folds to {there}, or " if (there := before + len(used)) > 1 else "")
            + "give more documents, or raise split.use where it is below 1; rows of one document "
            "(document_column) and documents that repeat one another count once",
        )
    roles = kept | dict.fromkeys(ranked[:tests], TEST)
    roles |= dict.fromkeys(rest[len(used) :], UNUSED)
    # every folds-th validates: a document's role depends on its place alone as `use` grows
    dealt = dict(enumerate(used, start=before + 1))
    if fold != 0:
        every = {*used, *(name for name, role in kept.items() if role in (TRAIN, VALIDATION))}
        dealt = dict(enumerate(sorted(every, key=order), start=1))
    for place, name in dealt.items():
        roles[name] = VALIDATION if place % config.folds == fold else TRAIN
    if fold == 0 and VALIDATION not in roles.values():  # those that did are gone
        trained = sorted((name for name, role in roles.items() if role == TRAIN), key=order)
        new = [name for name in trained if name not in kept]
        roles[(new or trained)[0]] = VALIDATION
    return roles


def split_adaptation(
    shards: Sequence[ArtifactRef],
    heldout: Sequence[ArtifactRef],
    config: SplitConfig,
    seed: int,
    runtime: Runtime,
    fold: int | None = 0,
    previous: ArtifactRef | None = None,
) -> ArtifactRef:
    """Divide the adaptation set by document; one Parquet file a role.

    Args:
        shards: the adaptation set's shards.
        heldout: shards of documents that are for the evaluation only; may be empty.
        config: the shares.
        seed: decides which documents go where.
        runtime: where artifacts are kept.
        fold: which part of the documents that are not held out validates, from 0; None: none.
        previous: an earlier split of fold 0, whose documents keep their roles.

    Documents whose rows are the same, or nearly so, are one document, under the name of the first.
    The manifest's facts: rows and documents by role; ``joined_documents`` have the name of another
    now; ``documents_held_out_too`` repeat one of ``heldout`` and are not used.

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
        both = pa.concat_tables([test_only, table])
        ids, sources = both["example_id"].to_pylist(), both["source"].to_pylist()
        refuse_repeated(list(zip(ids, sources, strict=True)))
        refuse_common(table["document"].to_pylist(), test_only["document"].to_pylist())
        examples = table_to_examples(both)
        own_examples = examples[test_only.num_rows :]
        earlier = _earlier_rows(store, previous) if previous else []
        known = carried_roles(earlier, own_examples) if earlier else {}
        # who joins another document takes its name: what has a role keeps it
        ranks = [-1] * test_only.num_rows + [rank_of(known.get(e.document)) for e in own_examples]
        order = sorted(range(len(examples)), key=ranks.__getitem__)
        ordered = [examples[n] for n in order]
        same = same_contents([e.document for e in ordered], shown_contents(ordered))
        table, test_only = _renamed(table, same), _renamed(test_only, same)
        facts: dict[str, Any] = {"joined_documents": sum(n != s for n, s in same.items())}
        documents = table["document"].to_pylist()
        repeated = set(documents) & set(test_only["document"].to_pylist())
        facts["documents_held_out_too"] = len(repeated)
        roles = assign_roles(
            [name for name in documents if name not in repeated],
            config,
            seed,
            fold,
            known,
        ) | dict.fromkeys(repeated, UNUSED)
        role_column = pa.array([roles[name] for name in documents])
        if previous:
            seen = {row.digest() for _, row in earlier}
            facts["new_rows"] = sum(row.digest() not in seen for row in own_examples)
            facts["own_rows"] = len(own_examples)
        for role in ROLES:
            rows = table.filter(pc.equal(role_column, role))
            if role == TEST:
                rows = pa.concat_tables([rows, test_only])
            facts[role] = {
                "rows": rows.num_rows,
                "documents": len(set(rows["document"].to_pylist())),
            }
            write_table(rows, folder / f"{role}.parquet")
        if previous and not facts[TEST]["rows"]:
            raise InputError(
                "expected held-out documents, all that the earlier selection held out are gone: "
                "those that are left may have trained its surrogate",
                where="adaptation",
                remedy="run `albat run` with this configuration, which divides the documents anew; "
                "later selections go on from there",
            )
        refuse_no_test(facts[TEST]["rows"])
        return Built(rows=table.num_rows + test_only.num_rows, facts=facts)

    return store.produce(
        STAGE,
        STAGE_VERSION,
        config.settings(seed=seed, fold=fold),
        {"parts": [p.sha256 for p in own], "heldout": [p.sha256 for p in other]}
        | ({"previous": previous.key} if previous else {}),
        build,
    )


def same_contents(documents: Sequence[str], contents: Sequence[str]) -> dict[str, str]:
    """Return for each document the first one that it is the same as, or nearly so.

    Args:
        documents: (n,) that each row is a part of, held-out ones first.
        contents: (n,) of the rows, see ``shown_contents``.
    """
    return same_documents(documents, contents, _NEARLY)


def shown_contents(examples: Sequence[Example]) -> list[str]:
    """Return the contents (n,) of rows, where a picture has that of the first that it repeats."""
    contents = [example_content(example) for example in examples]
    pictures = [(n, e.image) for n, e in enumerate(examples) if e.image is not None]
    if pictures:
        colours = np.stack([picture_colours(png) for _, png in pictures])
        for (place, _), first in zip(pictures, first_pictures(colours, SAME_COLOURS), strict=True):
            contents[place] = contents[pictures[first][0]]
    return contents


def _renamed(rows: pa.Table, names: Mapping[str, str]) -> pa.Table:
    """Return rows whose documents have other names."""
    column = rows.schema.get_field_index("document")
    renamed = pa.array([names[name] for name in rows["document"].to_pylist()], pa.string())
    return rows.set_column(column, rows.schema.field("document"), renamed)


def _earlier_rows(store: ArtifactStore, split: ArtifactRef) -> list[tuple[str, Example]]:
    """Return the rows of a split, each with its role."""
    return [(role, row) for role in ROLES for row in read_role(store, split, role)]


def _read(store: ArtifactStore, parts: Sequence[Part]) -> pa.Table:
    tables = [read_table(store.file(p.shards, p.name)) for p in parts]
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
            remedy="make the ids unique, or drop id_column: rows are then named by file and row; "
            "where file names make them, give each source a name",
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
