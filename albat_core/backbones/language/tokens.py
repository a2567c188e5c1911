"""Texts, prompts with answers and chats as tokens, and cut to what a language model takes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import AutoTokenizer

from albat_core.backbones.base import Question
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.folder import (
    MODEL_CONFIG,
    backbone_folder,
    refuse_other_kind,
    unreadable,
)
from albat_core.backbones.language.chats import ChatRenderer
from albat_core.errors import BackboneError, InputError
from albat_core.records.examples import Example

_LETTERS_A_TOKEN = 64
"""A text of so many for each token that fits is surely cut: by stretches, which takes no memory."""
_USUAL_LETTERS = 8  # a token: texts of more are looked at one after the other, as they are cut
_FEW = 4  # tokens of which two are left, whatever begins and ends a text
_SHORTEST_ANSWER = 4  # tokens of answer that must fit behind a prompt
_LEAST_SHARE = 0.25
"""Of a full piece that the last one has at least: a mean loss over a few tokens says nothing."""


class TextEncoder:
    """Turns examples into tokens, with the mask that says which of them carry loss.

    Args:
        config: names the tokenizer's folder and the longest sequence.
    """

    def __init__(self, config: BackboneConfig) -> None:
        folder = backbone_folder(config)
        refuse_other_kind(folder, MODEL_CONFIG, "language")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=config.trust_remote_code
            )
        except (OSError, ValueError, KeyError) as error:
            raise unreadable("tokenizer", folder, error) from error
        self.where = str(folder)
        self.max_length = config.max_length
        if not self.tokenizer.is_fast:
            raise BackboneError(
                "expected a tokenizer that maps tokens to characters, got a slow one",
                where=str(folder),
                remedy="save the model with a fast tokenizer (tokenizer.json)",
            )
        self._stretch = _LETTERS_A_TOKEN * config.max_length
        self._chats = ChatRenderer(self.tokenizer, self.where, config.chat_date)
        self.tokenizer("")  # what is behind it neither pads nor cuts from here on
        self._backend: Any = self.tokenizer.backend_tokenizer
        self._specials = len(self._encoded("")[0]) + 1  # and the end of the text

    def beginnings(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the tokens from which to write on, one or more for each prompt.

        Raises:
            InputError: a prompt leaves no room to write.
            BackboneError: a prompt is empty, and no token is known to begin with.
        """
        return [self._beginning(prompt) for prompt in prompts]

    def _beginning(self, prompt: str) -> list[int]:
        ids = self._encoded(prompt)[0] or self._first()
        if not ids:
            raise BackboneError(
                "expected a token that begins a text, the tokenizer has none",
                where=self.where,
                remedy="give generated.prompts",
            )
        if len(ids) >= self.max_length:
            raise InputError(
                f"expected a prompt of less than {self.max_length} tokens (max_length), "
                f"got {len(ids)}",
                where=f"prompt {prompt[:60]!r}",
                remedy="shorten it, or raise backbone.max_length",
            )
        return ids

    def _first(self) -> list[int]:
        """Return the token that begins a text of which nothing is there; none where none does."""
        begins = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        return [token for token in begins if token is not None][:1]

    def opening(self) -> Question:
        """Return what a chat begins with, which a user's first words answer (arXiv 2406.08464).

        Raises:
            BackboneError: the tokenizer has no chat template, or it does not show them.
        """
        front, closing = self._chats.opening()
        ids = list(self.tokenizer(front, add_special_tokens=False)["input_ids"]) or self._first()
        return self._ended(Question(ids, self.decoded(ids), ""), closing)

    def _ended(self, question: Question, closing: str) -> Question:
        """Return a question whose answer ends with a text, or the special token that it is."""
        named = closing in self.tokenizer.added_tokens_encoder
        end = self.tokenizer.convert_tokens_to_ids(closing) if named else None
        return replace(question, end=end, stop="" if named else closing)

    def question(self, example: Example) -> Question:
        """Return what is asked for a row's answer, and the answer.

        The tokens are those in front of the first that carries loss, so that an answer is asked for
        as it was trained: a space that ends a prompt is often part of the answer's first token.

        Args:
            example: with a prompt and an answer, or a chat whose last answer has turns before it.

        Raises:
            BackboneError: the tokenizer has no chat template.
            InputError: its template refuses the chat.
        """
        if example.messages is None:
            text, start = example.text or "", len(example.prompt or "")
            ids, ends = self._encoded(text)
            first = next((n for n, end in enumerate(ends) if end > start), len(ids))
            asked = ids[:first] or self._encoded(text[:start])[0]
            begun = ends[first - 1] if first else start
            prompt, reference = example.prompt or "", text[start:].strip()
            most = len(ids) - first if example.continues else None
            return Question(asked, prompt, reference, lead=text[begun:start], most=most)
        spoken = self._chats.last_answer(example)
        assert spoken is not None  # rows without an answer are not asked
        whole, start = spoken.whole, spoken.start
        encoded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
        first = next((n for n, (_, end) in enumerate(offsets) if end > start), len(ids))
        said = next((n for n, (_, end) in enumerate(offsets) if end > spoken.content), len(ids))
        last = sum(begin < spoken.end for begin, _ in offsets)
        across = whole[offsets[said][0] : spoken.content] if said < last else ""
        lead = self.decoded(ids[first:said]) + across
        before = Question(ids[:first] or self._first(), self.decoded(ids[:first]), "", lead=lead)
        question = self._ended(before, spoken.closing)
        return replace(question, reference=self.said(question, ids[first:last]))

    def said(self, question: Question, ids: Sequence[int]) -> str:
        """Return what the tokens of an answer say, without its end and white space around it."""
        text = self.decoded(ids).removeprefix(question.lead)
        return (text.partition(question.stop)[0] if question.stop else text).strip()

    def decoded(self, ids: Sequence[int]) -> str:
        """Return tokens as text, without special ones."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def tokens(self, example: Example) -> tuple[list[int], list[bool]]:
        """Return token ids and, for each, whether predicting it is part of the loss.

        A text ends with the end-of-text token unless it ``continues``; loss falls on all tokens
        but the first, or on those behind the prompt, or on the assistant's turns.
        """
        if example.messages is not None:
            return self._chat_tokens(example)
        text = example.text or ""
        if example.prompt is None:
            [encoded] = self._backend.encode_batch_fast([text])  # places of tokens are not asked
            ids = encoded.ids[self._own(encoded)]
            mask = [True] * len(ids)
        else:
            ids, ends = self._encoded(text)
            mask = [end > len(example.prompt) for end in ends]
        end_of_text = self.tokenizer.eos_token_id
        if not example.continues and end_of_text is not None and ids[-1:] != [end_of_text]:
            ids.append(end_of_text)
            mask.append(True)
        mask[:1] = [False] * len(mask[:1])
        return ids, mask

    def trap(self, example: Example) -> str | None:
        """Tell where a token reaches from a prompt into its answer; None: none does.

        Whoever asks with the prompt alone has other tokens than were trained on, and gets no
        answer.
        """
        if not example.prompt:
            return None
        asked, whole = (self._encoded(text)[0] for text in (example.prompt, example.text or ""))
        if whole[: len(asked)] == asked:
            return None
        end = example.prompt[-12:]
        return (
            f"the end of the prompt, {end!r}, is one token with the beginning of the answer: end "
            "prompts before the space, and begin answers with it"
        )

    def _encoded(self, text: str) -> tuple[list[int], list[int]]:
        """Return a text's tokens and the character behind each, begun as the tokenizer does.

        It is not ended, though some tokenizers do that, and begun once, though the text may begin
        with the token that begins it.
        """
        encoded = self._backend.encode(text)
        own = self._own(encoded)
        return encoded.ids[own], [end for _, end in encoded.offsets[own]]

    def _own(self, encoded: Any) -> slice:
        """Return which tokens of an encoded text are its own and the one that begins it."""
        ids, added = encoded.ids, encoded.special_tokens_mask
        start, stop = 0, len(ids)
        if stop > 1 and ids[-1] == self.tokenizer.eos_token_id and added[-1]:
            stop -= 1
        if stop > 1 and added[0] and ids[1] == ids[0] == self.tokenizer.bos_token_id:
            start = 1
        return slice(start, stop)

    def _chat_tokens(self, example: Example) -> tuple[list[int], list[bool]]:
        spoken = self._chats.spoken(example)
        ids, mask = spoken.ids, spoken.mask
        end_of_text = self.tokenizer.eos_token_id
        if not spoken.ended and end_of_text is not None:
            ids, mask = [*ids, end_of_text], [*mask, True]
        mask[:1] = [False] * len(mask[:1])
        return ids, mask

    def fitting(self, examples: Sequence[Example]) -> list[bool]:
        """Tell which rows are sure to be their own only piece: texts, tokenized together."""
        places = [n for n, example in enumerate(examples) if self._may_fit(example)]
        texts = [examples[n].text or "" for n in places]
        found = [False] * len(examples)
        # no offsets, and no Python objects of tokens: only how many there are is asked
        for n, tokens in zip(places, self._backend.encode_batch_fast(texts), strict=True):
            # an end may be added; it, and a beginning written twice, may be taken off
            found[n] = _FEW <= len(tokens) < self.max_length
        return found

    def _may_fit(self, example: Example) -> bool:
        """Tell whether so many tokens alone say that a row fits, with some to learn."""
        text = example.text or ""
        if example.messages is not None or example.image is not None or example.continues:
            return False
        learns = example.prompt is None or (
            len(text) > len(example.prompt) and self.tokenizer.eos_token_id is not None
        )
        return learns and len(text) <= _USUAL_LETTERS * self.max_length

    def pieces(self, example: Example) -> list[Example]:
        """Cut an example into ones of at most ``max_length`` tokens; itself where it fits.

        Text is cut between words; a last piece of a few tokens shares with the one before. A
        prompt/answer row keeps its prompt in front of the answer's first part; what is left of the
        answer follows as text. A chat loses its last turns.
        Nothing is returned where a prompt leaves no room for an answer. A lone token or character
        between two cuts is left out where nothing can be learned from it.

        Raises:
            InputError: it has a picture.
        """
        if example.image is not None:
            raise InputError(
                "expected a text, the row has a picture, and a language model reads none",
                where=f"example {example.example_id}",
                remedy="set backbone.kind: diffusion, or drop image_column",
            )
        text = example.text or ""
        spans = self._spans(text) if len(text) > self._stretch else []
        if len(spans) < 2:
            ids, mask = self.tokens(example)
            if not any(mask):
                return []
            if len(ids) <= self.max_length:
                return [example]
            if example.messages is not None:
                return self._shorter_chat(example)
            spans = self._spans(text)
        if example.prompt is not None:
            first_end = spans[0][1]
            answer_tokens = sum(self.tokens(replace(example, text=text[:first_end]))[1])
            if first_end <= len(example.prompt) or answer_tokens < _SHORTEST_ANSWER:
                return []
        spans = self._levelled(text, spans, len(example.prompt or ""))
        pieces = [
            replace(
                example,
                example_id=f"{example.example_id}#{number}",
                text=text[start:end],
                prompt=example.prompt if number == 0 else None,
                continues=example.continues or number < len(spans) - 1,
            )
            for number, (start, end) in enumerate(spans)
        ]
        return [piece for piece in pieces if self._is_of_use(piece)]

    def _is_of_use(self, piece: Example) -> bool:
        """Tell whether a piece fits and has something to learn; only a few characters may not."""
        if len(piece.text or "") >= self.max_length:
            return True
        ids, mask = self.tokens(piece)
        return len(ids) <= self.max_length and any(mask)

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Return the character spans of consecutive pieces; long texts are cut by stretches."""
        spans: list[tuple[int, int]] = []
        start, size = 0, self._stretch
        while start + size < len(text):
            found = self._spans_of_stretch(text[start : start + size])
            if len(found) < 3:
                size *= 2
                continue
            # a stretch may end inside a word, which shifts the end of the last piece but one
            spans += [(start + a, start + b) for a, b in found[:-2]]
            start, size = start + found[-2][0], self._stretch
        return spans + [(start + a, start + b) for a, b in self._spans_of_stretch(text[start:])]

    def _spans_of_stretch(self, text: str) -> list[tuple[int, int]]:
        """Return the character spans of consecutive pieces, all tokens at once in memory."""
        room = self.max_length - self._specials
        offsets = self._offsets(text)
        spans, first, start = [], 0, 0
        while len(offsets) - first > room:
            last = self._word_start(text, offsets, first + room, first)
            end = self._end(text, offsets[last][0])
            # cut inside a word, a piece may have more tokens alone than in its text
            while last > first and self._count(text[start:end]) > room:
                last -= 1
                end = self._end(text, offsets[last][0])
            end = max(end, start + 1)
            spans.append((start, end))
            first, start = last, end
        if spans and self._count(text[start:]) > room:
            return spans + [(start + a, start + b) for a, b in self._spans_of_stretch(text[start:])]
        return [*spans, (start, len(text))]

    def _levelled(
        self, text: str, spans: list[tuple[int, int]], prompt: int
    ) -> list[tuple[int, int]]:
        """Return spans of which the last is no scrap: where it is, the last two share their tokens.

        Args:
            text: that is cut.
            spans: of consecutive pieces, at least two.
            prompt: characters that stay together, with some tokens of answer.
        """
        start, end = spans[-2][0], spans[-1][1]
        room = self.max_length - self._specials
        if self._count(text[slice(*spans[-1])]) >= _LEAST_SHARE * room:
            return spans
        both = text[start:end]
        offsets = self._offsets(both)
        if not offsets:  # letters of several tokens, in a row of few tokens
            return spans
        answer = sum(start + begin < prompt for begin, _ in offsets)  # its first token
        first = answer + _SHORTEST_ANSWER if answer else 0
        middle = min(max(len(offsets) // 2, first), len(offsets) - 1)
        at = start + self._end(both, offsets[self._word_start(both, offsets, middle, first)][0])
        halves = [(start, at), (at, end)]
        fits = all(a < b and self._count(text[a:b]) <= room for a, b in halves)
        return [*spans[:-2], *halves] if fits and at < spans[-1][0] else spans

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        """Return the character span of each token."""
        found: list[tuple[int, int]] = self._backend.encode(text, add_special_tokens=False).offsets
        return found

    def _count(self, text: str) -> int:
        """Return how many tokens a text has."""
        [tokens] = self._backend.encode_batch_fast([text], add_special_tokens=False)
        return len(tokens)

    @staticmethod
    def _word_start(text: str, offsets: list[tuple[int, int]], last: int, first: int) -> int:
        """Return the last token up to ``last`` that begins a word, in the piece's second half.

        A cut between words gives the same tokens when the piece is encoded alone.
        """
        for cut in range(last, (first + last) // 2, -1):
            begin = offsets[cut][0]
            if text[begin - 1].isspace() or text[begin].isspace():
                return cut
        return last

    @staticmethod
    def _end(text: str, begin: int) -> int:
        """Return where a piece ends in front of a token; its space goes with the token's word."""
        return begin - 1 if text[begin - 1] == " " else begin

    def _shorter_chat(self, example: Example) -> list[Example]:
        messages = example.messages or ()

        def first(count: int) -> Example:
            name = f"{example.example_id}#0"
            return replace(example, example_id=name, messages=messages[:count])

        counts = [n for n in range(1, len(messages)) if messages[n - 1]["role"] == "assistant"]
        # not by bisection: a thought that is left out behind the next question makes chats shorter
        for row in map(first, reversed(counts)):
            if self._chats.length(row) <= self.max_length:
                ids, mask = self.tokens(row)
                if len(ids) <= self.max_length:
                    return [row] if any(mask) else []
        return []
