"""Checkpoints in one file as backbones: the same losses, and what lacks is told."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from albat_core.backbones import check_backbone, convert_file, open_backbone
from albat_core.backbones.base import FixedNoise
from albat_core.backbones.config import BackboneConfig
from albat_core.errors import BackboneError, ConfigError
from albat_core.records.examples import Example
from albat_core.store.stage import Runtime
from tests.pictures import picture
from tests.pipelines import save_pipeline
from tests.single_files import write_stable_diffusion, write_stable_diffusion_3

CPU = Runtime(device="cpu")


def config_of(folder: Path) -> BackboneConfig:
    small = {"picture": {"resolution": 16}}
    return BackboneConfig(kind="diffusion", path=str(folder), dtype="float32", diffusion=small)


def losses(folder: Path) -> torch.Tensor:
    """Return losses (2, 4) of two captioned pictures at four levels."""
    config = config_of(folder)
    check_backbone(config, CPU)
    rows = [
        Example(f"r{n}", f"r{n}", "toy", text, image=picture("red", "circle", n, 16))
        for n, text in enumerate(("a photo of a red circle", "a blue square"))
    ]
    with open_backbone(config, CPU) as backbone, torch.inference_mode():
        cut = [piece for row in rows for piece in backbone.pieces(row)]
        return backbone.losses(backbone.encode(cut), FixedNoise(levels=4)).each


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("original") / "pipeline")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of the same shapes and of other weights."""
    return save_pipeline(tmp_path_factory.mktemp("other") / "pipeline", seed=1)


@pytest.fixture(scope="module")
def file(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stable_diffusion(original, tmp_path_factory.mktemp("file") / "dream.safetensors")


def test_a_converted_file_is_the_pipeline_it_was_made_from(
    original: Path, other: Path, file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "made" / "model"
    found = convert_file(file, folder, config=other)
    weights = [w for p in original.rglob("*.safetensors") for w in load_file(p).values()]
    assert found.types == {"F32": len(weights)}
    assert found.parameters == sum(w.numel() for w in weights)
    expected = losses(original)
    assert torch.equal(losses(folder), expected)
    assert (losses(other) - expected).abs().max() > 1e-3
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]
    for path in folder.rglob("*.json"):  # else each machine has a key of its own
        assert str(other) not in path.read_text()


def test_halves_are_kept_as_numbers(original: Path, file: Path, tmp_path: Path) -> None:
    halves = {key: value.half() for key, value in load_file(file).items()}
    save_file(halves, tmp_path / "half.safetensors")
    found = convert_file(tmp_path / "half.safetensors", tmp_path / "model", "float16", original)
    assert found.types == {"F16": len(halves)}
    kept = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.float16}
    torch.testing.assert_close(losses(tmp_path / "model"), losses(original), rtol=0.01, atol=0)


def test_weights_that_others_scale_are_refused(original: Path, file: Path, tmp_path: Path) -> None:
    tensors = load_file(file)
    scaled = {"model.diffusion_model.out.2.scale_weight": torch.tensor(0.5)}
    save_file(tensors | scaled, tmp_path / "scaled.safetensors")
    with pytest.raises(BackboneError, match=r"found model.diffusion_model.out.2.scale_weight"):
        convert_file(tmp_path / "scaled.safetensors", tmp_path / "model", config=original)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("added", "about", "expected"),
    [
        ({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, {}, ("v_prediction", True)),
        ({}, {"modelspec.prediction_type": "v"}, ("v_prediction", False)),
        ({}, {"modelspec.prediction_type": "epsilon"}, ("epsilon", False)),
    ],
)
def test_what_a_model_predicts_is_read_from_its_file(
    original: Path,
    file: Path,
    tmp_path: Path,
    added: dict[str, torch.Tensor],
    about: dict[str, str],
    expected: tuple[str, bool],
) -> None:
    save_file(load_file(file) | added, tmp_path / "made.safetensors", about | {"format": "pt"})
    convert_file(tmp_path / "made.safetensors", tmp_path / "model", config=original)
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    found = json.loads(path.read_text())
    assert (found["prediction_type"], found.get("rescale_betas_zero_snr", False)) == expected


