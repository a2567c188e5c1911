"""Choice of attention: handed to transformers, part of keys, and refused where it cannot be."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPTJConfig

from albat_core.backbones import backbone_identity, check_backbone, input_fingerprint, open_backbone
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.errors import AlbatError, BackboneError, MissingDependencyError
from albat_core.records.examples import Example
from albat_core.store.stage import Runtime
from flows.checks import check_file
from tests.core.test_likelihood import saved
from tests.toys import rewrite, save_backbone, sentences, write_run

ROWS = [Example(str(n), str(n), "s", text) for n, text in enumerate(sentences("ships", 5, 0))]
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def config(tmp_path: Path) -> BackboneConfig:
    shape = GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    return saved(tmp_path / "gpt2", shape)


def by(config: BackboneConfig, attention: str) -> BackboneConfig:
    return config.model_copy(update={"attention": attention})


def test_losses_are_the_same_by_each_and_rows_are_joined_by_each(
    config: BackboneConfig, runtime: Runtime
) -> None:
    found = {}
    for name in ("eager", "sdpa"):
        with open_backbone(by(config, name), runtime) as backbone, torch.no_grad():
            assert isinstance(backbone, LanguageBackbone)
            assert backbone._model.config._attn_implementation == name
            rows = backbone.encode(ROWS)
            found[name] = backbone.losses(rows).mean
            joined = backbone.losses(rows, joined=[2, 3]).mean
            torch.testing.assert_close(joined, found[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["eager"], found["sdpa"], rtol=1e-4, atol=1e-5)


def test_it_is_part_of_keys_where_it_is_chosen(config: BackboneConfig, runtime: Runtime) -> None:
    usual, eager = (backbone_identity(by(config, name), runtime) for name in ("auto", "eager"))
    assert "attention" not in usual
    assert eager == usual | {"attention": "eager"}
    assert input_fingerprint(by(config, "eager")) == input_fingerprint(config)


def refused(config: BackboneConfig, kind: type[AlbatError], said: str) -> None:
    with pytest.raises(kind, match=said) as raised:
        check_backbone(config, Runtime(device="cpu"))
    assert raised.value.where == "backbone.attention"
    assert raised.value.remedy


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_what_is_not_installed_is_named(config: BackboneConfig) -> None:
    refused(by(config, "flash_attention_2"), MissingDependencyError, "needs flash-attn")


@NO_GPU
def test_what_takes_a_gpu_is_named(tmp_path: Path) -> None:
    config = BackboneConfig(path=str(save_backbone(tmp_path / "llama")), max_length=64)
    refused(by(config, "flex_attention"), BackboneError, "expected a GPU to compute flex_attention")


def test_a_model_that_has_it_not_is_named(tmp_path: Path) -> None:
    shape = GPTJConfig(
        vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=128, rotary_dim=4
    )
    config = saved(tmp_path / "gptj", shape)
    check_backbone(by(config, "eager"), Runtime(device="cpu"))
    refused(by(config, "sdpa"), BackboneError, "it does not that of GPTJForCausalLM")


@NO_GPU
def test_a_check_names_it_before_the_run(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    backbone = {"path": "backbone", "max_length": 64, "attention": "flex_attention"}
    [error] = check_file(str(rewrite(path, {"backbone": backbone})))
    assert error.where == "backbone.attention"
    picture = BackboneConfig(path=str(tmp_path), kind="diffusion", attention="sdpa")
    with pytest.raises(BackboneError, match="got a pipeline"):
        check_backbone(picture, Runtime(device="cpu"))
