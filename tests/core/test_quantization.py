"""Backbones in 4 and 8 bits: as transformers and peft have them, from the folder to the adapter."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from albat_core.backbones import (
    backbone_identity,
    check_adapter,
    check_backbone,
    open_backbone,
)
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.base import FixedNoise
from albat_core.backbones.config import BackboneConfig, SamplingConfig
from albat_core.backbones.language import quantization
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.errors import BackboneError, MissingDependencyError
from albat_core.measures.gradients import Projection, example_gradients
from albat_core.records.examples import Example
from albat_core.records.runs import ALBAT
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from tests.pipelines import save_pipeline
from tests.toys import save_backbone

ROWS = [
    Example(str(n), str(n), "s", text)
    for n, text in enumerate(["leaf root seed stem bloom.", "sail mast hull wind harbour anchor."])
]
BITS = ("4bit", "8bit")
THEIRS = {
    "4bit": BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    ),
    "8bit": BitsAndBytesConfig(load_in_8bit=True),
}
CPU = Runtime(device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("quantized") / "model", width=64)


def config_of(folder: Path, bits: str | None = None, dtype: str = "float32") -> BackboneConfig:
    return BackboneConfig(path=str(folder), max_length=64, dtype=dtype, quantization=bits)


def theirs(folder: Path, bits: str) -> torch.nn.Module:
    """The model as transformers quantizes it."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=THEIRS[bits], device_map={"": "cpu"}
    )
    for layer in model.modules():
        layer.support_avx512bf16_for_cpu = False
    return model.eval()


def losses_of(model: torch.nn.Module, backbone: LanguageBackbone) -> list[float]:
    """Mean losses by a plain pass for each row."""
    found = []
    for row in backbone.encode(ROWS):
        ids = torch.tensor(row.inputs["input_ids"][None], dtype=torch.long)
        with torch.no_grad():
            found.append(float(model(input_ids=ids, labels=ids).loss))
    return found


def ours(backbone: LanguageBackbone) -> list[float]:
    with torch.no_grad():
        return [float(backbone.losses([row]).mean) for row in backbone.encode(ROWS)]


