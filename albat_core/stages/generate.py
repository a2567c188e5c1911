"""Rows that the backbone makes of its own, where its corpus is closed or for comparison with it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from albat_core.backbones import kind_of, open_backbone, reading_identity
from albat_core.backbones.base import Backbone, Question
from albat_core.backbones.config import BackboneConfig, SamplingConfig
from albat_core.errors import BackboneError
from albat_core.progress import track
from albat_core.records.examples import GENERATED, Example, examples_to_table
from albat_core.records.shards import STAGE
from albat_core.records.tables import write_table
from albat_core.seeding import derive_seed
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

STAGE_VERSION = 6
_AT_ONCE = 64  # rows made between two looks at whether to stop


class GenerationConfig(StageConfig):
    """Rows that the untouched backbone makes: DreamBooth's class pictures (arXiv 2208.12242)."""

    prompts: tuple[str, ...] = ()
    """What rows are made from, in turns: for pictures of a dog, `"a photo of a dog"`."""
    freely: Literal["chat"] | bool = False
    """A language model may write rows from no prompt at all, beginning with its first token; or,
    with `chat`, by its chat template: what a user asks, and then the answer, as an instruct model
    was trained to (Magpie, arXiv 2406.08464). Chats of which either is not at its end within
    `sampling.max_new_tokens` are left out."""
    rows: int = Field(200, ge=1)
    """Rows made; those with nothing to learn from are left out."""
    sampling: SamplingConfig = SamplingConfig()
    """How they are drawn."""

    @property
    def begins_bare(self) -> bool:
        """Whether rows are texts that the backbone begins itself."""
        return self.freely is True and not self.prompts

    @property
    def begins_chats(self) -> bool:
        """Whether rows are chats that the backbone begins itself."""
        return self.freely == "chat" and not self.prompts


def generate_rows(
    backbone_config: BackboneConfig, config: GenerationConfig, seed: int, runtime: Runtime
) -> ArtifactRef:
    """Let the untouched backbone make rows, and keep them as shards like those of a corpus.

    Args:
        backbone_config: what makes them.
        config: from which prompts, and how many.
        seed: of their random draws.
        runtime: where and with what.

    Raises:
        BackboneError: the backbone needs prompts and there are none, or it makes nothing.
    """
    if kind_of(backbone_config).needs_prompts and not config.prompts:
        raise BackboneError(
            "expected prompts to make rows from, got none, and this backbone makes nothing of use "
            "without",
            where=backbone_config.path,
            remedy="give generated.prompts",
        )

    def build(folder: Path) -> Built:
        asked = config.prompts or ("",)
        prompts = [asked[n % len(asked)] for n in range(config.rows)]
        parts: list[dict[str, str | int]] = []
        rows = 0
        with (
            open_backbone(backbone_config, runtime) as backbone,
            track("generate rows", config.rows, "examples") as advance,
        ):
            for start in range(0, len(prompts), _AT_ONCE):
                some = prompts[start : start + _AT_ONCE]
                draws = derive_seed(seed, "rows from", start)
                if config.begins_chats:
                    made = _named(_chats(backbone, len(some), config.sampling, draws), start)
                else:
                    made = _named(backbone.generate(some, config.sampling, draws), start)
                # what was written may have more tokens when it is read
                kept = [piece for example in made for piece in backbone.pieces(example)]
                if kept:
                    name = f"part-{len(parts):05d}.parquet"
                    write_table(examples_to_table(kept), folder / name)
                    parts.append({"name": name, "rows": len(kept)})
                    rows += len(kept)
                advance(len(some))
        if not parts:
            raise BackboneError(
                f"expected rows, got {config.rows} with nothing to learn from",
                where=backbone_config.path,
                remedy="give generated.prompts, or raise generated.sampling.max_new_tokens",
            )
        facts = {
            "files": [GENERATED],
            "rows": rows,
            "documents": rows,
            "parts": parts,
            "sources": {GENERATED: rows},
        }
        return Built(rows=rows, facts=facts)

    return ArtifactStore(runtime.root).produce(
        STAGE,
        STAGE_VERSION,
        {"generated": config.settings(), "seed": seed},
        {"backbone": reading_identity(backbone_config, runtime)},
        build,
    )


def _chats(backbone: Backbone, count: int, sampling: SamplingConfig, seed: int) -> list[Example]:
    """Return chats that the backbone writes of its own, those that come to an end."""

    def written(questions: list[Question], what: str, numbers: Sequence[int]) -> list[str]:
        seeds = [derive_seed(seed, what, n) for n in numbers]
        answers = backbone.answer(questions, sampling, seeds)
        return [answer.text if answer.ended else "" for answer in answers]

    asked = written([backbone.opening()] * count, "asked", range(count))
    numbers = [n for n, text in enumerate(asked) if text]
    if not numbers:
        return []
    begun = [_chat(asked[n], "…") for n in numbers]
    answers = written(backbone.questions(begun), "answered", numbers)
    return [_chat(asked[n], text) for n, text in zip(numbers, answers, strict=True) if text]


def _chat(asked: str, answer: str) -> Example:
    user, assistant = {"role": "user", "content": asked}, {"role": "assistant", "content": answer}
    return Example("", "", GENERATED, messages=(user, assistant))


def _named(examples: Sequence[Example], first: int) -> list[Example]:
    """Return examples named by their numbers, each a document, counted from ``first``."""
    names = [f"{GENERATED}/{n}" for n in range(first, first + len(examples))]
    return [
        replace(example, example_id=name, document=name, source=GENERATED)
        for name, example in zip(names, examples, strict=True)
    ]
