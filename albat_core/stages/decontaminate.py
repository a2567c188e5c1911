"""Decontamination: candidates that copy adaptation rows, or each other, are left out."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from albat_core.errors import InputError
from albat_core.measures.copies import (
    SAME_COLOURS,
    Mask,
    Runs,
    copies_of,
    first_pictures,
    pictures_of,
    repeats_before,
    said_in,
    telling_runs,
    word_runs,
)
from albat_core.pictures import picture_colours
from albat_core.progress import track
from albat_core.records.candidates import (
    NEIGHBOUR_SCHEMA,
    STAGE,
    Candidates,
    read_candidates,
    read_neighbours,
    write_candidates,
)
from albat_core.records.examples import Example, example_content, example_text
from albat_core.records.indexes import CorpusIndex, load_index
from albat_core.records.splits import TEST, TRAIN, VALIDATION, read_role, role_digest
from albat_core.records.vectors import load_queries
from albat_core.records.words import words_of
from albat_core.search.index import VectorIndex
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

STAGE_VERSION = 7
_HELD_OUT = (TEST, VALIDATION)
_SHORTEST = 8  # words; GPT-3 looked for no shorter run, they coincide by chance
_FIRST_SEARCH = 32  # neighbours of a held-out row
_QUERIES = 64  # searched at once; each may have the whole corpus as neighbours
_ROUNDING = 1e-5  # of a float32 dot product, so that a similarity of 1 finds equal vectors


class DecontaminationConfig(StageConfig):
    """Which candidates count as copies, of adaptation rows or of each other."""

    enabled: bool = True
    """Leave out candidates that repeat an adaptation row, or another candidate."""
    ngram: int = Field(13, ge=5)
    """Consecutive words that a candidate and a held-out row must have in common for it to be a
    copy, whatever their case and punctuation; of a shorter held-out text (8 words at least) all.
    Captions of pictures are not compared. A candidate that says nothing but what held-out rows say
    is a copy anyway: see `copies` and `pictures`."""
    common: int = Field(10, ge=1)
    """Consecutive words that more documents of the candidates contain are boilerplate, no copy; for
    `copies`, more rows that are not the same: a template's, unless a row says nothing else."""
    similarity: float | None = Field(0.95, gt=0, le=1)
    """Cosine of whitened embeddings from which on a candidate is a copy of a held-out row, and a
    picture of one that is trained on, in (0, 1]; none: embeddings are not compared."""
    copies: float | None = Field(0.8, gt=0, le=1)
    """Share of its runs of five words from which on a candidate repeats a row that is trained on,
    as a whole or as a part, nearly another candidate, or nothing but held-out rows, in (0, 1];
    pictures have to be the same file, or see `pictures`. None: such copies stay, whatever
    `pictures` says."""
    pictures: float | None = Field(SAME_COLOURS, ge=0, le=1)
    """Largest difference of a colour, in any of 8 x 8 fields, up to which a picture nearly repeats
    a held-out one or another candidate, as a share of its range, in [0, 1]: a picture saved again,
    smaller or a little brighter is a copy, one with another skin tone or shape is none. None:
    pictures have to be the same file."""


class SharedRuns:
    """Which rows share a run of n words with a held-out text (arXiv 2005.14165, appendix C).

    Words are those of ``words_of``. Of a held-out text of 8 to n - 1 words all must occur
    in a row; a shorter one is not looked for.

    Args:
        heldout: texts that no row may repeat.
        n: words of a run.
        common: a run in more documents of the rows than this is boilerplate and ignored.
    """

    def __init__(self, heldout: Sequence[str], n: int, common: int) -> None:
        self._sought = {run for text in heldout for run in _sought_runs(words_of(text), n)}
        self._anchor, self._common = min(n, _SHORTEST), common
        self._lengths: dict[str, set[int]] = defaultdict(set)  # of the runs that begin so
        for run in self._sought:
            words = run.split()
            self._lengths[" ".join(words[: self._anchor])].add(len(words))
        self._found: list[frozenset[str]] = []
        self._documents: dict[str, set[str]] = defaultdict(set)

    def look(self, text: str, document: str) -> None:
        """Look at the next row.

        Args:
            text: of the row.
            document: what it is a part of.
        """
        found = frozenset[str]()
        if self._sought:
            runs = _runs_from(words_of(text), self._anchor, self._lengths)
            found = frozenset(self._sought.intersection(runs))
        for run in found:
            self._documents[run].add(document)
        self._found.append(found)

    def mask(self) -> Mask:
        """Return which of the rows that were looked at share one, (n,) bool."""
        telling = {run for run, names in self._documents.items() if len(names) <= self._common}
        return np.array([not runs.isdisjoint(telling) for runs in self._found], dtype=np.bool_)


