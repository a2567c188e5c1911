"""Adopted vectors: embeddings that were computed elsewhere, matched by id and checked."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from albat_core.errors import DimensionMismatchError, InputError
from albat_core.progress import track
from albat_core.records.adopted import (
    DIGESTS,
    FLAWS,
    IDS,
    MATCH_STAGE,
    NOT_FINITE,
    PLACES,
    STAGE,
    ZERO,
    digests_of,
    ids_at,
    load_each,
    starts_of,
    take_vectors,
)
from albat_core.records.shards import Part, part_path
from albat_core.records.splits import TRAIN, read_role, role_digest
from albat_core.records.tables import read_table, write_table
from albat_core.records.vectors import QUERY_IDS, QUERY_STAGE, VECTORS, EmbeddedPart
from albat_core.records.vectors import STAGE as EMBEDDINGS
from albat_core.sources.vectors import VectorFile, count_vectors, read_vectors, row_of_piece
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built, artifact_ref
from albat_core.store.stage import Runtime

STAGE_VERSION = 1  # bump when equal inputs would give different output

_NAMED = 3  # ids in an error
_AT_ONCE = 1 << 16  # ids looked for together


def keep_vectors(file: VectorFile, runtime: Runtime) -> ArtifactRef:
    """Read a file of vectors once and keep it as it is looked into: by row, beside its ids.

    Vectors stay in float16 where they come so, else they are float32. A block of some megabytes is
    in memory, and 17 bytes for each vector.

    Raises:
        InputError: the file cannot be used.
        DimensionMismatchError: its vectors differ in length.
    """

    def build(folder: Path) -> Built:
        rows, start = count_vectors(file), 0
        digests, flaws = np.empty(rows, "S16"), np.zeros(rows, np.uint8)
        kept: NDArray[np.floating] = np.empty((0, 0), np.float32)
        schema = pa.schema([("id", pa.string())])
        with (
            pq.ParquetWriter(folder / IDS, schema, compression="zstd") as writer,
            track(f"read {file.name}", rows, "vectors") as advance,
        ):
            for ids, vectors in read_vectors(file):
                if not start:
                    shape = (rows, vectors.shape[1])
                    kept = np.lib.format.open_memmap(folder / VECTORS, "w+", vectors.dtype, shape)
                end = start + len(ids)
                kept[start:end] = vectors
                digests[start:end] = digests_of(ids)
                flaws[start:end][~vectors.any(axis=1)] = ZERO
                flaws[start:end][~np.isfinite(vectors).all(axis=1)] = NOT_FINITE
                writer.write_table(pa.table({"id": ids}, schema=schema))
                start = end
                advance(len(ids))
        if not start:
            raise InputError("expected vectors, got none", where=file.uri, remedy="write it again")
        np.save(folder / DIGESTS, digests)
        np.save(folder / FLAWS, flaws)
        return Built(rows=rows, facts={"file": file.uri, "dimension": kept.shape[1]})

    inputs = {"file": file.fingerprint}
    return ArtifactStore(runtime.root).produce(STAGE, STAGE_VERSION, {}, inputs, build)


class _Directory:
    """Finds the vector of an id, of all files; some 60 bytes are held for each.

    Args:
        store: where artifacts are.
        refs: of ``keep_vectors``.

    Raises:
        DimensionMismatchError: files differ in it.
    """

    def __init__(self, store: ArtifactStore, refs: Sequence[ArtifactRef]) -> None:
        self._store, self._refs = store, refs
        manifests = store.manifests(refs)
        first = manifests[0].facts
        self.dimension = int(first["dimension"])
        self.starts = starts_of([manifest.rows for manifest in manifests])
        for other in (manifest.facts for manifest in manifests):
            if other["dimension"] != self.dimension:
                raise DimensionMismatchError(
                    f"expected vectors of one dimension, got d={self.dimension} in "
                    f"{first['file']} and d={other['dimension']} in {other['file']}",
                    where="embedding.vectors",
                    remedy="write vectors of one encoder",
                )
        digests = load_each(store, refs, DIGESTS)
        self._order = np.argsort(digests, kind="stable")
        self._sorted = digests[self._order]
        self._flaws = load_each(store, refs, FLAWS)
        self._asked = np.zeros(len(digests) + 1, np.int32)  # +1 where ids begin, -1 where they end
        self._found: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self.rows = 0

    def find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the places (n,) of vectors by id, -1 for none, and note what is wrong with them.

        A piece of a row that was cut has the vector of the row, unless its own id has one.
        """
        first, end = self._search(ids)
        pieces = [
            n for n in np.flatnonzero(first == end).tolist() if row_of_piece(ids[n]) != ids[n]
        ]
        if pieces:
            first[pieces], end[pieces] = self._search([row_of_piece(ids[n]) for n in pieces])
        hit = first < end
        places = np.full(len(ids), -1, np.int64)
        places[hit] = self._order[first[hit]]
        flaws = np.where(hit, self._flaws[places], 0)
        self._note("have no vector", ids, ~hit)
        self._note("have several vectors", ids, end - first > 1)
        self._note("have a vector that is not finite", ids, flaws == NOT_FINITE)
        self._note("have a vector of zeros alone", ids, flaws == ZERO)
        np.add.at(self._asked, first[hit], 1)
        np.add.at(self._asked, end[hit], -1)
        self.rows += len(ids)
        return places

    def _search(self, ids: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where each id begins and ends among the sorted ones; at one place: it is none."""
        wanted = digests_of(ids)
        first, end = (np.searchsorted(self._sorted, wanted, side) for side in ("left", "right"))
        return first, end

    def _note(self, what: str, ids: Sequence[str], those: NDArray[np.bool_]) -> None:
        self._counts[what] = self._counts.get(what, 0) + int(those.sum())
        named = self._found.setdefault(what, [])
        named += [ids[n] for n in np.flatnonzero(those)[: _NAMED - len(named)]]

    def unknown(self) -> tuple[int, list[str]]:
        """Return how many vectors no row has asked for, and ids of some."""
        places = np.sort(self._order[np.cumsum(self._asked[:-1]) == 0])
        some = places[:_NAMED]
        numbers = np.searchsorted(self.starts, some, side="right") - 1
        named = []
        for number in np.unique(numbers):
            rows = (some[numbers == number] - self.starts[number]).tolist()
            named += ids_at(self._store, self._refs[number], rows)
        return len(places), named

    def refuse(self, what: str) -> None:
        """Raise where rows that were looked for cannot be used.

        Args:
            what: the rows are of, as the setting is called.
        """
        wrong = {name: count for name, count in self._counts.items() if count}
        if not wrong:
            return
        said = [
            f"{count:,} {name} ({', '.join(map(repr, self._found[name]))}"
            f"{', ...' if count > len(self._found[name]) else ''})"
            for name, count in wrong.items()
        ]
        count, some = self.unknown()
        remedy = "write those vectors anew, one for each row"
        if wrong.get("have no vector") and count:
            remedy += f"; {count:,} vectors have ids that no row has ({', '.join(map(repr, some))})"
            remedy += ": where they are written otherwise, name the same column in both"
        raise InputError(
            f"expected one vector for each of {self.rows:,} rows: {'; '.join(said)}",
            where=f"embedding.vectors.{what}",
            remedy=remedy,
        )

    def take(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors (n, d) at some places."""
        return take_vectors(self._store, dict(enumerate(self._refs)), self.starts, places)


def match_vectors(
    parts: Sequence[Part], vectors: Sequence[ArtifactRef], runtime: Runtime
) -> ArtifactRef:
    """Find the vector of each row of the corpus, and refuse rows without one, all at once.

    Vectors of other rows are passed over and counted.

    Args:
        parts: of the corpus.
        vectors: artifacts of ``keep_vectors``.
        runtime: where artifacts are kept.

    Raises:
        InputError: rows have none, several, or one that cannot be used.
        DimensionMismatchError: files of vectors differ in it.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        directory = _Directory(store, vectors)
        places: list[NDArray[np.int64]] = []
        with track("match vectors by id", sum(p.rows for p in parts), "rows") as advance:
            for some in _together(parts):
                ids = [name for part in some for name in _ids_of(store, part)]
                places.append(directory.find(ids))
                advance(len(ids))
        directory.refuse("corpus")
        every = np.concatenate([np.zeros(0, np.int64), *places])
        numbers = np.searchsorted(directory.starts, every, side="right") - 1
        ends = np.cumsum([part.rows for part in parts])[:-1]
        np.save(folder / PLACES, every)
        unknown, some_ids = directory.unknown()
        return Built(
            rows=len(every),
            facts={
                "unknown": unknown,
                "unknown_ids": some_ids,
                "files": [np.unique(its).tolist() for its in np.split(numbers, ends)],
                "file_rows": np.diff(directory.starts).tolist(),
            },
        )

    inputs = {
        "parts": [part.sha256 for part in parts],
        "vectors": [ref.key for ref in vectors],
    }
    return store.produce(MATCH_STAGE, STAGE_VERSION, {}, inputs, build)


def _together(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Yield parts whose ids are looked for together."""
    some: list[Part] = []
    for part in parts:
        some.append(part)
        if sum(each.rows for each in some) >= _AT_ONCE:
            yield some
            some = []
    if some:
        yield some


def _ids_of(store: ArtifactStore, part: Part) -> list[str]:
    table = read_table(part_path(store, part.address), ["example_id"])
    ids: list[str] = table["example_id"].to_pylist()
    return ids


def adopt_part(
    part: Part,
    label: str,
    start: int,
    matches: ArtifactRef,
    files: Mapping[int, ArtifactRef],
    runtime: Runtime,
) -> EmbeddedPart:
    """Take the embeddings of one part of the corpus from the files of vectors that have them.

    Keyed by the part and those files, so that more of either change nothing that is there.

    Args:
        part: of the corpus.
        label: names the progress line.
        start: rows of the parts before it.
        matches: of ``match_vectors``.
        files: artifacts of ``keep_vectors`` by number, those that the part's vectors are in.
        runtime: where artifacts are kept.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        every = np.load(store.file(matches, PLACES), mmap_mode="r", allow_pickle=False)
        places = np.asarray(every[start : start + part.rows])
        with track(f"take vectors of {label}", part.rows, "rows") as advance:
            starts = starts_of(store.manifest(matches).facts["file_rows"])
            vectors = take_vectors(store, files, starts, places)
            advance(part.rows)
        np.save(folder / VECTORS, vectors)
        return Built(rows=part.rows, facts={"dimension": vectors.shape[1]})

    ref = store.produce(EMBEDDINGS, STAGE_VERSION, {}, _inputs_of(part, files), build)
    return EmbeddedPart(part=part, embeddings=ref)


def find_adopted(
    parts: Sequence[Part], files: Sequence[Mapping[int, ArtifactRef]], runtime: Runtime
) -> list[EmbeddedPart | None]:
    """Return what ``adopt_part`` would find finished of each part, else None; all at once."""
    refs = [
        artifact_ref(EMBEDDINGS, STAGE_VERSION, {}, _inputs_of(part, its))
        for part, its in zip(parts, files, strict=True)
    ]
    found = zip(parts, ArtifactStore(runtime.root).reused(refs), strict=True)
    return [EmbeddedPart(part=part, embeddings=ref) if ref else None for part, ref in found]


def _inputs_of(part: Part, files: Mapping[int, ArtifactRef]) -> dict[str, Any]:
    return {"part": part.sha256, "vectors": [files[number].key for number in sorted(files)]}


def adopt_queries(
    adaptation: ArtifactRef,
    vectors: Sequence[ArtifactRef],
    runtime: Runtime,
    roles: Sequence[str] = (TRAIN,),
) -> ArtifactRef:
    """Take the embeddings of adaptation examples: those trained on, unless told otherwise.

    Args:
        adaptation: set, split by document.
        vectors: artifacts of ``keep_vectors``.
        runtime: where artifacts are kept.
        roles: of the examples.

    Raises:
        InputError: examples have none, several, or one that cannot be used.
        DimensionMismatchError: files of vectors differ in it.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        examples = [e for role in roles for e in read_role(store, adaptation, role)]
        ids = [example.example_id for example in examples]
        directory = _Directory(store, vectors)
        places = directory.find(ids)
        directory.refuse("adaptation")
        np.save(folder / VECTORS, directory.take(places))
        table = pa.table({"example_id": ids, "digest": [e.digest() for e in examples]})
        write_table(table, folder / QUERY_IDS)
        return Built(rows=len(ids), facts={"dimension": directory.dimension})

    inputs = {
        "rows": "/".join(role_digest(store, adaptation, role) for role in roles),
        "vectors": [ref.key for ref in vectors],
    }
    return store.produce(QUERY_STAGE, STAGE_VERSION, {}, inputs, build)