def disturb(backbone: LanguageBackbone) -> None:
    """Give an adapter an effect."""
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.adapter_parameters().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(params=BITS)
def bits(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(folder: Path, bits: str) -> Iterator[LanguageBackbone]:
    with open_backbone(config_of(folder, bits), CPU) as backbone:
        assert isinstance(backbone, LanguageBackbone)
        yield backbone


def test_losses_are_those_of_transformers_quantized_model(
    opened: LanguageBackbone, folder: Path, bits: str
) -> None:
    expected = losses_of(theirs(folder, bits), opened)
    assert ours(opened) == pytest.approx(expected, rel=1e-5)
    full = losses_of(AutoModelForCausalLM.from_pretrained(folder).eval(), opened)
    assert ours(opened) != pytest.approx(full, rel=1e-6)


def test_an_adapter_trained_on_it_loads_in_plain_peft_on_the_model_in_full_precision(
    opened: LanguageBackbone, folder: Path, bits: str, tmp_path: Path
) -> None:
    before = ours(opened)
    opened.attach_adapter(AdapterConfig(rank=4), seed=0)
    assert all(p.dtype == torch.float32 for p in opened.adapter_parameters().values())
    assert ours(opened) == before  # its effect is nil
    disturb(opened)
    adapted = ours(opened)
    with opened.adapter_disabled():
        assert ours(opened) == before != adapted
    opened.save_adapter(tmp_path / "adapter")
    on_quantized = PeftModel.from_pretrained(theirs(folder, bits), tmp_path / "adapter").eval()
    assert adapted == pytest.approx(losses_of(on_quantized, opened), rel=1e-5)
    full = AutoModelForCausalLM.from_pretrained(folder)
    on_full = PeftModel.from_pretrained(full, tmp_path / "adapter").eval()
    assert adapted == pytest.approx(losses_of(on_full, opened), rel=0.1)
    opened.detach_adapter()
    assert ours(opened) == before


def test_gradients_of_examples_are_those_of_autograd_after_passes_without(
    opened: LanguageBackbone,
) -> None:
    encoded = opened.encode(ROWS)
    opened.embed(encoded)
    opened.generate(["leaf"], SamplingConfig(max_new_tokens=4), seed=0)
    opened.attach_adapter(AdapterConfig(rank=4), seed=0)
    ours(opened)  # on some processors a pass without gradients changes the weights' layout
    disturb(opened)
    found = example_gradients(opened, encoded, 512, FixedNoise(1), Projection(64))
    parameters = opened.adapter_parameters()
    for row, one in zip(encoded, found, strict=True):
        loss = opened.losses([row]).mean.sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        assert all(gradient.abs().max() > 0 for gradient in gradients)
        sketch, projection = torch.zeros(1, 64), Projection(64)
        for name, gradient in zip(parameters, gradients, strict=True):
            projection.add(sketch, name, gradient[None])
        # int8 rounds what is computed at once by its largest values
        torch.testing.assert_close(torch.tensor(one), sketch[0], rtol=0.05, atol=0.02)


def test_gradients_are_those_of_peft_after_passes_without(
    opened: LanguageBackbone, folder: Path, bits: str, tmp_path: Path
) -> None:
    ours(opened)  # where none is asked for, some processors take a layout that has none
    opened.attach_adapter(AdapterConfig(rank=4), seed=0)
    disturb(opened)
    opened.save_adapter(tmp_path / "adapter")
    model = PeftModel.from_pretrained(theirs(folder, bits), tmp_path / "adapter", is_trainable=True)
    [row] = opened.encode(ROWS[:1])
    ids = torch.tensor(row.inputs["input_ids"][None], dtype=torch.long)
    model.eval()(input_ids=ids, labels=ids).loss.backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    parameters = opened.adapter_parameters()
    found = torch.autograd.grad(opened.losses([row]).mean.sum(), list(parameters.values()))
    for name, gradient in zip(parameters, found, strict=True):
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_every_kind_of_adapter_is_trained_in_either_precision(
    folder: Path, bits: str, kind: str, dtype: str
) -> None:
    if (bits, kind) == ("8bit", "dora"):
        with pytest.raises(BackboneError, match="goes with weights in 8bit, got dora"):
            check_adapter(config_of(folder, bits, dtype), AdapterConfig(kind=kind, rank=4))
        return
    with open_backbone(config_of(folder, bits, dtype), CPU) as backbone:
        backbone.checkpoint_gradients()
        backbone.attach_adapter(AdapterConfig(kind=kind, rank=4), seed=0)
        encoded = backbone.encode(ROWS)
        parameters = list(backbone.adapter_parameters().values())
        optimizer = torch.optim.AdamW(parameters, lr=0.02)
        found = []
        for _ in range(5):
            backbone.training(True)
            losses, _ = backbone.losses_with_divergence(encoded)
            gradients = torch.autograd.grad(losses.mean.sum(), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            found.append(float(losses.mean.detach().sum()))
    assert found[-1] < found[0] - 0.05


@pytest.mark.parametrize("scorer", ["gradient", "matching", "advantage"])
def test_a_run_selects_mixes_and_adapts(run_config: RunConfig, bits: str, scorer: str) -> None:
    changed = run_config.model_dump() | {
        "backbone": run_config.backbone.model_dump() | {"quantization": bits},
        "scoring": {"scorer": scorer},
        "mixture": {"alpha": "auto", "fall_back": False},
        "baselines": (),
    }
    run = RunConfig.model_validate(changed)
    chain, store = Chain(run), ArtifactStore(run.runtime.root)
    losses = store.manifest(chain.arms.evaluation(ALBAT)).facts
    assert 0 < losses["loss"] < 10
    facts = store.manifest(chain.arms.adapter(ALBAT)).facts
    assert facts["validation_loss"] < facts["history"][0]["validation"]


# Checkpoints that are quantized already


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Save the model as quantized, once."""
    root = tmp_path_factory.mktemp("saved")

    def save(bits: str) -> Path:
        place = root / bits
        if not place.exists():
            save_backbone(place, width=64)
            (place / "model.safetensors").unlink()
            how = BitsAndBytesConfig.from_dict(
                THEIRS[bits].to_dict() | {"bnb_4bit_compute_dtype": "float16"}  # as many have it
            )
            model = AutoModelForCausalLM.from_pretrained(
                folder, quantization_config=how, device_map={"": "cpu"}
            )
            model.save_pretrained(place)
        return place

    return save


def test_a_checkpoint_that_is_quantized_is_what_quantizing_gives(
    saved: Callable[[str], Path], folder: Path, bits: str
) -> None:
    config = config_of(saved(bits))
    check_backbone(config, CPU)
    check_adapter(config, AdapterConfig())
    if bits == "8bit":
        with pytest.raises(BackboneError, match="got dora"):
            check_adapter(config, AdapterConfig(kind="dora"))
    with open_backbone(config, CPU) as backbone:
        found = ours(backbone)
        backbone.attach_adapter(AdapterConfig(rank=4), seed=0)
        loss = backbone.losses(backbone.encode(ROWS)).mean.sum()
        gradients = torch.autograd.grad(loss, list(backbone.adapter_parameters().values()))
        assert sum(float(g.abs().sum()) for g in gradients) > 0
    with open_backbone(config_of(folder, bits), CPU) as backbone:
        assert found == ours(backbone)


def test_it_is_not_quantized_again(saved: Callable[[str], Path]) -> None:
    with pytest.raises(BackboneError, match="expected weights in full precision to quantize to 8"):
        check_backbone(config_of(saved("4bit"), "8bit"), CPU)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "compressed-tensors"])
def test_other_methods_are_refused_by_name(tmp_path: Path, method: str) -> None:
    file = save_backbone(tmp_path / "model") / "config.json"
    said = {"quantization_config": {"quant_method": method, "bits": 4}}
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    with pytest.raises(BackboneError, match=rf"a quantized checkpoint \({method}\)") as caught:
        check_backbone(config_of(tmp_path / "model"), CPU)
    assert "bitsandbytes alone" in caught.value.remedy


# What it is known by, and where it is refused


def test_quantization_is_part_of_what_a_backbone_is_known_by(folder: Path) -> None:
    known = [backbone_identity(config_of(folder, bits), CPU) for bits in (None, *BITS)]
    assert [each.get("quantization") for each in known] == [None, *BITS]
    assert "quantization" not in known[0]
    assert len({each["content"] for each in known}) == 1


def test_a_missing_library_is_told_with_its_extra(
    folder: Path, bits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    check_backbone(config_of(folder), CPU)
    with pytest.raises(MissingDependencyError, match="bitsandbytes") as caught:
        check_backbone(config_of(folder, bits), CPU)
    assert "albat[quantization]" in caught.value.remedy


def test_pictures_are_not_quantized(tmp_path: Path, bits: str) -> None:
    pipeline = save_pipeline(tmp_path / "pipeline")
    config = BackboneConfig(kind="diffusion", path=str(pipeline), quantization=bits)
    with pytest.raises(BackboneError, match=rf"a language model to quantize to {bits}"):
        check_backbone(config, CPU)
    file = next(pipeline.glob("*/config.json"))
    said = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    with pytest.raises(BackboneError, match="quantized checkpoint"):
        check_backbone(config.model_copy(update={"quantization": None}), CPU)
