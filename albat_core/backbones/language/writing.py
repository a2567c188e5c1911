"""What a language model writes: many texts at once, each by random numbers of its own."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from albat_core.backbones.config import SamplingConfig
from albat_core.backbones.language.tokens import TextEncoder
from albat_core.records.examples import Example
from albat_core.seeding import torch_generator

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
    named, end = model.generation_config.eos_token_id, encoder.tokenizer.eos_token_id
    ends = {*(named if isinstance(named, list) else [named]), end} - {None}
    starts = encoder.beginnings(prompts)
    alike: dict[int, list[int]] = defaultdict(list)
    for place, start in enumerate(starts):
        alike[len(start)].append(place)
    made: dict[int, Example] = {}
    for length, places in alike.items():
        count = min(config.max_new_tokens, encoder.max_length - length)
        for first in range(0, len(places), _WRITTEN_AT_ONCE):
            some = places[first : first + _WRITTEN_AT_ONCE]
            ids = torch.tensor([starts[place] for place in some], device=model.device)
            drawing = []
            if config.temperature > 0:
                drawing.append(Drawing(_numbers(some, count, seed), config.temperature))
            with torch.inference_mode():
                rows = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=count,
                    logits_processor=drawing,
                    do_sample=False,  # the likeliest, which is the one drawn
                    repetition_penalty=1.0,
                    eos_token_id=sorted(ends) or None,
                    pad_token_id=min(ends, default=None),
                )
            for place, row in zip(some, rows[:, length:].tolist(), strict=True):
                made[place] = _example(encoder, place, prompts[place], row, ends)
    return [made[place] for place in range(len(prompts))]


def _example(
    encoder: TextEncoder, place: int, prompt: str, row: list[int], ends: set[int]
) -> Example:
    """Return a prompt and the tokens behind it, up to the first that ends a text, as an example."""
    stop = next((n for n, token in enumerate(row) if token in ends), None)
    text = encoder.tokenizer.decode(row[:stop], skip_special_tokens=True)
    if stop is None:
        text = text.rstrip("\ufffd")  # a character of which the last bytes are missing
    name = f"generated/{place}"
    return Example(
        name, name, "generated", prompt + text, prompt=prompt or None, continues=stop is None
    )


def _numbers(places: Sequence[int], count: int, seed: int) -> torch.Tensor:
    """Return uniform numbers in [0, 1), (n, count) float64, from a generator for each row."""
    drawn = [
        torch.rand(count, generator=torch_generator(seed, "generated", n), dtype=torch.float64)
        for n in places
    ]
    return torch.stack(drawn)


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
