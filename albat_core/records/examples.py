"""The records that pass between stages: the example, and the Arrow schemas of what is stored."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from albat_core.store.stage import canonical_json

EXAMPLE_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("messages", pa.list_(pa.string())),  # JSON of each: their keys differ
        pa.field("tools", pa.string()),
        pa.field("continues", pa.bool_(), nullable=False),
        pa.field("image", pa.binary()),
        pa.field("frame", pa.list_(pa.int32())),
    ]
)
"""A shard's rows: one example each, as `Example` describes them."""

GENERATED = "generated"
"""Source of examples that the backbone made."""

PICTURE_COLUMNS = ("image", "frame")
"""Columns of ``EXAMPLE_SCHEMA`` that a table may lack where no example has a picture."""


TEXT_COLUMNS = ("text", "messages")
"""Columns of ``EXAMPLE_SCHEMA`` that say what is written in an example."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example: a text, a text whose beginning is a prompt, a chat, or a picture.

    Args:
        example_id: unique within its corpus or adaptation set.
        document: what it is a part of; splits are made by document.
        source: where it comes from, for the report.
        text: the whole training text, prompt included; a picture's caption; None for a chat.
        prompt: the beginning of ``text`` that carries no loss; None: all carries loss.
        messages: the chat, each with ``role``, and whatever keys else it came with (``content``,
            ``tool_calls``, ...); loss on the assistant's only, and not where ``weight`` is 0.
        tools: JSON of the list of tools that the chat's template is given.
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
    messages: tuple[dict[str, Any], ...] | None = None
    tools: str | None = None
    continues: bool = False
    image: bytes | None = None
    frame: tuple[int, int, int, int] | None = None

    def digest(self) -> str:
        """Return a fingerprint of what a backbone sees of it (not of its names)."""
        seen: list[Any] = [self.text, self.prompt, self.messages, self.continues]
        if self.tools is not None:
            seen.append({"tools": self.tools})
        if self.image is not None:
            seen += [hashlib.blake2b(self.image, digest_size=16).hexdigest(), self.frame]
        return hashlib.blake2b(canonical_json(seen).encode(), digest_size=16).hexdigest()


def example_text(example: Example) -> str:
    """Return all that is written in an example: its text or caption, or what a chat's turns say."""
    return _said(example.text, example.messages)


def _said(text: str | None, messages: Iterable[dict[str, Any]] | None) -> str:
    if messages is not None:
        return "\n".join(map(message_text, messages))
    return text or ""


def example_content(example: Example) -> str:
    """Return what makes a row the same as another: its text, of a picture its file's digest.

    Captions are often the same, so that of a picture its file decides.
    """
    if example.image is None:
        return example_text(example)
    return hashlib.sha256(example.image).hexdigest()


REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys under which messages have what was thought."""


def message_text(message: dict[str, Any]) -> str:
    """Return what a turn of a chat says: its reasoning, its content, its calls as JSON."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    calls = message.get("tool_calls")
    thought = next((message[key] for key in REASONING if message.get(key)), None)
    said = [thought, content, calls and json.dumps(calls)]
    return "\n".join(text for text in said if isinstance(text, str) and text)


def examples_to_table(examples: Sequence[Example]) -> pa.Table:
    """Return examples as a table of ``EXAMPLE_SCHEMA``."""
    columns = {n: [getattr(e, n) for e in examples] for n in EXAMPLE_SCHEMA.names}
    columns["messages"] = [m if m is None else _written(m) for m in columns["messages"]]
    arrays = [pa.array(columns[field.name], field.type) for field in EXAMPLE_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=EXAMPLE_SCHEMA)


def _written(messages: Iterable[dict[str, Any]]) -> list[str]:
    """Return the JSON of each message of a chat."""
    return [json.dumps(each, ensure_ascii=False) for each in messages]


def table_to_examples(table: pa.Table) -> list[Example]:
    """Return the examples of a table with the columns of ``EXAMPLE_SCHEMA``.

    ``PICTURE_COLUMNS`` may be missing.
    """
    columns = [_values(table, name) for name in EXAMPLE_SCHEMA.names]
    return list(map(Example, *columns))


def table_to_texts(table: pa.Table) -> list[str]:
    """Return what is written in the examples of a table with ``TEXT_COLUMNS``."""
    return list(map(_said, *(_values(table, name) for name in TEXT_COLUMNS)))


def _values(table: pa.Table, name: str) -> list[Any]:
    """Return a column of examples as they have it; None for each where it is missing or empty."""
    missing = name not in table.column_names and name in PICTURE_COLUMNS
    if missing or table[name].null_count == table.num_rows:
        return [None] * table.num_rows
    values: list[Any] = table[name].to_pylist()
    if name == "messages":
        return [m if m is None else tuple(map(json.loads, m)) for m in values]
    return [v if v is None else tuple(v) for v in values] if name == "frame" else values