def test_an_autoencoder_that_lacks_is_the_described_pipeline_s(
    original: Path, other: Path, tmp_path: Path
) -> None:
    file = write_stable_diffusion(original, tmp_path / "unet.safetensors", ("text",))
    convert_file(file, tmp_path / "model", config=other)
    name = "diffusion_pytorch_model.safetensors"
    for component, source in (("vae", other), ("unet", original)):
        made, own = load_file(tmp_path / "model" / component / name), source / component / name
        assert all(torch.equal(made[key], value) for key, value in load_file(own).items())


def test_text_encoders_that_lack_are_the_described_pipeline_s(tmp_path: Path) -> None:
    original, other = (save_pipeline(tmp_path / str(n), "sd3", seed=n) for n in (0, 1))
    file = write_stable_diffusion_3(original, tmp_path / "sd3.5.safetensors")
    convert_file(file, tmp_path / "model", config=other)
    sources = {"transformer": original, "vae": original}
    sources |= dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3"), other)
    for component, source in sources.items():
        (own,) = (source / component).glob("*.safetensors")
        made = load_file(tmp_path / "model" / component / own.name)
        assert all(torch.equal(made[key], value) for key, value in load_file(own).items())
    assert losses(tmp_path / "model").isfinite().all()
    for weights in (other / "text_encoder_2").glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(BackboneError, match="text_encoder_2"):
        convert_file(file, tmp_path / "none", config=other)


def test_weights_that_lack_are_named(original: Path, other: Path, tmp_path: Path) -> None:
    file = write_stable_diffusion(original, tmp_path / "poor.safetensors", ("vae",))
    with pytest.raises(BackboneError, match=r"no weights for .* of the text_encoder") as raised:
        convert_file(file, tmp_path / "model", config=other)
    assert "--config PIPELINE, with the weights that the file lacks" in raised.value.remedy
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_shapes_that_do_not_fit_are_told(original: Path, file: Path, tmp_path: Path) -> None:
    save_pipeline(tmp_path / "pipeline")
    path = tmp_path / "pipeline" / "unet" / "config.json"
    wider = json.loads(path.read_text()) | {"block_out_channels": [8, 32]}
    path.write_text(json.dumps(wider))
    with pytest.raises(BackboneError, match="diffusers can load with descriptions from") as raised:
        convert_file(file, tmp_path / "model", config=tmp_path / "pipeline")
    assert "a pipeline with the same shapes" in raised.value.remedy


def test_a_file_of_another_family_is_refused(file: Path, tmp_path: Path) -> None:
    larger = save_pipeline(tmp_path / "sdxl", "sdxl")
    with pytest.raises(BackboneError, match="got one of StableDiffusionPipeline"):
        convert_file(file, tmp_path / "model", config=larger)


def test_without_a_folder_descriptions_come_from_the_hub(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match="with descriptions from the hub") as raised:
        convert_file(file, tmp_path / "model")
    assert "--config PIPELINE" in raised.value.remedy


def test_what_is_no_checkpoint_is_told(original: Path, file: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "lora.safetensors"
    save_file({"lora_unet_mid_block.lora_down.weight": torch.zeros(1, 1)}, adapter)
    with pytest.raises(BackboneError, match=r"expected a checkpoint of .*Flux.* found lora_unet"):
        convert_file(adapter, tmp_path / "model")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BackboneError, match="damaged, truncated or other"):
        convert_file(broken, tmp_path / "model")
    with pytest.raises(BackboneError, match="expected a file, found none"):
        convert_file(tmp_path / "none.safetensors", tmp_path / "model")
    with pytest.raises(BackboneError, match=r"expected FILE.gguf or FILE.safetensors, got dream"):
        convert_file(file.rename(tmp_path / "dream"), tmp_path / "model")
    (tmp_path / "dream").rename(file)
    with pytest.raises(ConfigError, match="it is there already"):
        convert_file(file, original)
    with pytest.raises(ConfigError, match="GGUF file alone, which describes itself"):
        convert_file(tmp_path / "model.gguf", tmp_path / "model", config=original)


def test_pickled_checkpoints_are_never_read(original: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "dream.ckpt"
    pickled.write_bytes(b"\0")
    with pytest.raises(BackboneError, match="it may hold code, which reading it would run"):
        convert_file(pickled, tmp_path / "model", config=original)
    with pytest.raises(BackboneError, match="it may hold code"):
        check_backbone(config_of(pickled), CPU)
