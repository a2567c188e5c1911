"""Transformers that read text and picture jointly: what families of them share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from albat_core.backbones.diffusion.families.base import (
    Family,
    left_out,
    read_config,
    text_width,
)
from albat_core.backbones.diffusion.kohya import Block, Layers, block_layers, renamed_layers


class JointTransformer(Family, Protocol):
    """A family whose denoiser is an MMDiT (arXiv 2403.03206) and reads what a T5 writes."""

    denoiser_name: ClassVar[str] = "transformer"
    attention: ClassVar[tuple[str, ...]] = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    patch: ClassVar[int] = 2
    t5: ClassVar[str]
    """Component that writes the text."""
    packed: ClassVar[int] = 1
    """Latents that the pipeline makes one of before the transformer takes them."""
    blocks: ClassVar[dict[str, Block]]
    """Kinds of blocks by the name that the transformer's list of them has."""
    text_prefixes: ClassVar[dict[str, str]]
    """kohya's prefix by text encoder."""

    @property
    def pooled_module(self) -> torch.nn.Module:
        """See ``Family``: the middle one of the blocks that read text and picture apart."""
        blocks = self.denoiser.transformer_blocks
        middle: torch.nn.Module = blocks[len(blocks) // 2]
        return middle

    def pooled(self, output: Any) -> torch.Tensor:
        """See ``Family``; the block gives text and picture, both (n, tokens, d)."""
        _, picture = output
        mean: torch.Tensor = picture.mean(dim=1)
        return mean

    @classmethod
    def misfit(cls, folder: Path) -> str | None:
        """See ``Family``."""
        config = read_config(folder, "transformer")
        channels = cls.packed * read_config(folder, "vae").get("latent_channels", 0)
        if config.get("in_channels") != channels:
            return f"its transformer reads {config.get('in_channels')} channels, not {channels}"
        if cls.t5 in left_out(folder, cls):
            return None
        written = text_width(folder, cls.t5)
        if config.get("joint_attention_dim") != written:
            return (
                f"its transformer reads text of width {config.get('joint_attention_dim')}, "
                f"the text encoder writes {written}"
            )
        return None

    @classmethod
    def kohya_layers(cls, components: Mapping[str, Layers], lora_alpha: float) -> Layers:
        """See ``Family``."""
        parts = dict(components)
        transformer = block_layers(parts.pop("transformer", {}), cls.blocks, lora_alpha)
        return transformer | renamed_layers(parts, cls.text_prefixes, lora_alpha)
