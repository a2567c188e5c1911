"""A backbone's files, looked at before a run, as tools leave them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    MambaConfig,
    MambaForCausalLM,
)

from albat_core.backbones import check_adapter, check_backbone
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.folder import backbone_folder, model_folder
from albat_core.errors import BackboneError
from albat_core.store import storage
from albat_core.store.stage import Runtime
from tests.toys import save_backbone

CPU = Runtime(device="cpu")


def said_of(folder: Path) -> str:
    with pytest.raises(BackboneError) as caught:
        check_backbone(BackboneConfig(path=str(folder), max_length=64), CPU)
    assert caught.value.where
    assert caught.value.remedy
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_backbone(tmp_path / "model")


def test_a_missing_shard_is_named(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    check_backbone(BackboneConfig(path=str(folder), max_length=64), CPU)
    shards[1].unlink()
    assert f"1 are missing: {shards[1].name}" in said_of(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_told(folder: Path, name: str) -> None:
    (folder / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
    )
    assert f"expected {name}, found a pointer of Git LFS" in said_of(folder)
    assert "git lfs pull" in said_of(folder)


def test_truncated_weights_are_told(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "damaged, truncated" in said_of(folder)


@pytest.mark.parametrize(
    "said",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization": {"group_size": 64, "bits": 4}},
    ],
)
def test_quantized_checkpoints_are_refused(folder: Path, said: dict) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    assert "quantized checkpoint" in said_of(folder)


@pytest.mark.parametrize("decoder", [False, True])
def test_an_encoder_is_no_language_backbone(folder: Path, *, decoder: bool) -> None:
    small = {"vocab_size": 400, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    bert = BertConfig(num_attention_heads=2, is_decoder=decoder, **small)
    BertLMHeadModel(bert).save_pretrained(folder)
    config = BackboneConfig(path=str(folder), max_length=64)
    if decoder:
        check_backbone(config, CPU)
        return
    assert "expected a causal language model, got BertLMHeadModel" in said_of(folder)
    distil = DistilBertConfig(vocab_size=400, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    DistilBertForMaskedLM(distil).save_pretrained(folder)
    assert "got DistilBertForMaskedLM" in said_of(folder)


def test_what_peft_refuses_is_said_in_its_words(folder: Path) -> None:
    mamba = MambaConfig(vocab_size=400, hidden_size=16, num_hidden_layers=1, state_size=4)
    with torch.random.fork_rng():
        MambaForCausalLM(mamba).save_pretrained(folder)
    config = BackboneConfig(path=str(folder), max_length=64)
    with pytest.raises(BackboneError, match="incompatible with Mamba-based models"):
        check_adapter(config, AdapterConfig())
    check_adapter(config, AdapterConfig(target_modules=("in_proj", "x_proj")))


def test_a_checkpoint_in_one_file_is_told_how_to_turn_into_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "dream.safetensors"
    file.write_bytes(b"\0" * 16)
    for path in (file, tmp_path):
        said = said_of(path)
        assert "got a checkpoint in one file" in said
        assert "`albat convert FILE.safetensors FOLDER --config PIPELINE`" in said


def test_a_remote_folder_without_files_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="expected a model folder"):
        model_folder(f"memory://{tmp_path}/nothing")


def test_damage_of_a_fetched_copy_is_mended_from_where_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for file in save_backbone(tmp_path / "backbone").iterdir():
        storage.write_bytes(f"memory://{tmp_path}/{file.name}", file.read_bytes())
    copy = model_folder(f"memory://{tmp_path}")
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
    assert model_folder(f"memory://{tmp_path}") == copy
    assert weights.read_bytes() == whole
    assert "is not what was fetched" in caplog.text
    caplog.clear()
    assert model_folder(f"memory://{tmp_path}") == copy
    assert caplog.text == ""


def test_a_file_of_weights_in_a_model_s_folder_is_told_with_the_folder(folder: Path) -> None:
    (folder / "config.json").touch()
    path = folder / "model.safetensors"
    with pytest.raises(BackboneError, match="a checkpoint in one file of it") as raised:
        backbone_folder(BackboneConfig(path=str(path)))
    assert raised.value.remedy == f"name the folder: {folder}"
