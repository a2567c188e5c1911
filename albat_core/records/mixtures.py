"""Mixtures: adaptation and selected rows with their weights in the objective, as Parquet."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from albat_core.records.examples import (
    EXAMPLE_SCHEMA,
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


@dataclass(frozen=True)
class Mixture:
    """A mixture that was read: L = (1 - alpha) mean l(adaptation) + alpha sum w_j l(backbone_j).

    Args:
        adaptation: training examples of the adaptation set.
        backbone: selected corpus examples.
        weights: (n_backbone,) float64, sums to 1.
        alpha: mixing weight, in [0, 1).
    """

    adaptation: list[Example]
    backbone: list[Example]
    weights: NDArray[np.float64]
    alpha: float


def _files(store: ArtifactStore, ref: ArtifactRef) -> list[Path]:
    return sorted((store.folder(ref) / "data").rglob("*.parquet"))


def _read_file(path: Path) -> Iterator[pa.Table]:
    """Yield a file's rows, a row group at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            if "image" in table.column_names:
                place = table.column_names.index("image")
                table = table.set_column(place, "image", pc.struct_field(table["image"], "bytes"))
            yield table


def read_mixture(store: ArtifactStore, ref: ArtifactRef) -> Mixture:
    """Return a mixture with its weights brought back to those of the objective's two sums."""
    examples: list[Example] = []
    places: list[int] = []
    described = []
    for table in (table for file in _files(store, ref) for table in _read_file(file)):
        there = range(len(examples), len(examples) + table.num_rows)
        places += table["row"].to_pylist() if "row" in table.column_names else there
        examples += table_to_examples(_restored(table))
        described.append(table.select(["role", "weight"]))
    order = np.argsort(places)
    examples = [examples[n] for n in order]
    table = pa.concat_tables(described).take(order)
    role = table["role"].to_numpy(zero_copy_only=False)
    weights = table["weight"].to_numpy()[role == BACKBONE]
    alpha = float(store.manifest(ref).facts["alpha"])
    return Mixture(
        adaptation=[e for e, r in zip(examples, role, strict=True) if r == ADAPTATION],
        backbone=[e for e, r in zip(examples, role, strict=True) if r == BACKBONE],
        weights=weights / weights.sum() if len(weights) else weights,
        alpha=alpha if len(weights) else 0.0,
    )


def described_rows(store: ArtifactStore, ref: ArtifactRef) -> pa.Table:
    """Return what a mixture's rows are, without their contents.

    Columns: ``example_id``, ``source``, ``role`` and ``weight``.
    """
    columns = ["example_id", "source", "role", "weight"]
    return pa.concat_tables([pq.read_table(f, columns=columns) for f in _files(store, ref)])


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


def changed_rows(
    store: ArtifactStore, before: ArtifactRef, after: ArtifactRef
) -> dict[str, RowChanges]:
    """Compare two mixtures by example; return the changes of each role.

    Args:
        store: where both are.
        before: a mixture.
        after: another one.
    """
    tables = [described_rows(store, ref) for ref in (before, after)]
    found = {}
    for role in (ADAPTATION, BACKBONE):
        old, new = (
            set(table.filter(pc.equal(table["role"], role))["example_id"].to_pylist())
            for table in tables
        )
        found[role] = RowChanges(
            entered=tuple(sorted(new - old)),
            left=tuple(sorted(old - new)),
            stayed=len(old & new),
        )
    return found


def moved_weight(store: ArtifactStore, before: ArtifactRef, after: ArtifactRef) -> float:
    """Return the total variation distance of two mixtures' weights, in [0, 1].

    It is the share of the objective's weight that lies on other rows than before:
    sum_i |w_i - v_i| / 2.
    """
    weights: list[dict[str, float]] = []
    for ref in (before, after):
        table = described_rows(store, ref)
        weights.append(
            dict(zip(table["example_id"].to_pylist(), table["weight"].to_pylist(), strict=True))
        )
    old, new = weights
    return sum(abs(old.get(n, 0.0) - new.get(n, 0.0)) for n in old.keys() | new.keys()) / 2
