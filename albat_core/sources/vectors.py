"""Embeddings that were computed elsewhere: files of ids and vectors, read in blocks."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from albat_core.errors import DimensionMismatchError, InputError
from albat_core.sources.config import Column
from albat_core.sources.formats import format_of
from albat_core.sources.formats.base import decoded_lines, kind_of, refuse_missing
from albat_core.sources.formats.nested import column_at, names_of, type_at
from albat_core.sources.readers import intact, readable, stream_rows
from albat_core.sources.rows import label_of, untold
from albat_core.store import fingerprints, storage
from albat_core.store.stage import StageConfig, canonical_json

_BLOCK_BYTES = 16 << 20  # of vectors in memory at once
_FEWEST = 16  # rows of a block, however long they are
_PIECE = re.compile(r"(.+)#\d+", re.DOTALL)
_KEPT = ("float16", "float32")  # others are brought to the latter


class VectorSource(StageConfig):
    """Files of vectors that were computed elsewhere, each with the id of its row."""

    path: str | tuple[str, ...] = ()
    """Parquet or `.npy` files, folders or globs, local or at any address that a corpus may have;
    none: vectors are computed here."""
    id_column: Column = "id"
    """Column with the id of each vector's row, as `id_column` of the rows gives it."""
    vector_column: Column = "embedding"
    """Column of Parquet with the vectors: lists of floats, or lists of a fixed size."""
    ids: str | tuple[str, ...] = ()
    """Files with the ids of `.npy` files, as many as those and in the same order: `.txt` with an id
    a line, or Parquet, JSON lines or CSV with `id_column`."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, str | Path) else value

    @property
    def paths(self) -> tuple[str, ...]:
        """All of ``path``; none where no vectors are given."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def places(self) -> str:
        """Where its vectors are, for errors."""
        return ", ".join(self.paths)


class VectorFile(BaseModel):
    """A file of vectors, and the file of their ids where that is another."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    ids: str | None = None
    fingerprint: str = ""
    """Digest of the contents of both, and of the columns that are read."""
    config: VectorSource

    @property
    def name(self) -> str:
        """Its name without the folders above."""
        return self.uri.rpartition("/")[2]


def find_vectors(source: VectorSource) -> list[VectorFile]:
    """Return the files of vectors that a source names, with fingerprints.

    Raises:
        InputError: a path is missing, holds no vectors, or files of ids are not as many.
    """
    files = locate_vectors(source)
    uris = [uri for file in files for uri in (file.uri, file.ids) if uri]
    prints = dict(zip(uris, fingerprints.fingerprints(uris), strict=True))
    for uri, content in prints.items():
        if not content:
            with readable(uri):
                prints[uri] = fingerprints.fingerprint(uri)
    found = []
    for file in files:
        contents = [prints[file.uri], prints.get(file.ids or "")]
        identity = canonical_json([contents, source.id_column, source.vector_column])
        content = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
        found.append(file.model_copy(update={"fingerprint": content}))
    return found


def locate_vectors(source: VectorSource) -> list[VectorFile]:
    """Return the files of vectors that a source names; no file is looked into.

    Raises:
        InputError: see ``find_vectors``.
    """
    uris = _listed(source.paths)
    if unknown := [uri for uri in uris if not uri.endswith((".npy", ".parquet"))]:
        raise InputError(
            f"expected vectors as .parquet or .npy, got {unknown[0].rpartition('/')[2]}",
            where=source.places,
            remedy="give a glob that names only files of vectors",
        )
    arrays = [uri for uri in uris if uri.endswith(".npy")]
    given = (source.ids,) if isinstance(source.ids, str) else source.ids
    ids = _listed(given) if arrays or given else []
    if len(ids) != len(arrays):
        raise InputError(
            f"expected a file of ids for each of {len(arrays)} .npy files, got {len(ids)}",
            where=source.places,
            remedy="name as many files in `ids`, which are taken in the order of their names"
            if arrays
            else "leave ids out: Parquet has them in id_column",
        )
    beside = dict(zip(arrays, ids, strict=True))
    return [VectorFile(uri=uri, ids=beside.get(uri), config=source) for uri in uris]


def _listed(paths: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for path in paths:
        with readable(path):
            listed = storage.list_files(path)
        if not listed:
            raise InputError("expected files, found none", where=path, remedy="check the path")
        found |= dict.fromkeys(sorted(listed, key=_by_number))
    return list(found)


def _by_number(uri: str) -> list[str | int]:
    """Return what sorts names with numbers by these: part_2 and part_2_ids before part_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", uri)]


