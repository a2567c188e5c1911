"""The corpus rows likest the adaptation data by their words, kept as shards to be looked at."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from albat_core.errors import InputError
from albat_core.records.candidates import Candidates, read_candidates
from albat_core.records.examples import Example, example_text, examples_to_table
from albat_core.records.shards import STAGE, parts_of
from albat_core.records.splits import TRAIN, read_role, role_digest
from albat_core.records.tables import read_table, write_table
from albat_core.scorers.base import Scores
from albat_core.scorers.ngram import importance
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

STAGE_VERSION = 2


class PrefilterConfig(StageConfig):
    """Which corpus rows are looked at: chosen by their words, before any is embedded."""

    share: float = Field(1.0, gt=0, le=1)
    """Share of the corpus rows that is kept, in (0, 1]: those whose hashed words and word pairs are
    likest the adaptation data's (the score of `ngram`, by the row's length). Only they are embedded
    and searched, or scored where `retrieval.pool` is `corpus`; 1: all rows are."""


def likeness(rows: Candidates, targets: Sequence[Example]) -> Scores:
    """Return the log importance weight of each row (arXiv 2302.03169) per token, (n,) nats.

    The weight is a total: by it long rows come before short ones, and fewer of the neighbours that
    embeddings find are among the first (docs/benchmarks.md). 0 for a row without words.

    Args:
        rows: of the corpus, read once.
        targets: of the adaptation data.
    """
    return importance(rows, targets, per_token=True)


def prefilter(
    corpus: ArtifactRef,
    adaptation: ArtifactRef,
    config: PrefilterConfig,
    runtime: Runtime,
    earlier: Sequence[ArtifactRef] = (),
) -> ArtifactRef:
    """Keep the corpus rows likest the adaptation data by their words, as shards.

    Args:
        corpus: all its rows, as candidates.
        adaptation: whose training rows they are held against.
        config: how many are kept.
        runtime: where artifacts are kept.
        earlier: what was kept of the same corpus for earlier adaptation data. It stays, since it
            may be embedded already: the result has those of the rows kept now that are not there.

    Raises:
        InputError: no adaptation row has a word.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        targets = read_role(store, adaptation, TRAIN)
        if not any(example_text(row).strip() for row in targets):
            raise InputError(
                "expected words in the adaptation examples to hold corpus rows against, got none",
                where="prefilter.share",
                remedy="give the examples text or captions, or set prefilter.share to 1",
            )
        table = read_candidates(store, corpus)
        scores = likeness(Candidates(store, table), targets)
        best = np.argsort(-scores, kind="stable")[: math.ceil(config.share * len(scores))]
        known: set[str] = set()
        for part in parts_of(store, earlier):
            path = store.file(part.shards, part.name)
            known.update(read_table(path, ["example_id"])["example_id"].to_pylist())
        names = table["example_id"].to_pylist()
        new = np.array([row for row in np.sort(best) if names[row] not in known], np.intp)
        parts: list[dict[str, Any]] = []
        sources: Counter[str] = Counter()
        for rows in Candidates(store, table).take(new).blocks():
            name = f"part-{len(parts):05d}.parquet"
            write_table(examples_to_table(rows), folder / name)
            parts.append({"name": name, "rows": len(rows)})
            sources.update(row.source for row in rows)
            del rows  # before the next are read
        kept = len(known) + len(new)
        return Built(
            rows=len(new),
            facts={
                "files": ["all of the corpus"],
                "rows": len(names),
                "parts": parts,
                "sources": dict(sorted(sources.items())),
                "prefiltered_rows": len(names) - kept,
            },
        )

    return store.produce(
        STAGE,
        STAGE_VERSION,
        {"prefilter": config.settings()},
        {"corpus": corpus.key, "adaptation": role_digest(store, adaptation, TRAIN)}
        | ({"earlier": [ref.key for ref in earlier]} if earlier else {}),
        build,
    )