def _sought_runs(words: Sequence[str], n: int) -> Iterator[str]:
    """Yield a held-out text's runs of n words; all of it where it is shorter, if long enough."""
    if _SHORTEST <= len(words) < n:
        yield " ".join(words)
    for start in range(len(words) - n + 1):
        yield " ".join(words[start : start + n])


def _runs_from(words: Sequence[str], anchor: int, lengths: Mapping[str, set[int]]) -> Iterator[str]:
    """Yield the runs of a row that begin as a sought one does and are as long."""
    for start in range(len(words) - anchor + 1):
        for length in lengths.get(" ".join(words[start : start + anchor]), ()):
            yield " ".join(words[start : start + length])


def similar_positions(
    index: VectorIndex, queries: NDArray[np.float32], similarity: float, rows: int
) -> NDArray[np.int64]:
    """Return the rows of an index whose similarity to any query is at least ``similarity``.

    k is multiplied until the last neighbour is less similar or all rows are seen, so that
    what the index finds is complete; `ivf` and `ivfpq` find and measure approximately.

    Args:
        index: the corpus; on the CPU, where FAISS sets no limit to k (2048 on a GPU).
        queries: (n, d) float32 projected vectors.
        similarity: least cosine, up to rounding of 1e-5.
        rows: of the index.

    Returns:
        distinct positions (m,) int64, ascending.
    """
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(queries), _QUERIES):
        pending, k = queries[start : start + _QUERIES], min(_FIRST_SEARCH, rows)
        while len(pending):
            similarities, positions = index.search(pending, k)
            close = (similarities >= similarity - _ROUNDING) & (positions >= 0)
            found.append(positions[close])
            pending = pending[close[:, -1]] if k < rows else pending[:0]
            k = min(4 * k, rows)
    return np.unique(np.concatenate(found))


def decontaminate(
    candidates: ArtifactRef,
    heldout_queries: ArtifactRef | None,
    index: ArtifactRef | None,
    adaptation: ArtifactRef,
    config: DecontaminationConfig,
    runtime: Runtime,
    queries: ArtifactRef | None = None,
) -> ArtifactRef:
    """Leave out the candidates that repeat an adaptation row, or a candidate before them.

    The result is read as candidates are. The manifest's facts: ``examined`` candidates, of which
    ``excluded_ngram`` share words with a held-out row or repeat it, a picture by its file or its
    colours, ``excluded_similar`` have its embedding,
    ``excluded_trained`` repeat a row that is trained on, ``excluded_repeated`` nearly repeat
    another candidate, and ``excluded`` any of these.

    Args:
        candidates: found for the adaptation examples.
        heldout_queries: embeddings of the held-out rows; None: they are not compared.
        index: in whose space they are compared; None: no embeddings are.
        adaptation: the set that was split.
        config: what counts as a copy.
        runtime: where artifacts are kept.
        queries: embeddings of the rows that are trained on, compared where they are pictures.

    Raises:
        InputError: every candidate is a copy.
        DimensionMismatchError: held-out rows and corpus were embedded by different backbones.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        table = read_candidates(store, candidates)
        pool = Candidates(store, table)
        heldout = [e for role in _HELD_OUT for e in read_role(store, adaptation, role)]
        trained = read_role(store, adaptation, TRAIN)
        pictures = any(example.image is not None for example in trained)
        sought = [_compared_text(row) for row in heldout]
        shared = SharedRuns(sought, config.ngram, config.common)
        contents, colours = list[Runs](), dict[int, NDArray[np.uint8]]()
        if any(sought) or config.copies is not None:  # else the files of pictures are not read
            contents, colours = _look(pool, table.num_rows, shared, config)
        repeated, similar, own, again = np.zeros((4, table.num_rows), dtype=np.bool_)
        if any(sought):
            repeated = shared.mask()
        if config.copies is not None:
            own_runs, heldout_runs = _runs_of(trained), _runs_of(heldout)
            telling = telling_runs([*own_runs, *contents], config.common)
            own_runs, contents = telling[: len(own_runs)], telling[len(own_runs) :]
            # what counts as boilerplate is a copy still where a row says nothing else
            repeated |= said_in(contents, heldout_runs, config.copies)
            repeated[[*colours]] |= _seen_in(colours, _colours(heldout, config), config)
        if config.similarity is not None and index is not None:
            # on the CPU: on a GPU, FAISS finds no more than 2048 neighbours
            corpus = load_index(store, index, runtime.model_copy(update={"device": "cpu"}))

            def alike(sought: ArtifactRef, similarity: float) -> Mask:
                vectors = corpus.space.project(load_queries(store, sought)[1])
                close = similar_positions(corpus.index, vectors, similarity, corpus.rows)
                return _among(table, corpus, close)

            if heldout_queries is not None:
                similar = alike(heldout_queries, config.similarity)
            if queries is not None and pictures:
                own = alike(queries, config.similarity)
        if config.copies is not None:
            own |= copies_of(contents, own_runs, config.copies)
            left = np.flatnonzero(~(repeated | similar | own))
            again[left] = repeats_before([contents[place] for place in left], config.copies)
            seen = [place for place in left.tolist() if place in colours]
            if seen and config.pictures is not None:
                alone = first_pictures(np.stack([colours[p] for p in seen]), config.pictures)
                again[seen] = alone != np.arange(len(seen))
        excluded = repeated | similar | own | again
        if excluded.all():
            raise InputError(
                f"expected candidates that are no copies, got none among {table.num_rows:,}: of "
                f"held-out rows {repeated.sum():,} share words and {similar.sum():,} are alike, "
                f"{own.sum():,} repeat rows that are trained on",
                where=str(candidates),
                remedy="take the adaptation documents out of the corpus, or raise "
                "decontamination.ngram, decontamination.similarity and decontamination.copies",
            )
        pairs = read_neighbours(store, candidates)
        kept = table.filter(pa.array(~excluded))
        write_candidates(folder, kept, _renumbered(pairs, ~excluded))
        return Built(
            rows=int((~excluded).sum()),
            facts={
                "examined": table.num_rows,
                "excluded_ngram": int(repeated.sum()),
                "excluded_similar": int(similar.sum()),
                "excluded_trained": int(own.sum()),
                "excluded_repeated": int(again.sum()),
                "excluded": int(excluded.sum()),
            },
        )

    return store.produce(
        STAGE,
        STAGE_VERSION,
        config.settings(without={"enabled"}),
        {
            "candidates": candidates.key,
            "heldout": [role_digest(store, adaptation, role) for role in _HELD_OUT],
            "trained": role_digest(store, adaptation, TRAIN),
            "heldout_queries": heldout_queries.key if heldout_queries else None,
            "queries": queries.key if queries else None,
            "index": index.key if index else None,
        },
        build,
    )


def _compared_text(example: Example) -> str:
    """Return an example's text; none of a picture, since captions are often the same."""
    return example_text(example) if example.image is None else ""


