"""Adapters under kohya's names come back through diffusers' own converters unchanged."""

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline
from safetensors.torch import save_file

from albat_core.backbones.diffusion.families.flux import Flux
from albat_core.backbones.diffusion.families.sdxl import SDXL
from albat_core.backbones.diffusion.families.stable_diffusion import StableDiffusion
from albat_core.backbones.diffusion.kohya import Layers

RANK, ALPHA = 4, 6.0


def factors(module: str, inputs: int, outputs: int) -> Layers:
    generator = torch.Generator().manual_seed(sum(map(ord, module)))
    return {
        f"{module}.lora_A.weight": torch.randn(RANK, inputs, generator=generator),
        f"{module}.lora_B.weight": torch.randn(outputs, RANK, generator=generator),
    }


def product(layers: Layers, module: str, scale: float) -> torch.Tensor:
    """B A times its scale: what the adapter adds to the layer's weights."""
    return scale * layers[f"{module}.lora_B.weight"] @ layers[f"{module}.lora_A.weight"]


def test_flux_layers_that_are_one_in_its_own_code_are_fused(tmp_path) -> None:
    width, mlp = 3072, 12288  # of every Flux; the converter knows no other
    double = [f"attn.{n}" for n in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj")]
    ours: Layers = {}
    for name in double:
        ours |= factors(f"transformer_blocks.0.{name}", width, width)
    for name in ("attn.to_q", "attn.to_v"):
        ours |= factors(f"single_transformer_blocks.1.{name}", width, width)
    ours |= factors("single_transformer_blocks.1.proj_out", width + mlp, width)
    path = tmp_path / "kohya.safetensors"
    save_file(Flux.kohya_layers({"transformer": ours}, ALPHA), path)
    theirs = FluxPipeline.lora_state_dict(str(tmp_path), weight_name=path.name)
    theirs = {k.removeprefix("transformer."): v for k, v in theirs.items()}
    modules = {k.removesuffix(".lora_A.weight") for k in theirs if k.endswith("lora_A.weight")}
    adapted = {k.removesuffix(".lora_A.weight") for k in ours if k.endswith("lora_A.weight")}
    assert adapted <= modules
    for module in adapted:
        found = product(theirs, module, 1.0)  # the converter puts the scale into the factors
        assert torch.allclose(found, product(ours, module, ALPHA / RANK), atol=1e-3), module
    for module in modules - adapted:  # fused with adapted ones
        assert not product(theirs, module, 1.0).any(), module


@pytest.mark.parametrize("family", [StableDiffusion, SDXL])
def test_unet_and_text_encoders_come_back_with_their_scale(tmp_path, family) -> None:
    unet = factors("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 16, 16)
    unet |= factors("mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0", 16, 16)
    components = {"unet": unet}
    encoders = family.adaptable_encoders
    for name in encoders:
        components[name] = factors("text_model.encoder.layers.0.self_attn.q_proj", 8, 8)
    path = tmp_path / "kohya.safetensors"
    save_file(family.kohya_layers(components, ALPHA), path)
    found, alphas = StableDiffusionPipeline.lora_state_dict(str(tmp_path), weight_name=path.name)
    downs = [k for k in found if k.endswith("down.weight")]
    assert len(downs) == 2 + len(encoders)
    assert set(alphas.values()) == {ALPHA}
    assert len(alphas) == 2 + len(encoders)
    expected = unet["mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.lora_A.weight"]
    assert any(torch.equal(found[k], expected) for k in downs)


def test_one_encoder_has_the_name_that_programs_for_it_expect() -> None:
    text = {"text_encoder": factors("text_model.encoder.layers.0.self_attn.q_proj", 8, 8)}
    one = StableDiffusion.kohya_layers({"unet": {}, **text}, ALPHA)
    two = SDXL.kohya_layers({"unet": {}, **text, "text_encoder_2": {}}, ALPHA)
    assert all(key.startswith("lora_te_text_model_encoder_layers_0") for key in one)
    assert all(key.startswith("lora_te1_text_model_encoder_layers_0") for key in two)