def count_vectors(file: VectorFile) -> int:
    """Return how many vectors a file has, by its head or foot.

    Raises:
        InputError: it is no file of vectors.
    """
    with readable(file.uri), storage.open_binary(file.uri) as opened, intact(file.uri):
        if file.ids is not None:
            return _array_head(opened, file)[0]
        return int(_parquet(opened, file).metadata.num_rows)


Block = tuple[list[str], NDArray[np.floating[Any]]]
"""Ids, and as many vectors (n, d): float16 as they come so, else float32; all NaN for null."""


def read_vectors(file: VectorFile) -> Iterator[Block]:
    """Yield a file's ids and vectors in order, some megabytes at a time.

    Raises:
        InputError: the file is missing, damaged, lacks a column, or has no ids for its vectors.
        DimensionMismatchError: vectors differ in length.
    """
    with readable(file.uri), storage.open_binary(file.uri) as opened, intact(file.uri):
        yield from (_array_blocks if file.ids else _parquet_blocks)(opened, file)


def _parquet(opened: IO[bytes], file: VectorFile) -> Any:
    import pyarrow.parquet as pq

    head = opened.read(4)
    opened.seek(0)
    if head != b"PAR1":
        raise InputError(
            f"expected Parquet, found {kind_of(head)}",
            where=file.uri,
            remedy="write or copy it again",
        )
    parquet = pq.ParquetFile(opened, buffer_size=1 << 20, pre_buffer=False)
    wanted = {file.config.id_column: "id_column", file.config.vector_column: "vector_column"}
    refuse_missing(wanted, names_of(parquet.schema_arrow), file.uri)
    return parquet


def _parquet_blocks(opened: IO[bytes], file: VectorFile) -> Iterator[Block]:
    import pyarrow as pa

    parquet, config, start, dimension = _parquet(opened, file), file.config, 0, 0
    kind = type_at(parquet.schema_arrow, config.vector_column)
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_one(kind) for is_one in lists) or not pa.types.is_floating(kind.value_type):
        raise InputError(
            f"expected lists of floats in vector_column {config.vector_column!r}, got {kind}",
            where=file.uri,
            remedy="name the column of the vectors",
        )
    group = parquet.metadata.row_group(0) if parquet.metadata.num_row_groups else None
    size = group.total_byte_size // max(group.num_rows, 1) if group else 0
    at_once = max(_BLOCK_BYTES // max(size, 1), _FEWEST)
    columns = [config.id_column, config.vector_column]
    for batch in parquet.iter_batches(batch_size=min(at_once, 1 << 16), columns=columns):
        ids = _ids(column_at(batch, config.id_column).to_pylist(), file, start)
        vectors = _stacked(column_at(batch, config.vector_column), ids, dimension, file)
        dimension, start = vectors.shape[1], start + len(ids)
        yield ids, vectors


def _stacked(column: Any, ids: list[str], dimension: int, file: VectorFile) -> NDArray[Any]:
    """Return lists of floats as (n, d); NaN where a list is null.

    Args:
        column: Arrow's array of them.
        ids: of their rows.
        dimension: of those before; 0: there are none.
        file: that they are of.
    """
    import pyarrow.compute as pc

    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)  # NaN where null
    there = np.asarray(column.is_valid().to_numpy(zero_copy_only=False), dtype=bool)
    if not there.any() and not dimension:
        raise InputError(
            f"expected vectors, the first {len(ids):,} are null",
            where=file.uri,
            remedy=f"check vector_column {file.config.vector_column!r}",
        )
    dimension = dimension or int(lengths[there][0])
    other = there & (lengths != dimension)
    if other.any() or not dimension:
        row = int(np.flatnonzero(other)[0]) if other.any() else 0
        raise DimensionMismatchError(
            f"expected vectors of d={dimension or 'at least 1'}, as the first has, got "
            f"d={int(lengths[row])} of id {ids[row]!r}",
            where=file.uri,
            remedy="write vectors of one encoder",
        )
    values = column.drop_null().flatten().to_numpy(zero_copy_only=False)
    kept = values.dtype if values.dtype.name in _KEPT else np.dtype(np.float32)
    stacked = np.full((len(ids), dimension), np.nan, kept)
    with np.errstate(over="ignore"):  # what is too large is infinite, which is told later
        stacked[there] = values.reshape(-1, dimension)
    return stacked


