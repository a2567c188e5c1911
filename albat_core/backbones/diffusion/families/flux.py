"""Flux."""

from typing import ClassVar

import torch

from albat_core.backbones.diffusion.families.base import Condition, caption_limit
from albat_core.backbones.diffusion.families.joint_transformer import JointTransformer
from albat_core.backbones.diffusion.kohya import Block, together

_DOUBLE = Block(
    "double_blocks",
    {
        "attn.to_out.0": "img_attn_proj",
        "attn.to_add_out": "txt_attn_proj",
        "ff.net.0.proj": "img_mlp_0",
        "ff.net.2": "img_mlp_2",
        "ff_context.net.0.proj": "txt_mlp_0",
        "ff_context.net.2": "txt_mlp_2",
        "norm1.linear": "img_mod_lin",
        "norm1_context.linear": "txt_mod_lin",
    },
    {
        "img_attn_qkv": together("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn_qkv": together("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    },
)
_SINGLE = Block(
    "single_blocks",
    {"proj_out": "linear2", "norm.linear": "modulation_lin"},
    {"linear1": {**together("attn.to_q", "attn.to_k", "attn.to_v"), "proj_mlp": 4}},
)


class Flux(JointTransformer):
    """Flux: a transformer on packed latents that matches flows; CLIP pooled and T5 tokens."""

    pipeline_class = "FluxPipeline"
    original_prefix = "double_blocks."
    adaptable_encoders = ("text_encoder",)
    tokenizers = ("tokenizer", "tokenizer_2")
    t5 = "text_encoder_2"
    packed = 4
    blocks: ClassVar[dict[str, Block]] = {
        "transformer_blocks": _DOUBLE,
        "single_transformer_blocks": _SINGLE,
    }
    text_prefixes: ClassVar[dict[str, str]] = {"text_encoder": "lora_te1"}

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


def _positions(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return (0, row, column) of every packed latent, (height * width, 3)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).view(-1, 3).to(device)
