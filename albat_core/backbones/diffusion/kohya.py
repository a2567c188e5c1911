"""LoRA layers under the names of kohya's sd-scripts, which WebUI and ComfyUI read."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from albat_core.errors import BackboneError

Layers = dict[str, torch.Tensor]
"""An adapter's state by parameter."""
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""A (r, in) and B (out, r) by module."""


class Block(NamedTuple):
    """A kind of block of a transformer, under the names of its authors' own code."""

    name: str
    """Of the list of such blocks."""
    layers: Mapping[str, str]
    """Their layer by ours."""
    fused: Mapping[str, Mapping[str, int]]
    """By their layer: ours that are one there, in order, with their outputs' relative widths."""


def together(*layers: str) -> dict[str, int]:
    """Return layers of one width that are one in the authors' code, see ``Block``."""
    return dict.fromkeys(layers, 1)


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


def block_layers(layers: Layers, blocks: Mapping[str, Block], lora_alpha: float) -> Layers:
    """Return a transformer's layers; what its authors' code computes in one layer is put together.

    Factors of layers that are fused stand beside each other: A below A, and B block-diagonal, so
    the rank grows with their number and alpha with it.

    Args:
        layers: peft's state, of modules ``<list>.<number>.<layer>``.
        blocks: by the name of the list.
        lora_alpha: B A is multiplied by lora_alpha / r.

    Raises:
        BackboneError: a module has no name that the programs know, or is in no block.
    """
    pairs = paired_factors(layers)
    refuse_unnamed(module for module in pairs if not _is_named(module, blocks))
    numbered: dict[tuple[str, str], Factors] = {}
    for module, factors in pairs.items():
        kind, number, layer = module.split(".", 2)
        numbered.setdefault((kind, number), {})[layer] = factors
    found: Layers = {}
    for (kind, number), inner in numbered.items():
        block = blocks[kind]
        prefix = f"lora_unet_{block.name}_{number}"
        for layer, name in block.layers.items():
            if layer in inner:
                found |= renamed_layer(f"{prefix}_{name}", *inner[layer], lora_alpha)
        for name, parts in block.fused.items():
            if any(part in inner for part in parts):
                down, up = _fused(inner, parts)
                found |= renamed_layer(f"{prefix}_{name}", down, up, lora_alpha * len(parts))
    return found


def _is_named(module: str, blocks: Mapping[str, Block]) -> bool:
    """Tell whether the module is in a block: programs leave out others without a word."""
    kind, _, rest = module.partition(".")
    if kind not in blocks:
        return False
    inner = rest.partition(".")[2]
    return inner in blocks[kind].layers or any(inner in p for p in blocks[kind].fused.values())


def _fused(inner: Factors, parts: Mapping[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of several layers as those of one; zeros for layers not adapted."""
    there = next(part for part in parts if part in inner)
    down, up = inner[there]
    unit = up.shape[0] // parts[there]
    pairs = [
        inner.get(part, (torch.zeros_like(down), up.new_zeros(unit * width, up.shape[1])))
        for part, width in parts.items()
    ]
    downs, ups = zip(*pairs, strict=True)
    return torch.cat(downs), torch.block_diag(*ups)  # type: ignore[no-untyped-call]
