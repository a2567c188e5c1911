"""LoRA layers under the names of kohya's sd-scripts, which WebUI and ComfyUI read."""

from collections.abc import Mapping

import torch

Layers = dict[str, torch.Tensor]
"""An adapter's state by parameter."""
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""A (r, in) and B (out, r) by module."""


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
    """Return A (r, in) and B (out, r) by module of peft's state."""
    modules = [key.removesuffix(".lora_A.weight") for key in layers if ".lora_A." in key]
    return {m: (layers[f"{m}.lora_A.weight"], layers[f"{m}.lora_B.weight"]) for m in modules}


def renamed_layer(name: str, down: torch.Tensor, up: torch.Tensor, alpha: float) -> Layers:
    """Return a layer's A (r, in), B (out, r) and alpha under the names that kohya's have."""
    return {
        f"{name}.lora_down.weight": down.contiguous(),
        f"{name}.lora_up.weight": up.contiguous(),
        f"{name}.alpha": torch.tensor(float(alpha)),
    }
