"""Adapters under kohya's names: those of the neighbours' rules, and read by diffusers unchanged."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from diffusers.utils import (
    convert_state_dict_to_kohya,
    convert_unet_state_dict_to_peft,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from albat_core.backbones import check_adapter, open_backbone
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.diffusion.adapter import KOHYA_WEIGHTS, WEIGHTS
from albat_core.backbones.diffusion.families.base import Family
from albat_core.backbones.diffusion.families.flux import Flux
from albat_core.backbones.diffusion.families.sdxl import SDXL
from albat_core.backbones.diffusion.families.stable_diffusion import StableDiffusion
from albat_core.backbones.diffusion.families.stable_diffusion_3 import StableDiffusion3
from albat_core.backbones.diffusion.kohya import Layers
from albat_core.errors import BackboneError
from albat_core.store.stage import Runtime
from tests.pipelines import save_pipeline

RANK, ALPHA = 4, 6.0
UNET_WIDE = (
    r".*(to_[qkv]|to_out\.0|net\.0\.proj|emb_proj|ff\.net\.2|linear_[12]"
    r"|conv\d?|conv_(in|out|shortcut)|proj_(in|out))"
)
TARGETS = {
    "sd": UNET_WIDE,
    "sdxl": UNET_WIDE,
    "sd3": r"transformer_blocks.*(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|net.*proj|net\.2"
    r"|linear)",
    # diffusers cuts a single block's fused layers at the widths of the real Flux alone
    "flux": r"transformer_blocks.*(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|net.*proj|net\.2"
    r"|linear)|single_transformer_blocks.*(proj_out|norm\.linear)",
}
TEXT_PREFIXES = {  # sd-scripts: networks/lora.py, networks/lora_sd3.py, networks/lora_flux.py
    "sd": {"text_encoder": "lora_te"},
    "sdxl": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    "sd3": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    "flux": {"text_encoder": "lora_te1"},
}


def config_of(folder: Path) -> BackboneConfig:
    return BackboneConfig(
        kind="diffusion",
        path=str(folder),
        dtype="float32",
        diffusion={"picture": {"resolution": 16}},
    )


@pytest.fixture(scope="module", params=TARGETS)
def saved(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Give a family, its pipeline's folder, and that of an adapter on all that has a name."""
    family, folder = request.param, tmp_path_factory.mktemp(request.param)
    backbone = save_pipeline(folder / "backbone", family)
    runtime = Runtime(root=str(folder), device="cpu")
    wide = AdapterConfig(
        rank=RANK, lora_alpha=ALPHA, target_modules=TARGETS[family], text_encoder=True
    )
    check_adapter(config_of(backbone), wide)
    with open_backbone(config_of(backbone), runtime) as opened:
        opened.attach_adapter(wide, 0)
        generator = torch.Generator().manual_seed(1)
        for parameter in opened.adapter_parameters().values():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        (folder / "adapter").mkdir()
        opened.save_adapter(folder / "adapter")
    return family, backbone, folder / "adapter"


def modules_of(path: Path, end: str) -> set[str]:
    return {key.removesuffix(end) for key in load_file(path) if key.endswith(end)}


def original(model: Any, key: str) -> str:
    """The key of a weight in the checkpoints that transformers converts when it loads a model."""
    for conversion in get_checkpoint_conversion_mapping(type(model).__name__) or ():
        key, _ = conversion.reverse_transform().rename_source_key(key)
    return key


def test_text_encoders_have_the_names_of_clip_s_checkpoints(
    saved: tuple[str, Path, Path],
) -> None:
    family, backbone, adapter = saved
    plain = modules_of(adapter / WEIGHTS, ".lora_A.weight")
    kohya = modules_of(adapter / KOHYA_WEIGHTS, ".lora_down.weight")
    pipeline = DiffusionPipeline.from_pretrained(backbone)
    expected_plain, expected = set(), set()
    for component, prefix in TEXT_PREFIXES[family].items():
        model = getattr(pipeline, component)
        checkpoint = {original(model, key).removesuffix(".weight") for key in model.state_dict()}
        layers = {m for m in checkpoint if re.search(r"self_attn\.(q|k|v|out)_proj$", m)}
        assert len(layers) == 8
        expected_plain |= {f"{component}.{module}" for module in layers}
        expected |= {f"{prefix}_{module}".replace(".", "_") for module in layers}
    assert {m for m in plain if m.startswith("text_encoder")} == expected_plain
    assert {m for m in kohya if m.startswith("lora_te")} == expected