def _array_head(opened: IO[bytes], file: VectorFile) -> tuple[int, int, np.dtype[Any]]:
    """Return rows, dimension and type of a `.npy`; the file then stands where values begin."""
    try:
        version = npy.read_magic(opened)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_column, dtype = read(opened)
    except ValueError as error:
        raise InputError(
            f"expected an array of NumPy, found none ({error})",
            where=file.uri,
            remedy="write it with numpy.save",
        ) from error
    if len(shape) != 2 or not shape[1] or dtype.kind != "f" or by_column:
        order = " by columns" if by_column else ""
        raise InputError(
            f"expected an array (rows, dimension) of floats, got {dtype} {shape}{order}",
            where=file.uri,
            remedy="write it with numpy.save(path, numpy.ascontiguousarray(vectors))",
        )
    return int(shape[0]), int(shape[1]), dtype


def _array_blocks(opened: IO[bytes], file: VectorFile) -> Iterator[Block]:
    rows, dimension, dtype = _array_head(opened, file)
    kept = dtype if dtype.newbyteorder("=").name in _KEPT else np.dtype(np.float32)
    at_once = max(_BLOCK_BYTES // (dimension * dtype.itemsize), _FEWEST)
    ids = read_ids(file)
    for start in range(0, rows, at_once):
        count = min(at_once, rows - start)
        content = opened.read(count * dimension * dtype.itemsize)
        if len(content) < count * dimension * dtype.itemsize:
            raise EOFError(f"fewer than {rows:,} vectors of d={dimension}")
        with np.errstate(over="ignore"):
            vectors = np.frombuffer(content, dtype).reshape(count, dimension)
            vectors = vectors.astype(kept.newbyteorder("="))
        some = [*islice(ids, count)]
        if len(some) < count:
            raise _other_count(file, rows, start + len(some))
        yield some, vectors
    if more := sum(1 for _ in ids):
        raise _other_count(file, rows, rows + more)


def _other_count(file: VectorFile, rows: int, ids: int) -> InputError:
    return InputError(
        f"expected as many ids as vectors, got {ids:,} for {rows:,} in {file.name}",
        where=file.ids or file.uri,
        remedy="write both anew, in the same order; several files are paired in order of name",
    )


def read_ids(file: VectorFile) -> Iterator[str]:
    """Yield the ids of a file's vectors in order; the vectors are not read.

    Raises:
        InputError: the file is missing, damaged, or lacks the column; an id is blank.
    """
    uri, column = file.ids or file.uri, file.config.id_column
    form = format_of(uri)
    if form == "text":
        with (
            readable(uri),
            storage.open_binary(uri, decompress=True) as opened,
            intact(uri),
        ):
            lines = decoded_lines(opened, uri, "ids, one a line", untold)
            yield from (line.strip() for line in lines if not line.isspace())
        return
    if form is None or form == "images":
        raise InputError(
            f"expected ids as .txt, .jsonl, .csv or .parquet, got {uri.rpartition('/')[2]}",
            where=uri,
            remedy="write an id a line as .txt",
        )
    for number, row in enumerate(stream_rows(uri, form, {column: "id_column"}, untold)):
        yield label_of(row, column, "id_column", f"{uri}:{number}")


def _ids(values: list[Any], file: VectorFile, start: int) -> list[str]:
    column = file.config.id_column
    return [
        label_of({column: value}, column, "id_column", f"{file.uri}:{number}")
        for number, value in enumerate(values, start)
    ]


def row_of_piece(name: str) -> str:
    """Return the id of the row that a piece was cut from, of which it has a vector; else itself."""
    found = _PIECE.fullmatch(name)
    return found[1] if found else name
