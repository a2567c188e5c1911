"""Stable Diffusion XL."""

from collections.abc import Mapping
from pathlib import Path

import torch

from albat_core.backbones.diffusion.families.base import Condition, read_config, text_width
from albat_core.backbones.diffusion.families.stable_diffusion import (
    StableDiffusion,
    other_latents,
)
from albat_core.backbones.diffusion.kohya import Layers, renamed_layers, unet_modules


class SDXL(StableDiffusion):
    """Stable Diffusion XL: two text encoders, and the sizes of picture and crop."""

    pipeline_class = "StableDiffusionXLPipeline"
    original_prefix = "conditioner.embedders.1."
    adaptable_encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")

    def encode_text(self, captions: list[str], device: torch.device) -> tuple[torch.Tensor, ...]:
        """See ``Family``: hidden states of both encoders, pooled output of the second."""
        embedded, _, pooled, _ = self.pipeline.encode_prompt(
            captions, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return embedded, pooled

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition
    ) -> torch.Tensor:
        """See ``Family``."""
        text, pooled = condition.text
        added = {"text_embeds": pooled, "time_ids": condition.frames.to(pooled.dtype)}
        output: torch.Tensor = self.denoiser(
            latents,
            timestep,
            encoder_hidden_states=text,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return output

    @classmethod
    def misfit(cls, folder: Path) -> str | None:
        """See ``Family``."""
        unet = read_config(folder, "unet")
        if unet.get("addition_embed_type") != "text_time":
            return "its UNet takes no picture sizes, as Stable Diffusion 1.x and 2.x"
        written = sum(text_width(folder, name) for name in ("text_encoder", "text_encoder_2"))
        width = unet.get("cross_attention_dim")
        if width != written:
            return f"its UNet reads text of width {width}, the text encoders write {written}"
        return other_latents(unet, read_config(folder, "vae"))

    @classmethod
    def kohya_layers(cls, components: Mapping[str, Layers], lora_alpha: float) -> Layers:
        """See ``Family``."""
        prefixes = {
            "unet": "lora_unet",
            "text_encoder": "lora_te1",
            "text_encoder_2": "lora_te2",
        }
        named = {**components, "unet": unet_modules(components.get("unet", {}))}
        return renamed_layers(named, prefixes, lora_alpha)