def test_names_are_those_that_diffusers_writes(saved: tuple[str, Path, Path]) -> None:
    family, _, adapter = saved
    theirs = set(convert_state_dict_to_kohya(load_file(adapter / WEIGHTS)))
    if family == "sd":  # diffusers writes SDXL's names alone
        theirs = {key.replace("lora_te1_", "lora_te_") for key in theirs}
    unet = TARGETS[family] == UNET_WIDE
    if not unet:  # and knows those of Flux's transformer from reading alone, of SD3's none
        theirs = {key for key in theirs if key.startswith("lora_te")}
    named = {"add_embedding_linear_1": "label_emb_0_0", "add_embedding_linear_2": "label_emb_0_2"}
    for written, read in named.items():  # it reads these otherwise than it writes them
        theirs = {key.replace(written, read) for key in theirs}
    ours = set(load_file(adapter / KOHYA_WEIGHTS))
    assert theirs == {key for key in ours if unet or key.startswith("lora_te")}


class Change(dict[str, torch.Tensor]):
    """A checkpoint's difference from another: zero where nothing is said of a weight."""

    def __missing__(self, key: str) -> torch.Tensor:
        return torch.zeros(6, 1)

    def pop(self, key: str, *_: object) -> torch.Tensor:
        return super().pop(key, self[key])


def add_to_stable_diffusion_3(pipeline: Any, file: Path) -> None:
    """Add an adapter to the weights of the modules that sd-scripts names so.

    diffusers reads no such adapter, but checkpoints with the names of Stability's own code.
    """
    layers = load_file(file)
    changes = {
        name: layers[f"{name}.alpha"] / len(down) * layers[f"{name}.lora_up.weight"] @ down
        for name, down in ((k.partition(".")[0], v) for k, v in layers.items() if "down" in k)
    }
    for component, prefix in TEXT_PREFIXES["sd3"].items():
        for module, layer in getattr(pipeline, component).named_modules():
            if (name := f"{prefix}_{module}".replace(".", "_")) in changes:
                layer.weight += changes.pop(name)
    own = Change()
    inner = ("attn.qkv", "attn.proj", "attn2.qkv", "attn2.proj", "mlp.fc1", "mlp.fc2")
    for layer in (*inner, "adaLN_modulation.1"):
        for block in ("0.x", "0.context", "1.x", "1.context"):
            module = f"joint_blocks.{block}_block.{layer}"
            if (name := f"lora_unet_{module}".replace(".", "_")) in changes:
                own[f"{module}.weight"] = changes.pop(name)
    assert not changes
    weights = pipeline.transformer.state_dict()
    for key, change in convert_sd3_transformer_checkpoint_to_diffusers(own).items():
        if key.startswith("transformer_blocks.") and key.endswith(".weight"):
            weights[key] += change


