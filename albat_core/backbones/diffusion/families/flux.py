"""Flux."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from albat_core.backbones.diffusion.families.base import (
    Condition,
    Family,
    caption_limit,
    read_config,
    text_width,
)
from albat_core.backbones.diffusion.kohya import (
    Factors,
    Layers,
    paired_factors,
    refuse_unnamed,
    renamed_layer,
    renamed_layers,
)

_DOUBLE = {
    "attn.to_out.0": "img_attn_proj",
    "attn.to_add_out": "txt_attn_proj",
    "ff.net.0.proj": "img_mlp_0",
    "ff.net.2": "img_mlp_2",
    "ff_context.net.0.proj": "txt_mlp_0",
    "ff_context.net.2": "txt_mlp_2",
    "norm1.linear": "img_mod_lin",
    "norm1_context.linear": "txt_mod_lin",
}
_SINGLE = {"proj_out": "linear2", "norm.linear": "modulation_lin"}
_FUSED: dict[str, dict[str, tuple[str, ...]]] = {
    "double_blocks": {
        "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    },
    "single_blocks": {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")},
}
_BLOCKS: dict[str, tuple[str, dict[str, str]]] = {
    "transformer_blocks": ("double_blocks", _DOUBLE),
    "single_transformer_blocks": ("single_blocks", _SINGLE),
}
_MLP_RATIO = 4  # width of proj_mlp over that of to_q, in every Flux


class Flux(Family):
    """Flux: a transformer on packed latents that matches flows; CLIP pooled and T5 tokens."""

    pipeline_class = "FluxPipeline"
    denoiser_name = "transformer"
    adaptable_encoders = ("text_encoder",)
    tokenizers = ("tokenizer", "tokenizer_2")
    attention = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
    patch = 2

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

    def encode_text(self, captions: list[str], device: torch.device) -> tuple[torch.Tensor, ...]:
        """See ``Family``: T5's hidden states, CLIP's pooled output."""
        embedded, pooled, _ = self.pipeline.encode_prompt(
            captions, None, device=device, max_sequence_length=caption_limit(self.pipeline)
        )
        return embedded, pooled

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition
    ) -> torch.Tensor:
        """See ``Family``; latents are packed two by two for the transformer, and unpacked."""
        text, pooled = condition.text
        n, c, h, w = latents.shape
        packed = latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
        packed = packed.reshape(n, h * w // 4, c * 4)
        guided = bool(self.denoiser.config.guidance_embeds)
        guidance = torch.full((n,), self.config.guidance, device=latents.device)
        output = self.denoiser(
            hidden_states=packed,
            timestep=timestep / self.pipeline.scheduler.config.num_train_timesteps,
            guidance=guidance if guided else None,
            pooled_projections=pooled,
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=latents.device),
            img_ids=_positions(h // 2, w // 2, latents.device),
            return_dict=False,
        )[0]
        unpacked = output.view(n, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
        whole: torch.Tensor = unpacked.reshape(n, c, h, w)
        return whole

    @classmethod
    def misfit(cls, folder: Path) -> str | None:
        """See ``Family``."""
        config = read_config(folder, "transformer")
        channels = 4 * read_config(folder, "vae").get("latent_channels", 0)
        if config.get("in_channels") != channels:
            return f"its transformer reads {config.get('in_channels')} channels, not {channels}"
        written = text_width(folder, "text_encoder_2")
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
        transformer = paired_factors(parts.pop("transformer", {}))
        encoders = renamed_layers(parts, {"text_encoder": "lora_te1"}, lora_alpha)
        return _transformer_layers(transformer, lora_alpha) | encoders


def _positions(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return (0, row, column) of every packed latent, (height * width, 3)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).view(-1, 3).to(device)


def _transformer_layers(pairs: Factors, alpha: float) -> Layers:
    """Return the transformer's layers; what its own code computes in one layer is put together.

    Factors of layers that are fused stand beside each other: A below A, and B block-diagonal, so
    the rank grows with their number and alpha with it.
    """
    refuse_unnamed(module for module in pairs if not _is_named(module))
    blocks: dict[tuple[str, str], Factors] = {}
    for module, factors in pairs.items():
        kind, number, inner = module.split(".", 2)
        blocks.setdefault((kind, number), {})[inner] = factors
    found: Layers = {}
    for (kind, number), layers in blocks.items():
        theirs, names = _BLOCKS[kind]
        prefix = f"lora_unet_{theirs}_{number}"
        for module, name in names.items():
            if module in layers:
                found |= renamed_layer(f"{prefix}_{name}", *layers[module], alpha)
        for name, parts in _FUSED[theirs].items():
            if any(part in layers for part in parts):
                down, up = _fused(layers, parts)
                found |= renamed_layer(f"{prefix}_{name}", down, up, alpha * len(parts))
    return found


def _is_named(module: str) -> bool:
    """Tell whether the module is in a block: diffusers leaves out others without a word."""
    kind, _, rest = module.partition(".")
    if kind not in _BLOCKS:
        return False
    theirs, names = _BLOCKS[kind]
    inner = rest.partition(".")[2]
    return inner in names or any(inner in parts for parts in _FUSED[theirs].values())


def _fused(inner: Factors, parts: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of several layers as those of one; zeros for layers not adapted."""
    down, up = next(inner[part] for part in parts if part in inner)
    ratios = [_MLP_RATIO if part == "proj_mlp" else 1 for part in parts]
    unit = next(
        inner[part][1].shape[0] // ratio
        for part, ratio in zip(parts, ratios, strict=True)
        if part in inner
    )
    downs, ups = [], []
    for part, ratio in zip(parts, ratios, strict=True):
        width = unit * ratio
        missing = (torch.zeros_like(down), up.new_zeros(width, up.shape[1]))
        one, other = inner.get(part, missing)
        downs.append(one)
        ups.append(other)
    return torch.cat(downs), torch.block_diag(*ups)  # type: ignore[no-untyped-call]
