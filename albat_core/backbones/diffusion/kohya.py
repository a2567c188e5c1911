"""LoRA layers under the names of kohya's sd-scripts, which WebUI and ComfyUI read."""

import re
from collections.abc import Iterable, Mapping

import torch

from albat_core.errors import BackboneError

Layers = dict[str, torch.Tensor]
"""An adapter's state by parameter."""
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""A (r, in) and B (out, r) by module."""


TEXT_LAYERS = "text_model."
"""Where CLIP's checkpoints have a text encoder's layers; ``CLIPTextModel`` of transformers >= 5.6
holds them without it, ``CLIPTextModelWithProjection`` with it."""

_UNET_MODULES = re.compile(
    r"((down|up)_blocks\.\d+|mid_block)\.("
    r"resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)"
    r"|(down|up)samplers\.\d+\.conv"
    r"|attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.\d+\."
    r"(attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))))"
    r"|conv_in|conv_out|(time|add)_embedding\.linear_[12]"
)
"""UNet's modules whose names the programs that read kohya's format know."""
_UNET_NAMES = {  # where diffusers reads the names of Stability's own code alone
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def original_module(module: str) -> str:
    """Return the name that CLIP's checkpoints have for a text encoder's module."""
    return module if module.startswith(TEXT_LAYERS) else TEXT_LAYERS + module


def refuse_unnamed(modules: Iterable[str]) -> None:
    """Refuse modules for which kohya's format has no name.

    Raises:
        BackboneError: there are some.
    """
    if unnamed := sorted(modules):
        raise BackboneError(
            "expected modules that have a name in kohya's format, got "
            f"{', '.join(unnamed[:4])}{f' and {len(unnamed) - 4} more' * (len(unnamed) > 4)}",
            where="adapter.target_modules",
            remedy="leave them out: a pattern such as '.*block.*[.](to_q|proj_out)' is for modules "
            "in blocks alone",
        )


def unet_modules(layers: Layers) -> Layers:
    """Return a UNet's layers by the modules' names that programs for kohya's format know.

    Raises:
        BackboneError: a module has none.
    """
    modules = paired_factors(layers)
    refuse_unnamed(m for m in modules if _UNET_MODULES.fullmatch(m) is None)
    found = {}
    for key, value in layers.items():
        module, _, rest = key.partition(".lora_")
        found[f"{_UNET_NAMES.get(module, module)}.lora_{rest}"] = value
    return found


def renamed_layers(
    components: Mapping[str, Layers], prefixes: Mapping[str, str], lora_alpha: float
) -> Layers:
    """Return the layers of components whose modules keep their names behind a prefix.

    Args:
        components: peft's state by component, see ``Family.kohya_layers``.
        prefixes: kohya's prefix by component.
        lora_alpha: B A is multiplied by lora_alpha / r.
    """
    found: Layers = {}
    for component, layers in components.items():
        for module, (down, up) in paired_factors(layers).items():
            name = f"{prefixes[component]}_{module.replace('.', '_')}"
            found |= renamed_layer(name, down, up, lora_alpha)
    return found


def paired_factors(layers: Layers) -> Factors:
    """Return A (r, in) and B (out, r) by module of peft's state.

    Raises:
        BackboneError: there is more in it, such as factors of an embedding.
    """
    refuse_unnamed(k for k in layers if not k.endswith((".lora_A.weight", ".lora_B.weight")))
    modules = [key.removesuffix(".lora_A.weight") for key in layers if ".lora_A." in key]
    return {m: (layers[f"{m}.lora_A.weight"], layers[f"{m}.lora_B.weight"]) for m in modules}


def renamed_layer(name: str, down: torch.Tensor, up: torch.Tensor, alpha: float) -> Layers:
    """Return a layer's A (r, in), B (out, r) and alpha under the names that kohya's have."""
    return {
        f"{name}.lora_down.weight": down.contiguous(),
        f"{name}.lora_up.weight": up.contiguous(),
        f"{name}.alpha": torch.tensor(float(alpha)),
    }
