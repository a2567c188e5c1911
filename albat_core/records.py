"""The records that pass between stages: the example, and the Arrow schemas of what is stored."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from albat_core.store.stage import canonical_json

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
        pa.field("image", pa.binary()),
        pa.field("frame", pa.list_(pa.int32())),
    ]
)
"""A shard's rows: one example each, as `Example` describes them."""

PICTURE_COLUMNS = ("image", "frame")
"""Columns of ``EXAMPLE_SCHEMA`` that a table may lack where no example has a picture."""

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
    .append(pa.field("score_error", pa.float32()))
)
"""Candidates with what a scorer found: losses per unit; scores, higher is better, with their
standard error."""

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

_GROUP_ROWS = 1024
_GROUP_BYTES = 2 << 20  # of pictures: some are read to get one


@dataclass(frozen=True, slots=True)
class Example:
    """One example: a text, a text whose beginning is a prompt, a chat, or a picture.

    Args:
        example_id: unique within its corpus or adaptation set.
        document: what it is a part of; splits are made by document.
        source: where it comes from, for the report.
        text: the whole training text, prompt included; a picture's caption; None for a chat.
        prompt: the beginning of ``text`` that carries no loss; None: all carries loss.
        messages: the chat, each with ``role`` and ``content``; loss on the assistant's only.
        continues: the row goes on in the next example, so no end of text follows.
        image: a picture's file: as it was read, or PNG of the backbone's size once it is cut.
        frame: height and width of the picture before it was resized, top and left of the cut in
            the resized one, in pixels >= 0; set when it is cut.
    """

    example_id: str
    document: str
    source: str
    text: str | None = None
    prompt: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    continues: bool = False
    image: bytes | None = None
    frame: tuple[int, int, int, int] | None = None

    def digest(self) -> str:
        """Return a fingerprint of what a backbone sees of it (not of its names)."""
        seen: list[Any] = [self.text, self.prompt, self.messages, self.continues]
        if self.image is not None:
            seen += [hashlib.blake2b(self.image, digest_size=16).hexdigest(), self.frame]
        return hashlib.blake2b(canonical_json(seen).encode(), digest_size=16).hexdigest()


def example_text(example: Example) -> str:
    """Return all that is written in an example: its text or caption, or a chat's contents."""
    if example.messages is not None:
        return "\n".join(message["content"] for message in example.messages)
    return example.text or ""


def examples_to_table(examples: Iterable[Example]) -> pa.Table:
    """Return examples as a table of ``EXAMPLE_SCHEMA``."""
    return pa.Table.from_pylist([asdict(e) for e in examples], schema=EXAMPLE_SCHEMA)


def table_to_examples(table: pa.Table) -> list[Example]:
    """Return the examples of a table with the columns of ``EXAMPLE_SCHEMA``.

    ``PICTURE_COLUMNS`` may be missing.
    """
    there = [n for n in EXAMPLE_SCHEMA.names if n in table.column_names or n not in PICTURE_COLUMNS]
    rows = table.select(there).to_pylist()
    for row in rows:
        for name in ("messages", "frame"):
            if row.get(name) is not None:
                row[name] = tuple(row[name])
    return [Example(**row) for row in rows]


def write_table(table: pa.Table, path: Path) -> None:
    """Write Parquet whose row groups are small enough to read single rows from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", row_group_size=row_group_rows(table))


def row_group_rows(table: pa.Table) -> int:
    """Return how many rows a row group gets: 1024, or fewer where they hold pictures."""
    if "image" not in table.column_names or table["image"].null_count == table.num_rows:
        return _GROUP_ROWS
    mean = table.nbytes / table.num_rows
    return max(min(_GROUP_ROWS, int(_GROUP_BYTES / mean)), 1)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read Parquet written by ``write_table``."""
    return pq.read_table(path, columns=list(columns) if columns else None, partitioning=None)
