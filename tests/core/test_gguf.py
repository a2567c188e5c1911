"""GGUF files as backbones: the same logits, and the same tokens."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize
from transformers import AutoModelForCausalLM, AutoTokenizer

from albat_core.backbones import check_backbone, open_backbone
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.language.gguf import convert_gguf
from albat_core.errors import BackboneError, ConfigError
from albat_core.records.examples import Example
from albat_core.store.stage import Runtime
from tests.toys import save_backbone

HEADS = 4
NAMES = {  # of llama.cpp
    "embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, file: Path, kept: GGMLQuantizationType) -> None:
    """Write a saved Llama as llama.cpp does, its matrices quantized."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    described, tokenizer = model.config, AutoTokenizer.from_pretrained(folder)
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(described.num_hidden_layers)
    writer.add_context_length(described.max_position_embeddings)
    writer.add_embedding_length(described.hidden_size)
    writer.add_feed_forward_length(described.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(described.rms_norm_eps)
    writer.add_rope_freq_base(described.rope_parameters["rope_theta"])
    writer.add_vocab_size(described.vocab_size)
    words = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = [tokenizer.convert_ids_to_tokens(n) for n in range(len(tokenizer))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    special = set(tokenizer.all_special_tokens)
    writer.add_token_types(
        [TokenType.CONTROL if t in special else TokenType.NORMAL for t in tokens]
    )
    writer.add_token_merges([" ".join(pair) for pair in words["merges"]])
    writer.add_add_bos_token(True)
    writer.add_bos_token_id(described.bos_token_id)
    writer.add_eos_token_id(described.eos_token_id)
    writer.add_pad_token_id(described.pad_token_id)
    for name, values in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        numbers = values.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # rotated pairs stand side by side
            shape = numbers.shape
            numbers = numbers.reshape(HEADS, 2, -1, shape[1]).swapaxes(1, 2).reshape(shape)
        place = name.split(".layers.")[1].split(".")[0] if ".layers." in name else None
        told = next(new for old, new in NAMES.items() if f"{old}." in name)
        full = f"blk.{place}.{told}.weight" if place else f"{told}.weight"
        if numbers.ndim == 2:
            raw = quantize(np.ascontiguousarray(numbers), kept)
            writer.add_tensor(full, raw, raw_dtype=kept)
        else:
            writer.add_tensor(full, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("original") / "model", width=32)


@pytest.mark.parametrize(("kept", "off"), [("F32", 1e-5), ("Q8_0", 0.02)])
def test_a_converted_file_is_the_model_it_was_made_from(
    original: Path, tmp_path: Path, runtime: Runtime, kept: str, off: float
) -> None:
    file, folder = tmp_path / "model.gguf", tmp_path / "made" / "model"
    write_gguf(original, file, GGMLQuantizationType[kept])
    found = convert_gguf(file, folder)
    models = [AutoModelForCausalLM.from_pretrained(place).eval() for place in (original, folder)]
    assert found.parameters == sum(p.numel() for p in models[0].parameters())
    assert found.types[kept] >= 15
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected, logits = (model(input_ids=ids).logits for model in models)
    assert float((logits - expected).norm() / expected.norm()) < off
    tokenizers = [AutoTokenizer.from_pretrained(place) for place in (original, folder)]
    texts = ["leaf root seed", "Stem, bloom.\nSun 12"]
    assert tokenizers[0](texts)["input_ids"] == tokenizers[1](texts)["input_ids"]
    config = BackboneConfig(path=str(folder), max_length=64)
    check_backbone(config, runtime)
    with open_backbone(config, runtime) as backbone:
        encoded = backbone.encode([Example("0", "0", "s", "leaf root seed stem.")])
        assert backbone.losses(encoded).mean.isfinite().all()
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]


def test_what_cannot_be_converted_is_told(original: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(BackboneError, match="expected a GGUF file that transformers can read"):
        convert_gguf(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(BackboneError, match="expected a file, found none"):
        convert_gguf(tmp_path / "none.gguf", tmp_path / "out")
    with pytest.raises(ConfigError, match="it is there already"):
        convert_gguf(broken, original)


def test_a_file_that_is_named_as_backbone_is_told_how_to_become_one(
    tmp_path: Path, runtime: Runtime
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(BackboneError, match="got a GGUF file") as raised:
        check_backbone(BackboneConfig(path=str(tmp_path / "model.gguf")), runtime)
    assert "albat convert" in raised.value.remedy