def _look(
    pool: Candidates, rows: int, shared: SharedRuns, config: DecontaminationConfig
) -> tuple[list[Runs], dict[int, NDArray[np.uint8]]]:
    """Look at candidates, a block at a time; return all runs and colours, by place."""
    contents, colours = list[Runs](), dict[int, NDArray[np.uint8]]()
    with track("read candidates", rows, "rows") as advance:
        for block in pool.blocks():
            colours |= _colours(block, config, start=len(contents))
            for row in block:
                shared.look(_compared_text(row), row.document)
            if config.copies is not None:
                contents += _runs_of(block)
            advance(len(block))
            del block  # before the next is read
    return contents, colours


def _runs_of(examples: Sequence[Example]) -> list[Runs]:
    """Return the runs of words of examples' contents."""
    return [word_runs(example_content(example)) for example in examples]


def _colours(
    examples: Sequence[Example], config: DecontaminationConfig, start: int = 0
) -> dict[int, NDArray[np.uint8]]:
    """Return the colours of the pictures among examples, by place, where they are compared."""
    if config.copies is None or config.pictures is None:
        return {}
    shown = ((place, example.image) for place, example in enumerate(examples, start))
    return {place: picture_colours(png) for place, png in shown if png is not None}


def _seen_in(
    colours: Mapping[int, NDArray[np.uint8]],
    heldout: Mapping[int, NDArray[np.uint8]],
    config: DecontaminationConfig,
) -> Mask:
    """Tell which candidates' pictures nearly repeat one that is held out, in their order."""
    if config.pictures is None or not colours or not heldout:
        return np.zeros(len(colours), np.bool_)
    shown = np.stack([*colours.values()]), np.stack([*heldout.values()])
    return pictures_of(*shown, config.pictures)


def _among(candidates: pa.Table, corpus: CorpusIndex, positions: NDArray[np.int64]) -> Mask:
    """Tell which candidates are at positions of the index (n,)."""
    places = set(zip(*corpus.locate(positions.tolist()), strict=True))
    shards, rows = candidates["shard"].to_pylist(), candidates["row"].to_pylist()
    return np.array([p in places for p in zip(shards, rows, strict=True)], dtype=np.bool_)


def _renumbered(pairs: pa.Table, kept: Mask) -> pa.Table:
    """Return the neighbour pairs of kept candidates, which are numbered anew in their order."""
    candidate = pairs["candidate"].to_numpy()
    alive = kept[candidate]
    number = (np.cumsum(kept) - 1)[candidate[alive]]
    pairs = pairs.filter(pa.array(alive))
    column = NEIGHBOUR_SCHEMA.get_field_index("candidate")
    return pairs.set_column(column, NEIGHBOUR_SCHEMA.field("candidate"), pa.array(number))
