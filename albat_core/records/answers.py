"""Answers: what one arm wrote to held-out prompts, beside the answers that the rows have."""

import pyarrow as pa

from albat_core.records.examples import Example, message_text
from albat_core.records.tables import read_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "answers"
ANSWERS = "answers.parquet"

ANSWER_SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),  # as the backbone read it
        pa.field("reference", pa.string(), nullable=False),  # the row's own answer
        pa.field("answer", pa.string(), nullable=False),
        pa.field("ended", pa.bool_(), nullable=False),  # or cut at the most tokens
    ]
)
"""Answers of one arm, one row an example, in the order of the held-out rows."""


def read_answers(store: ArtifactStore, answers: ArtifactRef) -> pa.Table:
    """Return answers as a table of ``ANSWER_SCHEMA``."""
    return read_table(store.folder(answers) / ANSWERS)


def last_turn(example: Example) -> int | None:
    """Return the last message of a chat that is learnt; None where there is none."""
    turns = enumerate(example.messages or ())
    learnt = [n for n, m in turns if m["role"] == "assistant" and m.get("weight", 1)]
    return learnt[-1] if learnt else None


def prompt_and_answer(example: Example) -> tuple[str, str] | None:
    """Return a row's prompt and answer as they are written; None where it has not both.

    Of a chat the answer is the last turn of the assistant, the prompt all that comes before it; of
    an answer that was cut, what fits beside its prompt.
    """
    if example.messages is not None:
        turn = last_turn(example)
        if not turn:  # none, or nothing before it
            return None
        said = [f"{m['role']}: {message_text(m)}" for m in example.messages[:turn]]
        return "\n".join(said), message_text(example.messages[turn])
    if not example.prompt or example.image is not None:
        return None
    return example.prompt, (example.text or "")[len(example.prompt) :]