def outputs(backbone: Path, adapter: Path | None, file: str) -> dict[str, torch.Tensor]:
    """What every adapted component of a pipeline computes, adapted by diffusers itself."""
    pipeline = DiffusionPipeline.from_pretrained(backbone)
    if adapter is not None and file == KOHYA_WEIGHTS and hasattr(pipeline, "text_encoder_3"):
        add_to_stable_diffusion_3(pipeline, adapter / file)
    elif adapter is not None:
        pipeline.load_lora_weights(str(adapter), weight_name=file)
    found = {}
    encoders = ["text_encoder"]
    if isinstance(pipeline, StableDiffusionXLPipeline | StableDiffusion3Pipeline):
        encoders.append("text_encoder_2")
    for name in encoders:
        out = getattr(pipeline, name)(torch.arange(20)[None], output_hidden_states=True)
        found[name] = out.hidden_states[-1]
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    time = torch.tensor([0.3])
    if isinstance(pipeline, FluxPipeline):
        found["transformer"] = pipeline.transformer(
            hidden_states=noise(1, 16, 16),
            timestep=time,
            guidance=torch.ones(1),
            pooled_projections=noise(1, 16),
            encoder_hidden_states=noise(1, 5, 24),
            txt_ids=torch.zeros(5, 3),
            img_ids=torch.zeros(16, 3),
        ).sample
        return found
    if isinstance(pipeline, StableDiffusion3Pipeline):
        found["transformer"] = pipeline.transformer(
            hidden_states=noise(1, 4, 8, 8),
            timestep=time * 1000,
            pooled_projections=noise(1, 16 + 24),
            encoder_hidden_states=noise(1, 5, 48),
        ).sample
        return found
    width = pipeline.unet.config.cross_attention_dim
    added = {"text_embeds": noise(1, 24), "time_ids": torch.ones(1, 6)}
    found["unet"] = pipeline.unet(
        noise(1, 4, 8, 8), time * 1000, noise(1, 5, width), added_cond_kwargs=added
    ).sample
    return found


