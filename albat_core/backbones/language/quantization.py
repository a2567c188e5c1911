"""Weights in 4 or 8 bits (bitsandbytes), under adapters in full precision: QLoRA."""

import logging
from importlib.util import find_spec
from typing import Any

import torch

from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.folder import backbone_folder, quantization_of
from albat_core.errors import BackboneError, MissingDependencyError


def bits_of(config: BackboneConfig) -> str | None:
    """Return the bits of a backbone's weights, so loaded or so saved; None: all of them."""
    said = quantization_of(backbone_folder(config))
    if config.quantization or said is None:
        return config.quantization
    return "8bit" if said.get("load_in_8bit") else "4bit"


def check_quantization(config: BackboneConfig) -> None:
    """Look whether a backbone's weights can be quantized, if they are to be.

    Raises:
        BackboneError: they are already.
        MissingDependencyError: bitsandbytes is not installed.
    """
    folder = backbone_folder(config)
    if config.quantization and quantization_of(folder):
        raise BackboneError(
            f"expected weights in full precision to quantize to {config.quantization}, found a "
            "quantized checkpoint",
            where=str(folder),
            remedy="leave backbone.quantization out, or name the model that it was made from",
        )
    if bits_of(config) and find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            "quantized weights need bitsandbytes, which is not installed",
            where="backbone.quantization" if config.quantization else str(folder),
            remedy="install albat[quantization], or name a backbone in full precision and leave "
            "backbone.quantization out",
        )


def how_to_load(config: BackboneConfig, device: torch.device) -> dict[str, Any]:
    """Return what ``from_pretrained`` is told of quantization; nothing where there is none."""
    if bits_of(config) is None:
        return {}
    from transformers import BitsAndBytesConfig

    # says at every layer of every pass that int8 is reached by way of float16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    place = {"device_map": {"": device}}  # such weights are not moved once they are loaded
    if config.quantization == "8bit":
        return place | {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    if config.quantization == "4bit":
        four = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
        return place | {"quantization_config": four}
    return place


def prepare(model: Any, dtype: torch.dtype) -> None:
    """Have the 4-bit layers of a model compute in a precision, forwards and backwards.

    Of what peft's ``prepare_model_for_kbit_training`` does, a frozen backbone that is trained under
    in full precision too needs no more: norms and embeddings stay in the precision that they have
    there, and activations are computed twice only where that is asked for.

    Args:
        model: of transformers, quantized or not.
        dtype: that its other layers compute in, whatever a checkpoint says.
    """
    for layer in model.modules():
        if hasattr(layer, "quant_state") and hasattr(layer, "compute_dtype"):
            layer.compute_dtype, layer.compute_type_is_set = dtype, True
            # a CPU's fast layout, taken where no gradient is asked for, has no backward pass
            layer.support_avx512bf16_for_cpu = False
