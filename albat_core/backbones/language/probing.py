"""Where a message shows in the text that a chat template makes: where a change of it does."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from jinja2.exceptions import TemplateError

Messages = list[dict[str, Any]]
Render = Callable[..., str]
"""Writes messages by a template; ``prompt``: with what it writes to have the last one answered."""

PROBE = "\ue0f1"
"""A character that no chat has."""
REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""What a template raises for messages that it does not take."""


def tried(render: Render, messages: Messages, *, prompt: bool = False) -> str | None:
    """Return a part of a chat as text; None where the template refuses it."""
    try:
        return render(messages, prompt=prompt)
    except REFUSALS:
        return None


def shows(
    text: str, messages: Messages, turn: int, render: Render, *, first: bool = False
) -> int | None:
    """Return where a change at the end (``first``: beginning) of a message shows in its text."""
    changed = (tried(render, some) for some in changes(messages, turn, first=first))
    return differs(text, changed)


def differs(text: str, changed: Iterator[str | None]) -> int | None:
    """Return where the first text that was changed differs; None where none was."""
    other = next((other for other in changed if other is not None and other != text), None)
    return None if other is None else alike(text, other)


def alike(one: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def changes(messages: Messages, turn: int, *, first: bool = False) -> Iterator[Messages]:
    """Yield chats with one message changed: its content, or else its last call.

    That is changed at the end of its arguments, or else of its name; ``first``: at the beginning.
    """
    message = messages[turn]
    others = messages[:turn], messages[turn + 1 :]
    content = message.get("content") or ""
    if isinstance(content, list):
        place = 0 if first else len(content) - 1
        text = _joined(content[place]["text"], first)
        content = [*content[:place], {**content[place], "text": text}, *content[place + 1 :]]
    else:
        content = _joined(content, first)
    yield [*others[0], {**message, "content": content}, *others[1]]
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls and isinstance(calls[-1], dict):
        call = calls[-1]
        inner = call.get("function")
        owner = inner if isinstance(inner, dict) else call
        changed = {**owner, "name": _joined(str(owner.get("name", "")), first)}
        arguments = owner.get("arguments")
        both = [changed] if first else [*_with_argument(owner, arguments), changed]
        for each in both:
            one = {**call, "function": each} if isinstance(inner, dict) else each
            yield [*others[0], {**message, "tool_calls": [*calls[:-1], one]}, *others[1]]


def _with_argument(owner: dict[str, Any], arguments: Any) -> Iterator[dict[str, Any]]:
    """Yield a call whose last argument ends otherwise, if it has any."""
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return
        for each in _with_argument(owner, arguments):
            yield {**owner, "arguments": json.dumps(each["arguments"], ensure_ascii=False)}
    elif isinstance(arguments, dict) and arguments:
        name, value = [*arguments.items()][-1]
        changed = _joined(value if isinstance(value, str) else json.dumps(value), first=False)
        yield {**owner, "arguments": arguments | {name: changed}}


def _joined(text: str, first: bool) -> str:
    return PROBE + text if first else text + PROBE