@torch.no_grad()
def test_diffusers_computes_the_same_from_both_files(saved: tuple[str, Path, Path]) -> None:
    _, backbone, adapter = saved
    before = outputs(backbone, None, "")
    plain, kohya = (outputs(backbone, adapter, file) for file in (WEIGHTS, KOHYA_WEIGHTS))
    for name, untouched in before.items():
        assert (plain[name] - untouched).abs().max() > 0.01, name
        torch.testing.assert_close(kohya[name], plain[name], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_adapter_is_loaded_as_it_was_saved(saved: tuple[str, Path, Path]) -> None:
    _, backbone, adapter = saved
    with open_backbone(config_of(backbone), Runtime(root=str(adapter), device="cpu")) as opened:
        opened.load_adapter(adapter)
        (again := adapter.parent / "again").mkdir()
        opened.save_adapter(again)
    for file in (WEIGHTS, KOHYA_WEIGHTS):
        first, second = load_file(adapter / file), load_file(again / file)
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_no_path_of_this_machine_is_in_the_folder(saved: tuple[str, Path, Path]) -> None:
    _, backbone, adapter = saved
    for file in adapter.iterdir():
        assert str(backbone.parent).encode() not in file.read_bytes(), file
    with safe_open(adapter / WEIGHTS, "pt") as file:
        assert "text_encoder.target_modules" in file.metadata()["lora_adapter_metadata"]


@pytest.mark.parametrize(
    ("family", "targets", "named"),
    [
        ("flux", ("proj_out",), "proj_out"),
        ("flux", ("to_q", "x_embedder"), "x_embedder"),
        ("flux", "all-linear", "context_embedder"),
        ("sd", ("to_q", "cond_proj"), "time_embedding.cond_proj"),
        ("sd3", ("attn.to_q", "proj_out"), "proj_out"),
        ("sd3", "all-linear", "context_embedder"),
    ],
)
def test_modules_without_a_name_are_refused_before_the_training(
    tmp_path: Path, family: str, targets: Any, named: str
) -> None:
    backbone = config_of(save_pipeline(tmp_path / "backbone", family))
    if named.endswith("cond_proj"):  # UNets distilled for few steps have it
        path = Path(backbone.path) / "unet"
        described = UNet2DConditionModel.load_config(path)
        UNet2DConditionModel.from_config(described, time_cond_proj_dim=8).save_pretrained(path)
    adapter = AdapterConfig(rank=2, target_modules=targets)
    with pytest.raises(BackboneError, match=f"kohya's format, got .*{named}") as raised:
        check_adapter(backbone, adapter)
    assert "pattern" in raised.value.remedy
    with (
        open_backbone(backbone, Runtime(root=str(tmp_path), device="cpu")) as opened,
        pytest.raises(BackboneError, match=named),
    ):
        opened.attach_adapter(adapter, 0)
    obeyed = AdapterConfig(rank=2, target_modules=".*block.*[.](to_q|proj_out)")
    if family == "flux":
        check_adapter(backbone, obeyed)


def test_what_peft_does_not_adapt_is_told_in_its_words(tmp_path: Path) -> None:
    backbone = config_of(save_pipeline(tmp_path / "backbone"))
    with pytest.raises(BackboneError, match=r"GroupNorm.*is not supported") as raised:
        check_adapter(backbone, AdapterConfig(rank=2, target_modules=("conv_norm_out",)))
    assert "match no layer" not in str(raised.value)


def factors(module: str, inputs: int, outputs: int) -> Layers:
    generator = torch.Generator().manual_seed(sum(map(ord, module)))
    return {
        f"{module}.lora_A.weight": torch.randn(RANK, inputs, generator=generator),
        f"{module}.lora_B.weight": torch.randn(outputs, RANK, generator=generator),
    }


def product(layers: Layers, module: str, scale: float) -> torch.Tensor:
    """B A times its scale: what the adapter adds to the layer's weights."""
    return scale * layers[f"{module}.lora_B.weight"] @ layers[f"{module}.lora_A.weight"]


def test_flux_layers_that_are_one_in_its_own_code_are_fused(tmp_path: Path) -> None:
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


def linears(model: torch.nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name every module that LoRA may be attached to, with inputs and outputs."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            yield name, (module.in_features, module.out_features)
        elif isinstance(module, torch.nn.Conv2d):
            yield name, (1, 1)  # names alone are looked at


@pytest.fixture(scope="module")
def real() -> dict[str, torch.nn.Module]:
    """The denoisers of the real models, by family, as shapes."""
    with torch.device("meta"):
        return {
            "sd": UNet2DConditionModel(cross_attention_dim=768),
            "sdxl": UNet2DConditionModel(
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                block_out_channels=(320, 640, 1280),
                transformer_layers_per_block=(1, 2, 10),
                cross_attention_dim=2048,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
                use_linear_projection=True,
            ),
            "flux": FluxTransformer2DModel(guidance_embeds=True),
        }


@pytest.mark.parametrize(
    ("name", "family"), [("sd", StableDiffusion), ("sdxl", SDXL), ("flux", Flux)]
)
def test_every_module_of_the_real_models_comes_back_or_is_refused(
    real: dict[str, torch.nn.Module], name: str, family: type[Family]
) -> None:
    part = family.denoiser_name
    taken: Layers = {}
    refused = set()
    for module, (inputs, out) in linears(real[name]):
        its = {
            f"{module}.lora_A.weight": torch.zeros(1, inputs),
            f"{module}.lora_B.weight": torch.zeros(out, 1),
        }
        try:
            family.kohya_layers({part: its}, 1.0)
            taken |= its
        except BackboneError:
            refused.add(module)
    pipeline = FluxPipeline if name == "flux" else StableDiffusionXLPipeline
    theirs = pipeline.lora_state_dict(family.kohya_layers({part: taken}, 1.0))
    if name != "flux":
        theirs = convert_unet_state_dict_to_peft(
            {k.removeprefix("unet."): v for k, v in theirs[0].items()}
        )
        theirs = {f"unet.{key}": value for key, value in theirs.items()}
    assert set(theirs) == {f"{part}.{key}" for key in taken}
    if name == "flux":  # outside of blocks: diffusers names them without the part, and drops them
        assert {module.partition(".")[0] for module in refused} == {
            *("x_embedder", "context_embedder", "time_text_embed", "norm_out", "proj_out")
        }
    else:
        assert not refused


def test_every_module_in_the_blocks_of_stable_diffusion_3_has_a_name() -> None:
    with torch.device("meta"):  # 3.5 medium
        real = SD3Transformer2DModel(
            num_layers=24,
            num_attention_heads=24,
            caption_projection_dim=1536,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
    refused = set()
    for module, (inputs, out) in linears(real):
        its = {
            f"{module}.lora_A.weight": torch.zeros(1, inputs),
            f"{module}.lora_B.weight": torch.zeros(out, 1),
        }
        try:
            StableDiffusion3.kohya_layers({"transformer": its}, 1.0)
        except BackboneError:
            refused.add(module.partition(".")[0])
    outside = {"pos_embed", "time_text_embed", "context_embedder", "norm_out", "proj_out"}
    assert refused == outside
