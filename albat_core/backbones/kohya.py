"""LoRA layers under the names of kohya's sd-scripts, which WebUI and ComfyUI read."""

from collections.abc import Mapping

import torch

Layers = dict[str, torch.Tensor]
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""A (r, in) and B (out, r) by module."""

_PREFIXES = {
    "unet": "lora_unet",
    "text_encoder": "lora_te1",
    "text_encoder_2": "lora_te2",
}
_FLUX_DOUBLE = {
    "attn.to_out.0": "img_attn_proj",
    "attn.to_add_out": "txt_attn_proj",
    "ff.net.0.proj": "img_mlp_0",
    "ff.net.2": "img_mlp_2",
    "ff_context.net.0.proj": "txt_mlp_0",
    "ff_context.net.2": "txt_mlp_2",
    "norm1.linear": "img_mod_lin",
    "norm1_context.linear": "txt_mod_lin",
}
_FLUX_SINGLE = {"proj_out": "linear2", "norm.linear": "modulation_lin"}
_FLUX_FUSED: dict[str, dict[str, tuple[str, ...]]] = {
    "double_blocks": {
        "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    },
    "single_blocks": {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")},
}
_FLUX_BLOCKS: dict[str, tuple[str, dict[str, str]]] = {
    "transformer_blocks": ("double_blocks", _FLUX_DOUBLE),
    "single_transformer_blocks": ("single_blocks", _FLUX_SINGLE),
}
_MLP_RATIO = 4  # width of proj_mlp over that of to_q, in every Flux


def kohya_layers(components: Mapping[str, Layers], lora_alpha: float) -> Layers:
    """Return ``<module>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha`` of every layer.

    Args:
        components: peft's state by component: ``<module>.lora_A.weight`` (r, in) and
            ``<module>.lora_B.weight`` (out, r).
        lora_alpha: B A is multiplied by lora_alpha / r.
    """
    found: Layers = {}
    single_encoder = "text_encoder_2" not in components and "unet" in components
    for component, layers in components.items():
        pairs = _pairs(layers)
        if component == "transformer":
            found |= _flux(pairs, lora_alpha)
            continue
        prefix = _PREFIXES[component]
        if component == "text_encoder" and single_encoder:
            prefix = "lora_te"
        for module, (down, up) in pairs.items():
            found |= _layer(f"{prefix}_{module.replace('.', '_')}", down, up, lora_alpha)
    return found


def _pairs(layers: Layers) -> Factors:
    """Return A (r, in) and B (out, r) by module."""
    modules = [key.removesuffix(".lora_A.weight") for key in layers if ".lora_A." in key]
    return {m: (layers[f"{m}.lora_A.weight"], layers[f"{m}.lora_B.weight"]) for m in modules}


def _layer(name: str, down: torch.Tensor, up: torch.Tensor, alpha: float) -> Layers:
    return {
        f"{name}.lora_down.weight": down.contiguous(),
        f"{name}.lora_up.weight": up.contiguous(),
        f"{name}.alpha": torch.tensor(float(alpha)),
    }


def _flux(pairs: Factors, alpha: float) -> Layers:
    """Return Flux's layers; what its own code computes in one layer is put together.

    Factors of layers that are fused stand beside each other: A below A, and B block-diagonal, so
    the rank grows with their number and alpha with it.
    """
    blocks: dict[tuple[str, str], Factors] = {}
    for module, factors in pairs.items():
        kind, number, inner = module.split(".", 2)
        blocks.setdefault((kind, number), {})[inner] = factors
    found: Layers = {}
    for (kind, number), layers in blocks.items():
        theirs, names = _FLUX_BLOCKS[kind]
        prefix = f"lora_unet_{theirs}_{number}"
        for module, name in names.items():
            if module in layers:
                found |= _layer(f"{prefix}_{name}", *layers[module], alpha)
        for name, parts in _FLUX_FUSED[theirs].items():
            if any(part in layers for part in parts):
                down, up = _fused(layers, parts)
                found |= _layer(f"{prefix}_{name}", down, up, alpha * len(parts))
    return found


def _fused(inner: Factors, parts: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of several layers as those of one; zeros for layers not adapted."""
    down, up = next(inner[part] for part in parts if part in inner)
    there = next(u.shape[0] for part, (_, u) in inner.items() if part in parts[:3])
    downs, ups = [], []
    for part in parts:
        width = there * (_MLP_RATIO if part == "proj_mlp" else 1)
        missing = (torch.zeros_like(down), up.new_zeros(width, up.shape[1]))
        one, other = inner.get(part, missing)
        downs.append(one)
        ups.append(other)
    return torch.cat(downs), torch.block_diag(*ups)  # type: ignore[no-untyped-call]
