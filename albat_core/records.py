"""The records that pass between stages: the example, and the Arrow schemas of what is stored."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from albat_core.stage import canonical_json

TRAIN, VALIDATION, TEST, UNUSED = "train", "validation", "test", "unused"
ADAPTATION, BACKBONE = "adaptation", "backbone"

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

EXAMPLE_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("messages", _MESSAGES),
        pa.field("continues", pa.bool_(), nullable=False),
    ]
)
"""A shard's rows: one example each, as `Example` describes them."""

CANDIDATE_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # "<shards artifact key>/<part file>"
        pa.field("row", pa.int64(), nullable=False),  # position in that part
        pa.field("turn", pa.int32(), nullable=False),  # round in which its query took it, from 0
        pa.field("nearest_example_id", pa.string()),
        pa.field("similarity", pa.float32()),  # cosine, whitened, in [-1, 1]
    ]
)
"""Corpus examples worth a look, with the adaptation example each was found for."""

SCORE_SCHEMA = (
    CANDIDATE_SCHEMA.append(pa.field("loss_backbone", pa.float32()))
    .append(pa.field("loss_surrogate", pa.float32()))
    .append(pa.field("score", pa.float32()))
)
"""Candidates with what a scorer found; losses in nats per unit, higher score is better."""

SELECTION_SCHEMA = SCORE_SCHEMA.append(pa.field("weight", pa.float64(), nullable=False))
"""Selected candidates; weights are >= 0 and sum to 1 over the selection."""

MIXTURE_SCHEMA = (
    EXAMPLE_SCHEMA.append(pa.field("role", pa.string(), nullable=False))
    .append(pa.field("weight", pa.float64(), nullable=False))
    .append(pa.field("score", pa.float32()))
    .append(pa.field("nearest_example_id", pa.string()))
    .append(pa.field("similarity", pa.float32()))
)
"""The mixture: adaptation and backbone rows; weights sum to 1 over all, to alpha over backbone."""

LOSS_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),  # nats, summed over the units
        pa.field("units", pa.int64(), nullable=False),  # tokens that carry loss
    ]
)
"""Held-out losses of one arm, one row an example."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example: a text, a text whose beginning is a prompt, or a chat.

    Args:
        example_id: unique within its corpus or adaptation set.
        document: what it is a part of; splits are made by document.
        source: where it comes from, for the report.
        text: the whole training text, prompt included; None for a chat.
        prompt: the beginning of ``text`` that carries no loss; None: all carries loss.
        messages: the chat, each with ``role`` and ``content``; loss on the assistant's only.
        continues: the row goes on in the next example, so no end of text follows.
    """

    example_id: str
    document: str
    source: str
    text: str | None = None
    prompt: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    continues: bool = False

    def digest(self) -> str:
        """Return a fingerprint of what a backbone sees of it (not of its names)."""
        content = canonical_json([self.text, self.prompt, self.messages, self.continues])
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def examples_to_table(examples: Iterable[Example]) -> pa.Table:
    """Return examples as a table of ``EXAMPLE_SCHEMA``."""
    return pa.Table.from_pylist([asdict(e) for e in examples], schema=EXAMPLE_SCHEMA)


def table_to_examples(table: pa.Table) -> list[Example]:
    """Return the examples of a table that has the columns of ``EXAMPLE_SCHEMA``."""
    rows = table.select(EXAMPLE_SCHEMA.names).to_pylist()
    for row in rows:
        if row["messages"] is not None:
            row["messages"] = tuple(row["messages"])
    return [Example(**row) for row in rows]


def write_table(table: pa.Table, path: Path) -> None:
    """Write Parquet whose row groups are small enough to read single rows from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", row_group_size=1024)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read Parquet written by ``write_table``."""
    return pq.read_table(path, columns=list(columns) if columns else None, partitioning=None)
