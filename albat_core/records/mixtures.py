"""Mixtures: adaptation and selected rows with their weights in the objective, as Parquet."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from albat_core.records.examples import (
    EXAMPLE_SCHEMA,
    GENERATED,
    PICTURE_COLUMNS,
    Example,
    table_to_examples,
)
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "mixture"
CARD = "README.md"
ADAPTATION, BACKBONE = "adaptation", "backbone"
TEXTS, PROMPTS, CHATS = "texts", "prompts", "chats"
"""Layouts of rows without pictures, whose columns are those that TRL trains on."""

_GROUPS_KEPT = 2  # of two layouts, whose rows may take turns
_MESSAGES = pa.field("messages", pa.list_(pa.json_()))  # `datasets` gives them as dicts

MIXTURE_SCHEMA = (
    EXAMPLE_SCHEMA.set(EXAMPLE_SCHEMA.get_field_index("messages"), _MESSAGES)
    .append(pa.field("role", pa.string(), nullable=False))
    .append(pa.field("weight", pa.float64(), nullable=False))
    .append(pa.field("score", pa.float32()))
    .append(pa.field("nearest_example_id", pa.string()))
    .append(pa.field("similarity", pa.float32()))
)
"""The mixture: adaptation and backbone rows; weights sum to 1 over all, to alpha over backbone."""


def laid_out(table: pa.Table, first: int = 0) -> dict[str, pa.Table]:
    """Return rows without pictures as TRL takes them, by layout.

    ``texts``: ``text``. ``prompts``: ``prompt`` and ``completion``; where some rows have a prompt,
    the others have an empty one, and ``prompted`` tells them apart. ``chats``: ``messages``. In
    each, ``row`` is the place in the mixture.

    Args:
        table: of ``MIXTURE_SCHEMA``.
        first: place of its first row.
    """
    places = pa.array(range(first, first + table.num_rows), pa.int64())
    table = table.append_column("row", places)
    is_chat = pc.is_valid(table["messages"])
    chats = _without_empty(table.filter(is_chat))
    written = _without_empty(table.filter(pc.invert(is_chat)))
    name = PROMPTS if "prompt" in written.column_names else TEXTS
    if name == PROMPTS:
        texts, prompts = written["text"], written["prompt"]
        pairs = zip(texts.to_pylist(), prompts.to_pylist(), strict=True)
        completions = pa.array([text[len(prompt or "") :] for text, prompt in pairs], pa.string())
        names = written.column_names
        written = (
            written.set_column(names.index("text"), "prompt", pc.fill_null(prompts, ""))
            .set_column(names.index("prompt"), "completion", completions)
            .append_column("prompted", pc.is_valid(prompts))
        )
    return {n: rows for n, rows in ((name, written), (CHATS, chats)) if rows.num_rows}


def _without_empty(table: pa.Table) -> pa.Table:
    """Return a table without those columns of ``EXAMPLE_SCHEMA`` that no row has."""
    nulls = [n for n in EXAMPLE_SCHEMA.names if table[n].null_count == table.num_rows]
    return table.drop_columns(nulls)


def _restored(table: pa.Table) -> pa.Table:
    """Return rows of a layout with the columns of ``EXAMPLE_SCHEMA``."""
    if "completion" in table.column_names:
        text = pc.binary_join_element_wise(table["prompt"], table["completion"], "")
        prompt = pc.if_else(table["prompted"], table["prompt"], pa.scalar(None, pa.string()))
        place = table.column_names.index("prompt")
        table = table.set_column(place, "prompt", prompt).append_column("text", text)
    for field in EXAMPLE_SCHEMA:
        if field.name not in {*table.column_names, *PICTURE_COLUMNS}:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


class Rows(Sequence[Example]):
    """Rows of one role of a mixture, read when they are asked for, a row group at a time.

    Whoever asks in order has each row group read once.

    Args:
        groups: all row groups, by file and number in it.
        places: (n, 2) int32, of each row its row group, and its number in that.
    """

    def __init__(self, groups: Sequence[tuple[Path, int]], places: NDArray[np.int32]) -> None:
        self._groups = groups
        self._places = places
        self._group = lru_cache(maxsize=_GROUPS_KEPT)(self._read)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[n] for n in range(len(self))[index]]
        group, row = self._places[index]
        return self._group(int(group))[int(row)]

    def _read(self, number: int) -> list[Example]:
        path, group = self._groups[number]
        with pq.ParquetFile(path) as file:
            table = file.read_row_group(group)
        if "image" in table.column_names:
            place = table.column_names.index("image")
            table = table.set_column(place, "image", pc.struct_field(table["image"], "bytes"))
        return table_to_examples(_restored(table))


@dataclass(frozen=True)
class Mixture:
    """A mixture that was read: L = (1 - alpha) mean l(adaptation) + alpha sum w_j l(backbone_j).

    Args:
        adaptation: training examples of the adaptation set.
        backbone: selected corpus examples.
        weights: (n_backbone,) float64, sums to 1.
        alpha: mixing weight, in [0, 1).
    """

    adaptation: Sequence[Example]
    backbone: Sequence[Example]
    weights: NDArray[np.float64]
    alpha: float


def _files(store: ArtifactStore, ref: ArtifactRef) -> list[Path]:
    return sorted((store.folder(ref) / "data").rglob("*.parquet"))


def read_mixture(store: ArtifactStore, ref: ArtifactRef) -> Mixture:
    """Return a mixture with its weights brought back to those of the objective's two sums.

    What rows say is read when they are asked for.
    """
    groups: list[tuple[Path, int]] = []
    places: list[NDArray[np.int32]] = []
    described = []
    for path in _files(store, ref):
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            wanted = {"role", "weight", "row"} & {*file.schema_arrow.names}
            described.append(file.read(columns=sorted(wanted)))
        for number, size in enumerate(sizes):
            group = np.full(size, len(groups), np.int32)
            places.append(np.stack([group, np.arange(size, dtype=np.int32)], axis=1))
            groups.append((path, number))
    table, where = pa.concat_tables(described), np.concatenate(places)
    if "row" in table.column_names:  # layouts are in files of their own
        order = np.argsort(table["row"].to_numpy())
        table, where = table.take(order), where[order]
    is_backbone = pc.equal(table["role"], BACKBONE).to_numpy()
    weights = table["weight"].to_numpy()[is_backbone]
    alpha = float(store.manifest(ref).facts["alpha"])
    return Mixture(
        adaptation=Rows(groups, where[~is_backbone]),
        backbone=Rows(groups, where[is_backbone]),
        weights=weights / weights.sum() if len(weights) else weights,
        alpha=alpha if len(weights) else 0.0,
    )


def described_rows(store: ArtifactStore, ref: ArtifactRef) -> pa.Table:
    """Return what a mixture's rows are, without their contents.

    Columns: ``example_id``, ``source``, ``role`` and ``weight``.
    """
    columns = ["example_id", "source", "role", "weight"]
    return pa.concat_tables([pq.read_table(f, columns=columns) for f in _files(store, ref)])


def generated_rows(store: ArtifactStore, ref: ArtifactRef) -> int:
    """Return how many of a mixture's backbone rows the backbone made itself."""
    table = described_rows(store, ref)
    made = pc.and_(pc.equal(table["source"], GENERATED), pc.equal(table["role"], BACKBONE))
    return int(pc.sum(made, min_count=0).as_py())


