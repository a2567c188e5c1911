"""Where in a chat's text the assistant speaks, by the text alone that other messages give."""

import re
from collections.abc import Sequence
from itertools import takewhile

from albat_core.backbones.language.probing import (
    PROBE,
    Messages,
    Render,
    alike,
    changes,
    differs,
    shows,
    tried,
)
from albat_core.backbones.language.shapes import content_of, has_parts

_OTHERS = frozenset({"assistant", "user", "system", "developer"})
"""Roles that have turns of their own: what a tool says may stand in the turn that called it."""


class Spans:
    """Finds what the assistant says in a turn.

    Args:
        special: tokens of the tokenizer, longest first.
    """

    def __init__(self, special: Sequence[str]) -> None:
        self._special = frozenset(special)
        self._unit = re.compile("|".join([*map(re.escape, special), "."]), re.DOTALL)
        self._headers: dict[bool, tuple[str, bool]] = {}

    def of(
        self, whole: str, messages: Messages, turn: int, render: Render
    ) -> list[tuple[int, int]]:
        """Return where the assistant speaks in a turn, from and to: once, or around tools' answers.

        Args:
            whole: the chat's text.
            messages: the chat.
            turn: place of the assistant's message.
            render: writes messages by the chat's template.
        """
        start, end = self._span(whole, messages, turn, render)
        spans = [(start, end)]
        for other in range(turn + 1, len(messages)):
            if messages[other]["role"] in _OTHERS:
                break
            first = shows(whole, messages, other, render, first=True)
            if first is None or not start <= first < spans[-1][1]:
                break  # it stands behind the turn, as usual
            answered = self._answered(whole, messages, turn, other, render, first)
            if answered is None or answered[1] > spans[-1][1]:
                break
            spans[-1:] = [(spans[-1][0], answered[0]), (answered[1], spans[-1][1])]
        return [(a, b) for a, b in spans if a < b] or [(start, end)]

    def _answered(
        self,
        whole: str,
        messages: Messages,
        turn: int,
        other: int,
        render: Render,
        first: int,
    ) -> tuple[int, int] | None:
        """Return where another's message stands in the text, with what is written around it.

        That is what is gone where it is left out, but for what the turn's own message says.
        """
        last = shows(whole, messages, other, render)
        if last is None:
            return None
        without = tried(render, [*messages[:other], *messages[other + 1 :]])
        if without is None:
            return first, last
        start = len(self._common(whole, without))
        same = alike(whole[start:][::-1], without[start:][::-1])
        end = len(whole) - same
        for unit in self._unit.finditer(whole, start):
            if unit.end() >= end:
                end = unit.end() if unit.start() < end else end
                break
        if not start <= first <= last <= end:
            return first, last
        own = shows(whole, messages, turn, render, first=True)  # the content may stand behind it
        return start, own if own is not None and last <= own < end else end

    def _span(self, whole: str, messages: Messages, turn: int, render: Render) -> tuple[int, int]:
        """Return where in the whole text the assistant speaks in a turn, from and to."""
        header, asks = self._header(messages, render)
        before = tried(render, messages[:turn], prompt=asks)
        before = before if before is None or asks else before + header
        said = tried(render, messages[: turn + 1])
        if before and said and said.startswith(before) and whole.startswith(said):
            start, end = len(before), len(said)
        else:
            start = self._start(whole, messages, turn, render, before, header, asks)
            end = max(start, self._end(whole, messages, turn, render, said))
        if header.strip() and whole.startswith(
            header, start, end
        ):  # not asked for behind a tool's answer
            start += len(header)
        spoken = whole[start:end].rstrip(" ")  # a space behind an end token is the next turn's
        return start, start + len(spoken) if spoken.endswith(tuple(self._special)) else end

    def _start(
        self,
        whole: str,
        messages: Messages,
        turn: int,
        render: Render,
        before: str | None,
        header: str,
        asks: bool,
    ) -> int:
        """Return where the header ends that the template writes to have the turn answered."""
        content = shows(whole, messages, turn, render, first=True)
        if content is None:  # dropped with the reasoning that it begins with
            content = shows(whole, messages, turn, render)
        content = len(whole) if content is None else content
        earlier, after = self._last_shown(whole, messages, turn, render)
        place = whole.find(header, after, content + len(header)) if header.strip() else -1
        if place >= 0:
            return place + len(header)
        if before is not None and earlier is not None:  # a part of the header was rewritten
            asked = (tried(render, m, prompt=asks) for m in changes(messages[:turn], earlier))
            ending = differs(before, asked)
            if ending is not None:
                same = self._common(whole[after:], before[ending:])
                end = after + len(same)
                return end if same == before[ending:] else min(end, content)
        units = self.units(header)
        for count in range(len(units), 0, -1):
            part = "".join(units[:count])
            place = whole.rfind(part, after, content)
            if place >= 0:
                return place + len(part)
        return len(whole[:content].rstrip(" "))

    @staticmethod
    def _last_shown(
        whole: str, messages: Messages, turn: int, render: Render
    ) -> tuple[int | None, int]:
        """Return the last message before a turn that shows in the text, and where it ends."""
        for earlier in range(turn - 1, -1, -1):
            shown = shows(whole, messages, earlier, render)
            if shown is not None:
                return earlier, shown
        return None, 0

    def _end(
        self, whole: str, messages: Messages, turn: int, render: Render, said: str | None
    ) -> int:
        """Return where the turn's end of turn ends, with the line break that belongs to it."""
        if said is not None and (ends := self._ends(whole, messages, turn, render, said)):
            return max(ends)
        shown = shows(whole, messages, turn, render)
        if shown is None:
            return 0
        if said is None:
            rest = self.units(whole[shown:])
            quiet = list(takewhile(lambda unit: unit not in self._special, rest))
            if len(quiet) == len(rest):
                return len(whole)
            after = rest[len(quiet) :]
            broken = len(after) > 1 and after[1] == "\n"
            return shown + len("".join(quiet)) + len(after[0]) + broken
        return shown

    def _ends(
        self, whole: str, messages: Messages, turn: int, render: Render, said: str
    ) -> list[int]:
        """Return where the turn ends by what is behind its content, and behind its last call.

        Each is looked for in the whole and in the chat up to this turn, ``said``.
        """
        found = []
        pairs = zip(changes(messages, turn), changes(messages[: turn + 1], turn), strict=True)
        for changed, last in pairs:
            shown = differs(whole, iter([tried(render, changed)]))
            alone = differs(said, iter([tried(render, last)]))
            if shown is None or alone is None:
                continue
            tail = said[alone:]
            same = self._common(whole[shown:], tail)
            if tail.strip() and not same.strip():  # a last turn is ended by another token
                following = self.units(whole[shown : shown + 200])[:1]
                same = following[0] if following and following[0] in self._special else same
            found.append(shown + len(same))
        return found

    def _header(self, messages: Messages, render: Render) -> tuple[str, bool]:
        """Return what stands before an answer, and whether the template writes it when asked."""
        parts = has_parts(messages)
        if parts not in self._headers:
            asking = [{"role": "user", "content": content_of("a", parts)}]
            answer = {"role": "assistant", "content": content_of(PROBE, parts)}
            plain, asked = tried(render, asking), tried(render, asking, prompt=True)
            header = (asked or "")[len(self._common(asked or "", plain or "")) :]
            asks = bool(header)
            if not asks:
                answered = tried(render, [*asking, answer]) or ""
                header = answered[len(self._common(answered, plain or "")) :]
                header = header.partition(PROBE)[0].rstrip(" ")
            self._headers[parts] = header, asks
        return self._headers[parts]

    def units(self, text: str) -> list[str]:
        """Return a text as special tokens and characters."""
        return self._unit.findall(text)

    def _common(self, one: str, other: str) -> str:
        """Return how two texts begin alike, no special token cut in two."""
        same = alike(one, other)
        for text in (one, other):
            for cut in self._unit.finditer(text, max(0, same - 100), same + 100):
                if cut.start() < same < cut.end():
                    same = cut.start()
        return one[:same]
