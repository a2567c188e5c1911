"""What a language model writes: many texts or answers at once, each by numbers of its own."""

from collections import defaultdict
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch

from albat_core.backbones.base import Answer, Question
from albat_core.backbones.config import SamplingConfig
from albat_core.backbones.language.tokens import TextEncoder
from albat_core.records.examples import Example
from albat_core.seeding import derive_seed

_WRITTEN_AT_ONCE = 32


def write_texts(
    model: Any, encoder: TextEncoder, prompts: Sequence[str], config: SamplingConfig, seed: int
) -> list[Example]:
    """Write on from each prompt, by the model's own probabilities at a temperature.

    Prompts of one length are written on together. What is drawn for one depends on ``seed`` and
    its place alone: the others change it only as far as a batch rounds otherwise.

    Args:
        model: of transformers, a causal language model.
        encoder: with the model's tokenizer.
        prompts: beginnings of texts; an empty one leaves all to the model.
        config: the tokens written at most, and the temperature.
        seed: of every draw.

    Returns:
        a text for each, which ``continues`` where it reached the length before its end.

    Raises:
        InputError: a prompt leaves no room.
        BackboneError: a prompt is empty, and no token is known to begin with.
    """
    ends = _ends(model, encoder)
    starts = encoder.beginnings(prompts)
    alike: dict[int, list[int]] = defaultdict(list)
    for place, start in enumerate(starts):
        alike[len(start)].append(place)
    made: dict[int, Example] = {}
    for length, places in alike.items():
        count = min(config.max_new_tokens, encoder.max_length - length)
        for first in range(0, len(places), _WRITTEN_AT_ONCE):
            some = places[first : first + _WRITTEN_AT_ONCE]
            seeds = [derive_seed(seed, "generated", place) for place in some]
            temperature = config.temperature
            rows = _written(model, [starts[p] for p in some], count, temperature, seeds, ends)
            for place, row in zip(some, rows, strict=True):
                made[place] = _example(encoder, place, prompts[place], starts[place], row, ends)
    return [made[place] for place in range(len(prompts))]


def write_answers(
    model: Any,
    encoder: TextEncoder,
    questions: Sequence[Question],
    config: SamplingConfig,
    seeds: Sequence[int],
) -> list[Answer]:
    """Write an answer to each question, up to the end of the model's text or the chat's turn.

    Questions are padded on the left, where causal attention is told not to look; only those for
    which ``max_length`` leaves less room than the others have are written to apart, and of models
    whose state takes padding in (RWKV, xLSTM) those of another length; where there is no room, the
    answer is empty and has not ended.

    Args:
        model: of transformers, a causal language model.
        encoder: with the model's tokenizer.
        questions: as ``TextEncoder.question`` gave them.
        config: the tokens written at most, and the temperature; 0: the likeliest each time.
        seeds: of each one's draws.

    Returns:
        an answer for each, in order.
    """
    ends = _ends(model, encoder) | {q.end for q in questions if q.end is not None}
    sees_padding = model._is_stateful and "position_ids" not in signature(model.forward).parameters
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        length = len(question.ids)
        count = min(config.max_new_tokens, encoder.max_length - length)
        alike[count, length if sees_padding else 0].append(place)
    made: dict[int, Answer] = {}
    for (count, _), places in alike.items():
        if count <= 0:  # a question that fills max_length
            made |= dict.fromkeys(places, Answer("", ended=False))
            continue
        stops = sorted({questions[p].stop for p in places} - {""})
        until = {"stop_strings": stops, "tokenizer": encoder.tokenizer} if stops else {}
        rows = _written(
            model,
            [questions[p].ids for p in places],
            count,
            config.temperature,
            [seeds[p] for p in places],
            ends,
            num_beams=1,
            **until,
        )
        for place, whole in zip(places, rows, strict=True):
            question = questions[place]
            row = whole[: question.most]
            stop = _end_of(row, ends)
            stopped = bool(question.stop) and question.stop in encoder.decoded(row)
            ended = stop is not None or stopped
            text = encoder.said(question, row[:stop])
            # what is cut may lack the last bytes of a character
            made[place] = Answer(text if ended else text.rstrip("\ufffd").rstrip(), ended)
    return [made[place] for place in range(len(questions))]


