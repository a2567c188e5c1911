"""Stable Diffusion 1.x and 2.x."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from albat_core.backbones.diffusion.families.base import Condition, Family, read_config, text_width
from albat_core.backbones.diffusion.kohya import Layers, renamed_layers, unet_modules


def other_latents(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> str | None:
    """Return why a UNet does not read what an autoencoder writes, None where it does."""
    if (kind := vae.get("_class_name", "AutoencoderKL")) != "AutoencoderKL":
        return f"its autoencoder is {kind}, not AutoencoderKL"
    reads, written = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if reads != written:
        return f"its UNet reads {reads} channels, the autoencoder writes {written} (inpainting?)"
    return None


class StableDiffusion(Family):
    """Stable Diffusion 1.x and 2.x: a UNet that reads one CLIP text encoder."""

    pipeline_class = "StableDiffusionPipeline"
    original_prefix = "cond_stage_model."
    denoiser_name = "unet"
    adaptable_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    attention = ("to_q", "to_k", "to_v", "to_out.0")

    @property
    def pooled_module(self) -> torch.nn.Module:
        """See ``Family``: the UNet's middle."""
        middle: torch.nn.Module = self.denoiser.mid_block
        return middle

    def pooled(self, output: Any) -> torch.Tensor:
        """See ``Family``."""
        mean: torch.Tensor = output.flatten(2).mean(dim=2)
        return mean

    def encode_text(self, captions: list[str], device: torch.device) -> tuple[torch.Tensor, ...]:
        """See ``Family``: hidden states."""
        embedded, _ = self.pipeline.encode_prompt(captions, device, 1, False)
        return (embedded,)

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition
    ) -> torch.Tensor:
        """See ``Family``."""
        (text,) = condition.text
        output: torch.Tensor = self.denoiser(
            latents, timestep, encoder_hidden_states=text, return_dict=False
        )[0]
        return output

    @classmethod
    def misfit(cls, folder: Path) -> str | None:
        """See ``Family``."""
        unet = read_config(folder, "unet")
        if unet.get("addition_embed_type") == "text_time":
            return "its UNet takes picture sizes, as SDXL's does"
        width, written = unet.get("cross_attention_dim"), text_width(folder, "text_encoder")
        if width != written:
            return f"its UNet reads text of width {width}, the text encoder writes {written}"
        return other_latents(unet, read_config(folder, "vae"))

    @classmethod
    def kohya_layers(cls, components: Mapping[str, Layers], lora_alpha: float) -> Layers:
        """See ``Family``."""
        prefixes = {"unet": "lora_unet", "text_encoder": "lora_te"}
        named = {**components, "unet": unet_modules(components.get("unet", {}))}
        return renamed_layers(named, prefixes, lora_alpha)
