"""The shapes that messages come in, and those of them that a chat template takes."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from albat_core.backbones.language.probing import PROBE, Messages, Render, changes, tried
from albat_core.errors import InputError


def content_of(text: str, parts: bool) -> Any:
    """Return a text as a message's content: a list of its parts, or itself."""
    return [{"type": "text", "text": text}] if parts else text


def has_parts(messages: Messages) -> bool:
    """Tell whether a message has a list of parts as its content."""
    return any(isinstance(message.get("content"), list) for message in messages)


def around_user(render: Render) -> tuple[str, str] | None:
    """Return what stands around a user's first words, up to the answer; None: they do not show."""
    for parts in (False, True):
        asked = [{"role": "user", "content": content_of(PROBE, parts)}]
        front, shown, behind = (tried(render, asked, prompt=True) or "").partition(PROBE)
        if shown:
            return front, behind
    return None


def shapes(messages: Messages, writes: Callable[[bool], bool]) -> Iterator[Messages]:
    """Yield a chat in the shapes to try, the likelier first: most templates print objects.

    Args:
        messages: as they came.
        writes: whether the template writes what contents say that are lists of parts (or texts).
    """
    kinds = {isinstance(m["content"], list) for m in messages if m.get("content")}
    if not all(map(writes, kinds)):
        other = next(filter(writes, (False, True)), None)
        if other is not None:
            messages = [_with_content(message, other) for message in messages]
    yield from (_with_arguments(messages, arguments) for arguments in (_as_object, _as_json))


def writes_contents(render: Render, parts: bool) -> bool:
    """Tell whether a template writes what contents of a kind say.

    Some leave out what is not of the kind that they were written for, others print lists as code.
    """
    content = content_of(PROBE, parts)
    asked = {"role": "user", "content": content_of("a", parts)}
    text = tried(render, [asked, {"role": "assistant", "content": content}]) or ""
    codes = (str(content), json.dumps(content, ensure_ascii=False)) if parts else ()
    return PROBE in text and not any(code in text for code in codes)


def refuse_lost_calls(whole: str, messages: Messages, render: Render, name: str) -> None:
    """Raise where the template leaves out a call: an answer that says nothing would be learnt."""
    for turn, message in enumerate(messages):
        if not message.get("tool_calls") or message["role"] != "assistant":
            continue
        changed = [tried(render, some) for some in list(changes(messages, turn))[1:]]
        if changed and all(other in (None, whole) for other in changed):
            raise InputError(
                f"expected a chat template that writes tool_calls, it leaves out those of message "
                f"{turn}",
                where=f"example {name}",
                remedy="use a model whose template has them, or write the calls into the content",
            )


def _with_content(message: dict[str, Any], parts: bool) -> dict[str, Any]:
    """Return a message whose content is of a kind."""
    content = message.get("content")
    if content is None or isinstance(content, list) == parts:
        return message
    text = content if parts else "".join(part["text"] for part in content)
    return {**message, "content": content_of(text, parts)}


def _as_object(arguments: Any) -> Any:
    """Return a call's arguments as an object, where they are JSON of one."""
    try:
        parsed = json.loads(arguments)
    except (TypeError, ValueError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _as_json(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _with_arguments(messages: Messages, arguments: Callable[[Any], Any]) -> Messages:
    """Return messages with the arguments of their calls in another shape."""

    def reshaped(call: Any) -> Any:
        if not isinstance(call, dict):
            return call
        if isinstance(call.get("function"), dict):
            return {**call, "function": reshaped(call["function"])}
        return {**call, "arguments": arguments(call["arguments"])} if "arguments" in call else call

    return [
        {**message, "tool_calls": [reshaped(call) for call in message["tool_calls"]]}
        if isinstance(message.get("tool_calls"), list)
        else message
        for message in messages
    ]
