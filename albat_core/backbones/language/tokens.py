"""Texts, prompts with answers and chats as tokens, and cut to what a language model takes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import AutoTokenizer

from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.folder import (
    MODEL_CONFIG,
    backbone_folder,
    refuse_other_kind,
    unreadable,
)
from albat_core.errors import BackboneError, InputError
from albat_core.records.examples import Example

_LETTERS_A_TOKEN = 64
"""A text of so many for each token that fits is surely cut: by stretches, which takes no memory."""
_SHORTEST_ANSWER = 4  # tokens of answer that must fit behind a prompt


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
        if not self.tokenizer.is_fast:
            raise BackboneError(
                "expected a tokenizer that maps tokens to characters, got a slow one",
                where=str(folder),
                remedy="save the model with a fast tokenizer (tokenizer.json)",
            )
        self.where = str(folder)
        self.max_length = config.max_length
        self._stretch = _LETTERS_A_TOKEN * config.max_length
        self._specials = len(self.tokenizer("")["input_ids"]) + 1  # and the end of the text

    def beginnings(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the tokens from which to write on, one or more for each prompt.

        Raises:
            InputError: a prompt leaves no room to write.
            BackboneError: a prompt is empty, and no token is known to begin with.
        """
        return [self._beginning(prompt) for prompt in prompts]

    def _beginning(self, prompt: str) -> list[int]:
        ids = list(self.tokenizer(prompt)["input_ids"])
        first, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if len(ids) > 1 and ids[-1] == end:  # some tokenizers end every text
            ids.pop()
        if not ids:
            ids = [token for token in (first, end) if token is not None][:1]
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

    def tokens(self, example: Example) -> tuple[list[int], list[bool]]:
        """Return token ids and, for each, whether predicting it is part of the loss.

        A text ends with the end-of-text token unless it ``continues``; loss falls on all tokens
        but the first, or on those behind the prompt, or on the assistant's turns.
        """
        if example.messages is not None:
            return self._chat_tokens(example)
        text = example.text or ""
        encoded = self.tokenizer(text, return_offsets_mapping=example.prompt is not None)
        ids = list(encoded["input_ids"])
        if example.prompt is None:
            mask = [True] * len(ids)
        else:
            starts_at = len(example.prompt)
            mask = [end > starts_at for _, end in encoded["offset_mapping"]]
        end_of_text = self.tokenizer.eos_token_id
        if not example.continues and end_of_text is not None and ids[-1:] != [end_of_text]:
            ids.append(end_of_text)
            mask.append(True)
        mask[:1] = [False] * len(mask[:1])
        return ids, mask

    def _chat_tokens(self, example: Example) -> tuple[list[int], list[bool]]:
        messages = list(example.messages or ())
        if not self.tokenizer.chat_template:
            raise BackboneError(
                "expected a chat template for rows of messages, the tokenizer has none",
                where=self.where,
                remedy="use a chat model, or template / prompt_template columns instead",
            )
        ids: list[int] = []
        mask: list[bool] = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            asked = self._render(messages[:turn], generation=True)
            answered = self._render(messages[: turn + 1], generation=False)
            if answered[: len(asked)] != asked or asked[: len(ids)] != ids:
                raise BackboneError(
                    "expected a chat template that only appends as a chat goes on",
                    where=f"{self.where}, example {example.example_id}",
                    remedy="use prompt_template and answer_template instead of messages",
                )
            mask += [False] * (len(asked) - len(ids)) + [True] * (len(answered) - len(asked))
            ids = answered
        mask[:1] = [False] * len(mask[:1])
        return ids, mask

    def _render(self, messages: list[dict[str, str]], *, generation: bool) -> list[int]:
        if not messages:
            return []
        rendered = self.tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=generation, return_dict=True
        )
        return list(rendered["input_ids"])

    def pieces(self, example: Example) -> list[Example]:
        """Cut an example into ones of at most ``max_length`` tokens; itself where it fits.

        Text is cut between words. A prompt/answer row keeps its prompt in front of the answer's
        first part; what is left of the answer follows as text. A chat loses its last turns.
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
            while last > first and len(self._offsets(text[start:end])) > room:
                last -= 1
                end = self._end(text, offsets[last][0])
            end = max(end, start + 1)
            spans.append((start, end))
            first, start = last, end
        if spans and len(self._offsets(text[start:])) > room:
            return spans + [(start + a, start + b) for a, b in self._spans_of_stretch(text[start:])]
        return [*spans, (start, len(text))]

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        """Return the character span of each token."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["offset_mapping"])

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
        messages = list(example.messages or ())
        while messages:
            messages.pop()
            if messages and messages[-1]["role"] == "assistant":
                shorter = replace(
                    example, example_id=f"{example.example_id}#0", messages=tuple(messages)
                )
                ids, mask = self.tokens(shorter)
                if len(ids) <= self.max_length and any(mask):
                    return [shorter]
        return []
