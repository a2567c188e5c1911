"""A look at vectors that were computed elsewhere, before anything is computed."""

from collections.abc import Mapping, Sequence

from albat_core.errors import AlbatError, DimensionMismatchError, InputError
from albat_core.sources.vectors import (
    VectorFile,
    VectorSource,
    count_vectors,
    locate_vectors,
    read_ids,
    read_vectors,
    row_of_piece,
)

_LOOKED_AT = 8  # files
_IDS_READ = 1_000_000  # some seconds


def check_vectors(
    sources: Mapping[str, VectorSource], wanted: Mapping[str, Sequence[str]]
) -> list[AlbatError]:
    """Return every problem found in vectors, by heads of files and, where these are few, ids.

    Args:
        sources: by role: of the corpus, and of the adaptation set.
        wanted: by role, ids of rows that need a vector.
    """
    found: list[AlbatError] = []
    dimensions: dict[str, int] = {}
    for role, source in sources.items():
        try:
            dimensions[role] = _look_at(source, wanted[role])
        except AlbatError as error:
            where = f"embedding.vectors.{role}: {error.where}"
            found.append(type(error)(error.message, where, error.remedy))
    if len({*dimensions.values()}) > 1:
        said = " and ".join(f"d={its} of the {role}" for role, its in dimensions.items())
        found.append(
            DimensionMismatchError(
                f"expected vectors of one encoder, got {said}",
                where="embedding.vectors",
                remedy="give vectors of the same encoder for both",
            )
        )
    return found


def _look_at(source: VectorSource, wanted: Sequence[str]) -> int:
    """Return the dimension of vectors; raise what is wrong with them."""
    files = locate_vectors(source)
    dimensions = [_dimension(file) for file in files[:_LOOKED_AT]]
    for file, dimension in zip(files, dimensions, strict=False):
        if dimension != dimensions[0]:
            raise DimensionMismatchError(
                f"expected vectors of d={dimensions[0]}, as in {files[0].name}, got d={dimension}",
                where=file.uri,
                remedy="write vectors of one encoder",
            )
    if len(files) > _LOOKED_AT or sum(map(count_vectors, files)) > _IDS_READ:
        return dimensions[0]
    known = {name for file in files for name in read_ids(file)}
    if lacking := [name for name in wanted if not known & {name, row_of_piece(name)}]:
        raise InputError(
            f"expected a vector for each row, of {len(wanted):,} looked at {len(lacking):,} have "
            f"none, such as {lacking[0]!r}; vectors have ids such as {min(known)!r}",
            where=source.places,
            remedy="write the missing ones, or name the same column of ids in both",
        )
    return dimensions[0]


def _dimension(file: VectorFile) -> int:
    for _, vectors in read_vectors(file):
        return int(vectors.shape[1])
    raise InputError("expected vectors, got none", where=file.uri, remedy="write it again")
