"""Rows that the backbone makes of its own, where its corpus is closed or for comparison with it."""

from pathlib import Path

from pydantic import Field

from albat_core.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.backbones import backbone_identity, open_backbone
from albat_core.backbones.base import BackboneConfig, SamplingConfig
from albat_core.progress import track
from albat_core.records import Example, examples_to_table, write_table
from albat_core.seeding import derive_seed
from albat_core.shards import STAGE
from albat_core.stage import Runtime, StageConfig

STAGE_VERSION = 1
SOURCE = "generated"
_AT_ONCE = 64  # rows made between two looks at whether to stop


class GenerationConfig(StageConfig):
    """Rows that the untouched backbone makes: DreamBooth's class pictures (arXiv 2208.12242)."""

    prompts: tuple[str, ...] = ()
    """What rows are made from, in turns: for pictures of a dog, `"a photo of a dog"`."""
    rows: int = Field(200, ge=1)
    """Rows made."""
    sampling: SamplingConfig = SamplingConfig()
    """How they are drawn."""


def generate_rows(
    backbone_config: BackboneConfig, config: GenerationConfig, seed: int, runtime: Runtime
) -> ArtifactRef:
    """Let the untouched backbone make rows, and keep them as shards like those of a corpus.

    Args:
        backbone_config: what makes them.
        config: from which prompts, and how many.
        seed: of their random draws.
        runtime: where and with what.
    """

    def build(folder: Path) -> Built:
        prompts = [config.prompts[n % len(config.prompts)] for n in range(config.rows)]
        parts: list[dict[str, str | int]] = []
        with (
            open_backbone(backbone_config, runtime) as backbone,
            track("generate rows", config.rows, "examples") as advance,
        ):
            for start in range(0, len(prompts), _AT_ONCE):
                some = prompts[start : start + _AT_ONCE]
                draws = derive_seed(seed, "rows from", start)
                made = [
                    Example(
                        example_id=f"{SOURCE}/{start + n}",
                        document=f"{SOURCE}/{start + n}",
                        source=SOURCE,
                        text=example.text,
                        prompt=example.prompt,
                        image=example.image,
                        frame=example.frame,
                    )
                    for n, example in enumerate(backbone.generate(some, config.sampling, draws))
                ]
                name = f"part-{len(parts):05d}.parquet"
                write_table(examples_to_table(made), folder / name)
                parts.append({"name": name, "rows": len(made)})
                advance(len(made))
        facts = {
            "files": [SOURCE],
            "rows": config.rows,
            "documents": config.rows,
            "parts": parts,
            "sources": {SOURCE: config.rows},
        }
        return Built(rows=config.rows, facts=facts)

    return ArtifactStore(runtime.root).produce(
        STAGE,
        STAGE_VERSION,
        {"generated": config.model_dump(mode="json"), "seed": seed},
        {"backbone": backbone_identity(backbone_config, runtime)},
        build,
    )