class RowChanges(BaseModel):
    """Which rows of one role entered and left from one mixture to another."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entered: tuple[str, ...]
    """Their ids, sorted."""
    left: tuple[str, ...]
    """Their ids, sorted."""
    stayed: int
    """How many are in both."""

    @property
    def before(self) -> int:
        """How many there were."""
        return self.stayed + len(self.left)

    @property
    def now(self) -> int:
        """How many there are."""
        return self.stayed + len(self.entered)


class WeightedRow(NamedTuple):
    """A row of a mixture, by what a backbone sees of it."""

    role: str
    digest: str
    """Of its content, see ``Example.digest``: under the same id another one may be."""
    example_id: str
    weight: float
    """In the objective; all rows' sum to 1."""


def weighted_rows(store: ArtifactStore, ref: ArtifactRef) -> list[WeightedRow]:
    """Return all rows of a mixture; their contents are read, and not kept."""
    mixture = read_mixture(store, ref)
    own, other = mixture.adaptation, mixture.backbone
    each = [(1 - mixture.alpha) / max(len(own), 1)] * len(own)
    rows = chain(
        zip(repeat(ADAPTATION), own, each),
        zip(repeat(BACKBONE), other, (mixture.alpha * mixture.weights).tolist()),
    )
    return [WeightedRow(role, row.digest(), row.example_id, w) for role, row, w in rows]


def changed_rows(
    before: Sequence[WeightedRow], after: Sequence[WeightedRow]
) -> dict[str, RowChanges]:
    """Compare two mixtures by what their rows say; return the changes of each role.

    Args:
        before: rows of a mixture.
        after: of another one.
    """
    found = {}
    for role in (ADAPTATION, BACKBONE):
        old, new = (_ids(rows, role) for rows in (before, after))
        found[role] = RowChanges(
            entered=tuple(sorted(n for d, ids in new.items() for n in ids[len(old[d]) :])),
            left=tuple(sorted(n for d, ids in old.items() for n in ids[len(new[d]) :])),
            stayed=sum(min(len(ids), len(new[digest])) for digest, ids in old.items()),
        )
    return found


def _ids(rows: Sequence[WeightedRow], role: str) -> defaultdict[str, list[str]]:
    """Return the ids of a role's rows by content."""
    found = defaultdict(list)
    for row in rows:
        if row.role == role:
            found[row.digest].append(row.example_id)
    return found


def moved_weight(before: Sequence[WeightedRow], after: Sequence[WeightedRow]) -> float:
    """Return the total variation distance of two mixtures' weights, in [0, 1].

    It is the share of the objective's weight that lies on other rows than before:
    sum_i |w_i - v_i| / 2, over contents in each role.
    """
    moved: defaultdict[tuple[str, str], float] = defaultdict(float)
    for rows, sign in ((before, -1.0), (after, 1.0)):
        for row in rows:
            moved[row.role, row.digest] += sign * row.weight
    return sum(map(abs, moved.values())) / 2
