"""Chats in a row's column, as lists or as JSON of them: nothing that they say is left out."""

import json
from collections.abc import Callable
from typing import Any

from albat_core.errors import InputError
from albat_core.records.examples import REASONING
from albat_core.sources.formats.base import is_blank

Message = dict[str, Any]

ANSWERS = "assistant"
"""The role of what is learnt."""

_SAYING = frozenset({"content", "tool_calls", *REASONING})

_UNLEARNT = {"loss": False, "train": False, "training": False, "masked": True}
"""What other programs' data says of answers that are not to be learnt: ms-swift's, axolotl's by its
`message_field_training`, torchtune's."""


def read_messages(value: Any, where: str, *, filled: bool) -> tuple[Message, ...] | None:
    """Return a column's chat, with every key that has a value; None where no answer says anything.

    Args:
        value: of the column.
        where: the row's place, "file:row".
        filled: keys that a message has not come as null, see ``FileFormat``.

    Raises:
        InputError: it is no list of messages, or one of them has what cannot be used.
    """
    filled = filled and not isinstance(value, str)
    value = _parsed(value, where, _misshapen)
    if value in (None, []):
        return None
    if not isinstance(value, list):
        raise _misshapen(type(value).__name__, where)
    messages = tuple(_message(message, turn, where, filled) for turn, message in enumerate(value))
    answers = [m for m in messages if m["role"] == ANSWERS and m.get("weight", 1)]
    return messages if any(map(_says, answers or messages)) else None


def read_tools(value: Any, where: str, *, filled: bool) -> str | None:
    """Return a column's tools as JSON of a list; None where there are none.

    Raises:
        InputError: it is no list.
    """
    filled = filled and not isinstance(value, str)
    value = _parsed(value, where, _no_tools)
    if filled:
        value = _without_nulls(value)
    if value in (None, []):
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise _no_tools(type(value).__name__, where)
    return json.dumps(value, ensure_ascii=False)


def _parsed(value: Any, where: str, refused: Callable[[str, str], InputError]) -> Any:
    if not isinstance(value, str):
        return None if _null(value) else value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise refused(f"text that is not JSON ({error})", where) from error


def _message(message: Any, turn: int, where: str, filled: bool) -> Message:
    if not isinstance(message, dict):
        raise _misshapen(f"{type(message).__name__} as message {turn}", where)
    if "function_call" in message and not _null(message["function_call"]):
        raise InputError(
            f"expected calls as tool_calls, got function_call in message {turn}",
            where=where,
            remedy='write it as "tool_calls": [{"type": "function", "function": {...}}]',
        )
    kept = {key: value for key, value in message.items() if not _null(value)}
    if filled:
        kept = _without_nulls(kept)
    if "content" in message and not _SAYING & kept.keys():
        kept["content"] = ""  # null: the message says nothing
    if "role" not in kept or not _SAYING & kept.keys():
        raise _misshapen(f"message {turn} with {', '.join(message) or 'nothing'}", where)
    if not isinstance(kept["role"], str):
        raise _misshapen(f"message {turn} whose role is {type(kept['role']).__name__}", where)
    if not kept["role"].strip():
        raise _misshapen(f"message {turn} with a blank role", where)
    _refuse_content(kept.get("content", ""), turn, where)
    other = next((key for key, said in _UNLEARNT.items() if kept.get(key) is said), None)
    if other and kept["role"] == ANSWERS and "weight" not in kept:
        raise InputError(
            f"expected weight 0 for an answer that is not to be learnt, got {other} "
            f"{json.dumps(kept[other])} in message {turn}",
            where=where,
            remedy='write it as "weight": 0, or drop the key',
        )
    if (weight := kept.get("weight", 1)) not in (0, 1):
        raise InputError(
            f"expected 0 or 1 as the weight of message {turn}, got {weight!r}",
            where=where,
            remedy="write 0 for a turn that is not to be learnt, or drop the key",
        )
    return kept


def _refuse_content(content: Any, turn: int, where: str) -> None:
    """Raise where a content is neither text nor a list of parts that are."""
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not content:
        raise _misshapen(f"message {turn} whose content is {type(content).__name__}", where)
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise InputError(
                f"expected parts of text in message {turn}, got one of type {kind}",
                where=where,
                remedy="leave such parts out: a language model reads text",
            )


def _says(message: Message) -> bool:
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    return not is_blank(content) or any(message.get(key) for key in _SAYING - {"content"})


def _null(value: Any) -> bool:
    return value is None or value != value  # noqa: PLR0124 - NaN


def _without_nulls(value: Any) -> Any:
    """Return a value without the keys that a table adds where only other rows have them."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if not _null(each)}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _misshapen(found: str, where: str) -> InputError:
    return InputError(
        f"expected a list of messages, each with role and content as text, got {found}",
        where=where,
        remedy='write it as [{"role": "user", "content": "..."}, ...]',
    )


def _no_tools(found: str, where: str) -> InputError:
    return InputError(
        f"expected a list of tools, each an object, got {found}",
        where=where,
        remedy='write it as [{"type": "function", "function": {...}}, ...], or drop tools_column',
    )
