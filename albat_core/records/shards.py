"""Rows of the sharded corpus, read where they lie."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from albat_core.records.examples import EXAMPLE_SCHEMA, Example, table_to_examples
from albat_core.records.filtered import by_reason
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "shards"


_NOTES = {
    "null_rows": "without text, skipped",
    "uncaptioned_rows": "with a picture but no caption, skipped",
    "damaged_rows": "whose picture cannot be read, skipped",
    "split_rows": "longer than the backbone takes, cut",
    "printed_rows": "with a number as text, taken as it is printed",
    "unfit_rows": "with no answer to learn or no room for one, skipped",
}


def row_notes(facts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return what became of rows that were not taken as they are, from shards' facts."""
    counts = {name: sum(f.get(name, 0) for f in facts) for name in _NOTES}
    blank: Counter[str] = Counter()
    filtered: Counter[str] = Counter()
    for each in facts:
        blank.update(each.get("blank_columns", {}))
        filtered.update(each.get("filtered_reasons", {}))
    left_out = filtered.total()
    columns = ", ".join(f"{name!r} in {n:,}" for name, n in blank.items())
    return (
        *(f"{n:,} row{'s' if n > 1 else ''} {_NOTES[name]}" for name, n in counts.items() if n),
        *(
            [f"{left_out:,} row{'s' if left_out > 1 else ''} left out: {by_reason(filtered)}"]
            if left_out
            else []
        ),
        *([f"columns that were null or blank in rows skipped: {columns}"] if columns else []),
    )


class Part(BaseModel):
    """One part file of a shards artifact: the unit of work on the corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: ArtifactRef
    name: str
    rows: int
    sha256: str

    @property
    def address(self) -> str:
        """What names the part in a column: ``<shards key>/<part name>``."""
        return f"{self.shards.key}/{self.name}"


def parts_of(store: ArtifactStore, shards: Sequence[ArtifactRef]) -> list[Part]:
    """Return the part files of shards artifacts, in order."""
    parts = []
    for ref, manifest in zip(shards, store.manifests(shards), strict=True):
        digests = {file.path: file.sha256 for file in manifest.files}
        parts += [
            Part(shards=ref, name=p["name"], rows=p["rows"], sha256=digests[p["name"]])
            for p in manifest.facts["parts"]
        ]
    return parts


def part_path(store: ArtifactStore, address: str) -> Path:
    """Return the local path of the part at ``<shards key>/<part name>``."""
    key, _, name = address.partition("/")
    return store.file(ArtifactRef(stage=STAGE, key=key), name)


def read_examples(store: ArtifactStore, shard: Sequence[str], row: Sequence[int]) -> list[Example]:
    """Return the examples at the given positions, in the order asked for.

    Args:
        store: where the shards are.
        shard: part addresses.
        row: row numbers in those parts.
    """
    wanted: dict[str, list[int]] = defaultdict(list)
    for place, address in enumerate(shard):
        wanted[address].append(place)
    found: list[Example | None] = [None] * len(shard)
    for address, places in wanted.items():
        examples = _take(part_path(store, address), [row[p] for p in places])
        for place, example in zip(places, examples, strict=True):
            found[place] = example
    return [example for example in found if example is not None]


def _take(path: Path, rows: Sequence[int]) -> list[Example]:
    """Return rows of one part, reading only the row groups that hold them."""
    with pq.ParquetFile(path) as file:
        ends, total = [], 0
        for group in range(file.num_row_groups):
            total += file.metadata.row_group(group).num_rows
            ends.append(total)
        tables: dict[int, pa.Table] = {}
        taken: list[Example] = []
        for row in rows:
            group = next(g for g, end in enumerate(ends) if row < end)
            if group not in tables:
                tables[group] = file.read_row_group(group, columns=EXAMPLE_SCHEMA.names)
            start = ends[group] - tables[group].num_rows
            taken += table_to_examples(tables[group].slice(row - start, 1))
        return taken


def iterate_part(store: ArtifactStore, part: Part, size: int = 1024) -> Iterator[list[Example]]:
    """Yield a part's examples, ``size`` at a time, in order."""
    with pq.ParquetFile(store.file(part.shards, part.name)) as file:
        for batch in file.iter_batches(batch_size=size, columns=EXAMPLE_SCHEMA.names):
            yield table_to_examples(pa.Table.from_batches([batch]))
