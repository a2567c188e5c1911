"""Captions and pictures brought to what a text-to-image pipeline takes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.diffusion.families.base import Family, left_out
from albat_core.backbones.folder import unreadable
from albat_core.errors import InputError
from albat_core.pictures import prepare_picture
from albat_core.records.examples import Example
from albat_core.records.words import pieces_of


class CaptionFitter:
    """Cuts captions between words to what the longest text encoder takes.

    Args:
        folder: the pipeline's.
        family: what it is of.
    """

    def __init__(self, folder: Path, family: type[Family]) -> None:
        self._tokenizers: list[Any] = []
        self._most = family.caption_tokens  # T5 has no limit of its own
        absent = left_out(folder, family)
        for name in (n for n in family.tokenizers if n not in absent):
            try:
                tokenizer = AutoTokenizer.from_pretrained(
                    folder / name, local_files_only=True, trust_remote_code=False
                )
            except (OSError, ValueError, KeyError) as error:
                raise unreadable("tokenizer", folder / name, error) from error
            self._tokenizers.append(tokenizer)

    @property
    def longest(self) -> int:
        """Tokens that the text encoder which reads most takes, the ends of the text included."""
        return max(min(int(t.model_max_length), self._most) for t in self._tokenizers)

    def fits(self, caption: str) -> bool:
        """Tell whether at least one text encoder reads all of a caption."""
        return any(
            len(t(caption)["input_ids"]) <= min(t.model_max_length, self._most)
            for t in self._tokenizers
        )

    def refuse_long(self, prompts: Sequence[str]) -> None:
        """Raise an InputError for a prompt that no text encoder reads whole."""
        for prompt in prompts:
            if not self.fits(prompt):
                raise InputError(
                    "expected a prompt that the text encoder reads whole (at most "
                    f"{self.longest} tokens), this one is longer",
                    where=f"prompt {prompt[:60]!r}",
                    remedy="shorten it",
                )

    def fit(self, example: Example, image: bytes, frame: tuple[int, int, int, int]) -> Example:
        """Return the example with its picture; one whose caption was cut has another id, ``#0``."""
        caption = example.text or ""
        if self.fits(caption):
            return replace(example, image=image, frame=frame)
        pieces = pieces_of(caption)
        if not self.fits(pieces[0]):  # no word fits: it is cut within
            pieces = list(caption)
        fitting, over = 0, len(pieces)
        while over - fitting > 1:
            middle = (fitting + over) // 2
            if self.fits("".join(pieces[:middle])):
                fitting = middle
            else:
                over = middle
        return replace(
            example,
            example_id=f"{example.example_id}#0",
            text="".join(pieces[:fitting]).strip(),
            image=image,
            frame=frame,
        )


class RowPreparation:
    """Brings rows to the size of a text-to-image backbone.

    Args:
        captions: cuts captions.
        config: of the backbone.
    """

    def __init__(self, captions: CaptionFitter, config: BackboneConfig) -> None:
        self._captions = captions
        self._picture = config.diffusion.picture

    def fitting(self, examples: Sequence[Example]) -> list[bool]:
        """Return that none is sure to: each picture has to be looked at."""
        return [False] * len(examples)

    def pieces(self, example: Example) -> list[Example]:
        """Return the example at the backbone's size.

        Raises:
            InputError: it has no picture, or one that cannot be read.
        """
        if example.image is None:
            raise InputError(
                "expected a picture, the row has none",
                where=f"example {example.example_id}",
                remedy="set image_column, or kind: language for texts",
            )
        where = f"example {example.example_id}"
        image, frame = prepare_picture(example.image, self._picture, where)
        return [self._captions.fit(example, image, frame)]
