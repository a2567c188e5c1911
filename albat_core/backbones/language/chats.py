"""Chats as a chat template writes them, and where in that the assistant speaks.

One mechanism serves all templates, those with ``{% generation %}`` marks too: what an answer's
neighbourhood renders to is compared with the whole, beginning where a changed message shows.
Nothing has to be a prefix of anything, so templates may rewrite earlier turns.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import takewhile
from typing import Any

from albat_core.backbones.language.probing import (
    REFUSALS,
    Messages,
    Render,
    shows,
    tried,
)
from albat_core.backbones.language.shapes import (
    around_user,
    refuse_lost_calls,
    shapes,
    writes_contents,
)
from albat_core.backbones.language.spans import Spans
from albat_core.errors import BackboneError, InputError
from albat_core.records.examples import REASONING, Example

_DIRECTIVES = "aAbBcdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ"
_MARKED = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclass(frozen=True)
class Spoken:
    """A chat as text, and what of it is the assistant's.

    Args:
        ids: its tokens.
        mask: for each, whether it carries loss.
        ended: the template wrote an end behind the last answer.
    """

    ids: list[int]
    mask: list[bool]
    ended: bool


@dataclass(frozen=True)
class LastAnswer:
    """A chat as text, and where in it the assistant answers last.

    Args:
        whole: the chat up to the end of that answer, and what the template writes behind it.
        start: characters in front of it, the header that asks for it included.
        content: where what the message says begins: behind what the template writes in front of it,
            such as an empty thought.
        end: where it ends, its end of turn included.
        closing: what the template ends it with, without white space: a special token where it has
            one, else text; "" where it writes neither.
    """

    whole: str
    start: int
    content: int
    end: int
    closing: str


@dataclass(frozen=True)
class _Written:
    """A chat as its template writes it, with the tools to write parts of it."""

    messages: Messages
    whole: str
    spans: list[tuple[int, int]]
    template: str
    apply: Callable[..., Any]
    render: Render


def dated(template: str, day: date) -> str:
    """Return a template in which today is always that day, as transformers lets none be passed."""
    if "strftime_now" not in template:
        return template
    written = {f"%-{c}": str(int(day.strftime(f"%{c}"))) for c in "dmHIMSj"}
    written |= {f"%{c}": day.strftime(f"%{c}") for c in _DIRECTIVES} | {"%%": "%"}
    changes = "".join(f" | replace({old!r}, {new!r})" for old, new in written.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{changes} }}}}{{% endmacro +%}}{template}"


class ChatRenderer:
    """Writes chats by a tokenizer's template.

    Args:
        tokenizer: of transformers, a fast one.
        where: its folder, for errors.
        day: what templates are told is today.
    """

    def __init__(self, tokenizer: Any, where: str, day: date) -> None:
        self._tokenizer = tokenizer
        self._where = where
        self._day = day
        special = sorted(tokenizer.added_tokens_encoder, key=len, reverse=True)
        self._special = frozenset(special)
        self._spans = Spans(special)
        self._written: dict[bool, bool] = {}

    def spoken(self, example: Example) -> Spoken:
        """Return a chat's tokens up to the last answer that carries loss.

        Raises:
            BackboneError: the tokenizer has no chat template.
            InputError: its template refuses the chat; it says which message.
        """
        written = self._write(example)
        if written is None:
            return Spoken([], [], ended=True)
        whole = written.whole
        encoded = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
        mask = [any(b > start and a < end for start, end in written.spans) for a, b in offsets]
        if _MARKED.search(written.template):
            marked = written.apply(
                written.messages, return_dict=True, return_assistant_tokens_mask=True
            )
            mask = _within(mask, marked["assistant_masks"])
        return Spoken(ids, mask, self._ended(whole, written.messages, written.render))

    def last_answer(self, example: Example) -> LastAnswer | None:
        """Return where the last answer that carries loss stands; None where there is none.

        Raises:
            BackboneError: see ``spoken``.
            InputError: see ``spoken``.
        """
        written = self._write(example)
        if written is None:
            return None
        whole, messages = written.whole, written.messages
        start, end = written.spans[-1]
        said = whole[start:end].rstrip()
        closing = max((t for t in self._special if said.endswith(t)), key=len, default="")
        if not closing and not messages[-1].get("tool_calls"):  # whose end is that of a call
            shown = shows(whole, messages, len(messages) - 1, written.render)
            closing = "" if shown is None else whole[shown:end].strip()
        content = None
        if not messages[-1].keys() & {*REASONING}:  # which the answer says too
            content = shows(whole, messages, len(messages) - 1, written.render, first=True)
        content = start if content is None else min(max(content, start), end)
        return LastAnswer(whole, start, content, end, closing)

    def opening(self) -> tuple[str, str]:
        """Return what stands in front of a user's first words, and what ends them, "" if nothing.

        Raises:
            BackboneError: the tokenizer has no chat template, or it does not show them.
        """
        around = around_user(self._rendering(None)[2])
        if around is None:
            raise BackboneError(
                "expected a chat template that begins with a user's words, it does not show them",
                where=self._where,
                remedy="give generated.prompts",
            )
        front, behind = around[0].rstrip(" "), around[1].strip()  # a space is the first word's
        first = "".join(self._spans.units(behind)[:1])
        return front, first if first in self._special else behind

    def length(self, example: Example) -> int:
        """Return how many tokens a chat has up to the last answer that carries loss.

        Raises:
            BackboneError: see ``spoken``.
            InputError: see ``spoken``.
        """
        messages = _up_to_learnt(example)[0]
        if not messages:
            return 0
        render = self._rendering(_tools(example))[2]
        whole = self._whole(messages, render, example.example_id)[1]
        return len(self._tokenizer(whole, add_special_tokens=False)["input_ids"])

    def _write(self, example: Example) -> _Written | None:
        """Return a chat up to the last answer that carries loss; None where there is none."""
        template, apply, render = self._rendering(_tools(example))
        messages, turns = _up_to_learnt(example)
        if not turns:
            return None
        messages, whole = self._whole(messages, render, example.example_id)
        spans = [s for turn in turns for s in self._spans.of(whole, messages, turn, render)]
        return _Written(messages, whole, spans, template, apply, render)

    def _rendering(self, tools: list[Any] | None) -> tuple[str, Callable[..., Any], Render]:
        """Return the template, what applies it, and what writes text by it."""
        if not self._tokenizer.chat_template:
            raise BackboneError(
                "expected a chat template for rows of messages, the tokenizer has none",
                where=self._where,
                remedy="use a chat model, or template / prompt_template columns instead; for "
                "generated: `freely: true`, or prompts",
            )
        template = dated(self._tokenizer.get_chat_template(tools=tools), self._day)

        def apply(some: Messages, *, prompt: bool = False, **how: Any) -> Any:
            return self._tokenizer.apply_chat_template(
                some, tools=tools, chat_template=template, add_generation_prompt=prompt, **how
            )

        def render(some: Messages, *, prompt: bool = False) -> str:
            return str(apply(some, prompt=prompt, tokenize=False))

        return template, apply, render

    def _whole(self, messages: Messages, render: Render, name: str) -> tuple[Messages, str]:
        """Return a chat in the shape that its template takes, and its text."""
        first: Exception | None = None
        for shape in shapes(messages, lambda parts: self._writes(parts, render)):
            try:
                whole = render(shape)
            except REFUSALS as error:
                first = first or error
                continue
            refuse_lost_calls(whole, shape, render, name)
            return shape, whole
        taken = (n for n in range(len(messages), 0, -1) if tried(render, messages[:n]) is not None)
        turn = next(taken, 0)
        role = messages[turn]["role"]
        raise InputError(
            f"expected a chat that the chat template takes, it refuses message {turn}, of role "
            f"{role!r} ({str(first).strip() or type(first).__name__})",
            where=f"example {name}",
            remedy=f"change or leave out that message: say, a {role} message that the template "
            "does not know can stand at the head of the user's",
        ) from first

    def _writes(self, parts: bool, render: Render) -> bool:
        """Tell whether the template writes what contents of a kind say."""
        if parts not in self._written:
            self._written[parts] = writes_contents(render, parts)
        return self._written[parts]

    def _ended(self, whole: str, messages: Messages, render: Render) -> bool:
        """Tell whether the template wrote anything behind the last answer."""
        if whole.rstrip().endswith(tuple(self._special)):
            return True
        shown = shows(whole, messages, len(messages) - 1, render)
        return shown is None or bool(whole[shown:].strip())


def _up_to_learnt(example: Example) -> tuple[Messages, list[int]]:
    """Return messages up to the last answer that carries loss, and which of them carry it."""
    messages = list(example.messages or ())
    turns = [n for n, message in enumerate(messages) if _learnt(message)]
    return messages[: turns[-1] + 1] if turns else [], turns


def _learnt(message: dict[str, Any]) -> bool:
    return bool(message["role"] == "assistant" and message.get("weight", 1))


def _tools(example: Example) -> list[Any] | None:
    """Return the tools of a chat: the row's, or those that stand in a message."""
    if example.tools is not None:
        return list(json.loads(example.tools)) or None
    for message in example.messages or ():
        tools = message.get("tools")
        if isinstance(tools, list) and tools:
            return tools
    return None


def _within(mask: Sequence[bool], marked: Sequence[int]) -> list[bool]:
    """Return which tokens of answers the template marks, each answer's end included.

    Args:
        mask: (t,) tokens of answers.
        marked: (t,) tokens between the template's marks.
    """
    kept = [bool(spoken and mark) for spoken, mark in zip(mask, marked, strict=True)]
    for place in range(1, len(kept)):  # behind its last mark an answer has only its end
        follows = mask[place] and kept[place - 1] and not marked[place]
        kept[place] = kept[place] or (follows and not _marked_again(mask, marked, place))
    return kept


def _marked_again(mask: Sequence[bool], marked: Sequence[int], place: int) -> bool:
    """Tell whether the answer has a mark from a token on."""
    rest = takewhile(lambda pair: pair[0], zip(mask[place:], marked[place:], strict=True))
    return any(mark for _, mark in rest)