def _written(
    model: Any,
    starts: Sequence[list[int]],
    count: int,
    temperature: float,
    seeds: Sequence[int],
    ends: set[int],
    **how: Any,
) -> list[list[int]]:
    """Return the tokens that are written behind each start, (n, at most ``count``).

    Args:
        model: of transformers, a causal language model.
        starts: n lists of tokens, padded on the left to the longest.
        count: tokens written at most.
        temperature: 0: the likeliest each time.
        seeds: (n,) of each one's draws.
        ends: tokens behind which nothing is written; the rest of a row that has one is padding.
        how: more of transformers' settings of generation, such as texts that end a row.
    """
    longest = max(map(len, starts))
    ids = [[0] * (longest - len(start)) + start for start in starts]
    mask = [[0] * (longest - len(start)) + [1] * len(start) for start in starts]
    drawing = [Drawing(_numbers(seeds, count), temperature)] if temperature > 0 else []
    with torch.inference_mode():
        rows = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=count,
            logits_processor=drawing,
            do_sample=False,  # the likeliest, which is the one drawn
            repetition_penalty=1.0,
            eos_token_id=sorted(ends) or None,
            pad_token_id=min(ends, default=None),
            **how,
        )
    written: list[list[int]] = rows[:, longest:].tolist()
    return written


def _ends(model: Any, encoder: TextEncoder) -> set[int]:
    """Return the tokens that end a text."""
    named, end = model.generation_config.eos_token_id, encoder.tokenizer.eos_token_id
    return {*(named if isinstance(named, list) else [named]), end} - {None}


def _end_of(row: Sequence[int], ends: set[int]) -> int | None:
    """Return the place of the first token that ends a text; None where none does."""
    return next((n for n, token in enumerate(row) if token in ends), None)


def _example(
    encoder: TextEncoder,
    place: int,
    prompt: str,
    start: list[int],
    row: list[int],
    ends: set[int],
) -> Example:
    """Return a prompt and the tokens behind it, up to the first that ends a text, as an example."""
    stop = _end_of(row, ends)
    # alone, what follows would lose the space that it begins with to some decoders
    text = encoder.decoded(start + row[:stop])[len(encoder.decoded(start)) :]
    if stop is None:
        text = text.rstrip("\ufffd")  # a character of which the last bytes are missing
    name = f"generated/{place}"
    return Example(
        name, name, "generated", prompt + text, prompt=prompt or None, continues=stop is None
    )


def _numbers(seeds: Sequence[int], count: int) -> torch.Tensor:
    """Return uniform numbers in [0, 1), (n, count) float64, from a generator for each row."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.rand(count, generator=g, dtype=torch.float64) for g in generators])


class Drawing:
    """Leaves of each text's next tokens the one that its number picks (inverse transform).

    That is the first token at which the cumulative probability, at the temperature, is above the
    number; transformers calls it with the tokens so far.

    Args:
        numbers: (n, steps) float64 in [0, 1); each step uses up a column.
        temperature: > 0.
    """

    def __init__(self, numbers: torch.Tensor, temperature: float) -> None:
        self._numbers = iter(numbers.unbind(dim=1))
        self._temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return 0 for the token picked and -inf for the others, (n, v), of logits (n, v)."""
        del input_ids
        passed = torch.softmax(scores.double() / self._temperature, dim=-1).cumsum(dim=-1)
        number = next(self._numbers).to(scores.device)[:, None] * passed[:, -1:]
        picked = torch.searchsorted(passed, number, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, picked, 0.0)
