"""How a language model's attention is computed, and whether it can be here."""

from importlib.util import find_spec
from typing import Any

import torch

from albat_core.backbones.config import BackboneConfig
from albat_core.errors import BackboneError, MissingDependencyError

_WHERE = "backbone.attention"
_SUPPORTED = {
    "sdpa": "_supports_sdpa",
    "flash_attention_2": "_supports_flash_attn",
    "flex_attention": "_supports_flex_attn",
}
"""What a model's class says of each in transformers, which asks it itself once weights are read."""
_ON_GPU = ("flash_attention_2", "flex_attention")  # torch has no backward pass of flex on a CPU


def how_to_attend(config: BackboneConfig) -> dict[str, Any]:
    """Return what ``from_pretrained`` is told of attention; nothing where transformers chooses."""
    return {} if config.attention == "auto" else {"attn_implementation": config.attention}


def check_attention(config: BackboneConfig, model: Any) -> None:
    """Look whether a model's attention can be computed as it is to be.

    Args:
        config: of the backbone.
        model: causal language model of transformers, with weights or without.

    Raises:
        BackboneError: there is no GPU, the precision is another, or transformers has it not for
            this model.
        MissingDependencyError: flash-attn is not installed.
    """
    named = config.attention
    if not getattr(model, _SUPPORTED.get(named, ""), True):
        raise BackboneError(
            f"expected a model whose attention transformers computes by {named}, it does not that "
            f"of {type(model).__name__}",
            where=_WHERE,
            remedy="leave it out: transformers then takes what the model has",
        )
    if named == "flash_attention_2" and find_spec("flash_attn") is None:
        raise MissingDependencyError(
            "flash_attention_2 needs flash-attn, which is not installed",
            where=_WHERE,
            remedy="install flash-attn, built for this torch and CUDA, or set it to sdpa",
        )
    if named in _ON_GPU and not torch.cuda.is_available():
        raise BackboneError(
            f"expected a GPU to compute {named} on, there is none",
            where=_WHERE,
            remedy="set it to sdpa",
        )
    if named == "flash_attention_2" and config.dtype == "float32":
        raise BackboneError(
            "expected backbone.dtype bfloat16 (or auto), in which flash_attention_2 computes, got "
            "float32",
            where=_WHERE,
            remedy="set backbone.dtype to bfloat16, or this to sdpa",
        )
