"""What a language model's description alone says: its kind, and its shapes without weights."""

from typing import Any

import torch

from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.folder import backbone_folder, unreadable
from albat_core.errors import BackboneError


def described(config: BackboneConfig) -> Any:
    """Return the model's description.

    Raises:
        BackboneError: it cannot be read, or is of no causal language model.
    """
    from transformers import AutoConfig

    folder = backbone_folder(config)
    try:
        description = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise unreadable("model", folder, error) from error
    if not _is_causal(description):
        names = getattr(description, "architectures", None) or [type(description).__name__]
        raise BackboneError(
            f"expected a causal language model, got {', '.join(names)}, which does not write a "
            "text from left to right",
            where=str(folder),
            remedy="name a decoder, such as models of the GPT, Llama or Qwen families",
        )
    return description


def _is_causal(description: Any) -> bool:
    """Tell whether a model is made to predict the next token; some classes can be both."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
    )

    if "AutoModelForCausalLM" in (getattr(description, "auto_map", None) or {}):
        return True
    kind = type(description)
    said = getattr(description, "is_decoder", False) or getattr(description, "causal", False)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(description, "is_encoder_decoder", False):
        return False
    return bool(said) or kind not in MODEL_FOR_MASKED_LM_MAPPING


def hollow(config: BackboneConfig) -> Any:
    """Return the model with shapes but no weights.

    Raises:
        BackboneError: its description is of no causal language model.
    """
    from transformers import AutoModelForCausalLM

    description = described(config)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                description, trust_remote_code=config.trust_remote_code
            )
    except (OSError, ValueError, KeyError) as error:
        raise unreadable("model", backbone_folder(config), error) from error
