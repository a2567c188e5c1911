"""Samples: what the backbone makes of prompts with an arm's adapter, from the same noise in all."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field, model_validator

from albat_core.backbones import open_backbone, reading_identity
from albat_core.backbones.base import adapted
from albat_core.backbones.config import BackboneConfig, SamplingConfig
from albat_core.progress import track
from albat_core.records.examples import (
    Example,
    examples_to_table,
)
from albat_core.records.samples import SAMPLES, STAGE
from albat_core.records.tables import write_table
from albat_core.seeding import derive_seed
from albat_core.sources.dreambooth import Kind, evaluation_prompts
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

STAGE_VERSION = 4
_BLOCK = 16  # prompts given to the backbone at once; their places seed what is drawn


class SampleConfig(StageConfig):
    """What every arm is asked to make, and how it is looked at."""

    prompts: tuple[str, ...] = ()
    """Prompts; none here and none of DreamBooth: nothing is made."""
    dreambooth: Kind | None = None
    """Adds the 25 prompts that DreamBooth is evaluated with, of an `object` or a `live` subject."""
    subject: str | None = Field(None, min_length=1)
    """What stands for the subject in DreamBooth's prompts, such as `sks backpack`."""
    per_prompt: int = Field(1, ge=1, le=64)
    """Examples made of each prompt."""
    heldout: int = Field(0, ge=0)
    """Held-out pictures, at most, that every arm draws anew from their captions; they are shown
    beside what is drawn, and the error of its pixels is told."""
    sampling: SamplingConfig = SamplingConfig()
    """How they are made."""
    dino: str | None = Field(None, min_length=1)
    """Folder or hub id of a DINO image encoder (the paper's: `facebook/dino-vits16`) to measure
    subject fidelity with."""
    clip: str | None = Field(None, min_length=1)
    """Folder or hub id of a CLIP model to measure subject and prompt fidelity with."""

    @model_validator(mode="after")
    def _complete(self) -> "SampleConfig":
        if self.dreambooth is not None and self.subject is None:
            raise ValueError("dreambooth needs a subject, such as 'sks backpack'")
        if self.measured and not self.all_prompts:
            raise ValueError("dino and clip measure samples: give prompts or dreambooth")
        return self

    @property
    def all_prompts(self) -> tuple[str, ...]:
        """The prompts in order, each once."""
        prompts = self.prompts
        if self.dreambooth is not None and self.subject is not None:
            prompts += evaluation_prompts(self.dreambooth, self.subject)
        return tuple(dict.fromkeys(prompts))

    @property
    def measured(self) -> bool:
        """Whether an encoder is there to measure samples with."""
        return self.dino is not None or self.clip is not None


def draw_samples(
    adapter: ArtifactRef | None,
    prompts: Sequence[str],
    backbone_config: BackboneConfig,
    config: SampleConfig,
    seed: int,
    runtime: Runtime,
    label: str = "sample",
) -> ArtifactRef:
    """Have the backbone make examples of prompts with an adapter (None: without).

    Equal seeds give every adapter the same noise: what differs is the adapter's doing.

    Args:
        adapter: of the arm.
        prompts: one or more.
        backbone_config: of the backbone.
        config: how many are made of each prompt, and how.
        seed: of the run.
        runtime: where to compute.
        label: names the progress line.

    Returns:
        an artifact of examples in the order of the prompts, ``per_prompt`` of each.

    Raises:
        BackboneError: the adapter was made for another backbone.
    """
    store = ArtifactStore(runtime.root)
    asked = [prompt for prompt in prompts for _ in range(config.per_prompt)]

    def build(folder: Path) -> Built:
        made: list[Example] = []
        with (
            open_backbone(backbone_config, runtime) as backbone,
            adapted(backbone, store.folder(adapter) if adapter else None),
            track(label, len(asked), "samples") as advance,
        ):
            for start in range(0, len(asked), _BLOCK):
                block = asked[start : start + _BLOCK]
                drawn = derive_seed(seed, STAGE, start)
                made += backbone.generate(block, config.sampling, drawn)
                advance(len(block))
        named = [
            replace(e, example_id=f"sample/{n}", document=f"sample/{n}", source=STAGE)
            for n, e in enumerate(made)
        ]
        write_table(examples_to_table(named), folder / SAMPLES)
        return Built(
            rows=len(named), facts={"prompts": list(prompts), "per_prompt": config.per_prompt}
        )

    return store.produce(
        STAGE,
        STAGE_VERSION,
        {"per_prompt": config.per_prompt, "sampling": config.sampling.settings(), "seed": seed},
        {
            "prompts": list(prompts),
            "adapter": adapter.key if adapter else None,
            "backbone": reading_identity(backbone_config, runtime),
        },
        build,
    )
