"""Stable Diffusion 3 and 3.5."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch

from albat_core.backbones.diffusion.families.base import Condition, read_config
from albat_core.backbones.diffusion.families.joint_transformer import JointTransformer
from albat_core.backbones.diffusion.kohya import Block, Layers, together

_CONTEXT_NORM = "norm1_context.linear"
_JOINT = Block(
    "joint_blocks",
    {
        "attn.to_out.0": "x_block_attn_proj",
        "attn2.to_out.0": "x_block_attn2_proj",
        "attn.to_add_out": "context_block_attn_proj",
        "ff.net.0.proj": "x_block_mlp_fc1",
        "ff.net.2": "x_block_mlp_fc2",
        "ff_context.net.0.proj": "context_block_mlp_fc1",
        "ff_context.net.2": "context_block_mlp_fc2",
        "norm1.linear": "x_block_adaLN_modulation_1",
        _CONTEXT_NORM: "context_block_adaLN_modulation_1",
    },
    {
        "x_block_attn_qkv": together("attn.to_q", "attn.to_k", "attn.to_v"),
        "x_block_attn2_qkv": together("attn2.to_q", "attn2.to_k", "attn2.to_v"),
        "context_block_attn_qkv": together("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    },
)


class StableDiffusion3(JointTransformer):
    """Stable Diffusion 3 and 3.5: a transformer that matches flows; two CLIPs, and T5 or none."""

    pipeline_class = "StableDiffusion3Pipeline"
    original_prefix = "joint_blocks."
    adaptable_encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2", "tokenizer_3")
    optional = ("text_encoder_3", "tokenizer_3")
    caption_tokens = 256  # as the pipeline draws: T5's padding is attended to
    # none of the second attention (attn2) of 3.5, as in diffusers' own training script
    attention = tuple(f"attn.{layer}" for layer in JointTransformer.attention)
    t5 = "text_encoder_3"
    blocks: ClassVar[dict[str, Block]] = {"transformer_blocks": _JOINT}
    text_prefixes: ClassVar[dict[str, str]] = {
        "text_encoder": "lora_te1",
        "text_encoder_2": "lora_te2",
    }

    def encode_text(self, captions: list[str], device: torch.device) -> tuple[torch.Tensor, ...]:
        """See ``Family``: hidden states of all three, pooled outputs of both CLIPs."""
        embedded, _, pooled, _ = self.pipeline.encode_prompt(
            captions,
            None,
            None,
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.caption_tokens,
        )
        return embedded, pooled

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition
    ) -> torch.Tensor:
        """See ``Family``."""
        text, pooled = condition.text
        output: torch.Tensor = self.denoiser(
            hidden_states=latents,
            timestep=timestep,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        return output

    @classmethod
    def misfit(cls, folder: Path) -> str | None:
        """See ``Family``."""
        if (why := super().misfit(folder)) is not None:
            return why
        width = read_config(folder, "transformer").get("pooled_projection_dim")
        written = sum(
            read_config(folder, name).get("projection_dim", 0) for name in cls.adaptable_encoders
        )
        if width != written:
            return f"its transformer reads pooled text of width {width}, CLIPs write {written}"
        return None

    @classmethod
    def most_latents(cls, folder: Path) -> int | None:
        """See ``Family``: it has so many positions."""
        positions = read_config(folder, "transformer").get("pos_embed_max_size")
        return None if positions is None else int(positions) * cls.patch

    @classmethod
    def kohya_layers(cls, components: Mapping[str, Layers], lora_alpha: float) -> Layers:
        """See ``Family``."""
        transformer = components.get("transformer", {})
        theirs = {key: _in_their_order(key, transformer) for key in transformer}
        return super().kohya_layers({**components, "transformer": theirs}, lora_alpha)


def _in_their_order(key: str, layers: Layers) -> torch.Tensor:
    """Return a factor whose outputs are ordered as in Stability's code.

    The last block's context norm gives scale and shift alone, where theirs gives shift and scale.
    """
    module, is_up, _ = key.partition(".lora_B.")
    if not (is_up and module.endswith(_CONTEXT_NORM)):
        return layers[key]
    scale, shift = layers[key].chunk(2)
    alone = len(scale) == layers[f"{module}.lora_A.weight"].shape[1]
    return torch.cat([shift, scale]) if alone else layers[key]
