"""Rows joined in one sequence: losses and gradients as of each alone, or a refusal by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
)

from albat_core.backbones import check_packing, open_backbone
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.base import Encoded
from albat_core.backbones.batches import length_batches, packed
from albat_core.backbones.language.head import TokenRows
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.backbones.language.packing import refuse_leaking
from albat_core.errors import BackboneError
from albat_core.records.examples import Example
from albat_core.records.mixtures import Mixture
from albat_core.store.stage import Runtime
from albat_core.training.checkpoint import CheckpointFile, TrainingState
from albat_core.training.config import FinetuneConfig
from albat_core.training.trainer import Trainer
from flows.checks import check_file
from tests.core.test_likelihood import saved
from tests.toys import rewrite, sentences, write_run

_SHAPE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
APART = {
    "llama": LlamaConfig(**_SHAPE),
    "gpt2": GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "mistral": MistralConfig(**_SHAPE, sliding_window=8),
    "gemma2": Gemma2Config(**_SHAPE, head_dim=8, sliding_window=8, final_logit_softcapping=3.0),
}
MIXING = {
    "bloom": BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=4),
    "mamba": MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4),
    "lfm2": Lfm2Config(**_SHAPE, layer_types=["conv", "full_attention"]),
}
HIDING = {  # they take positions, of which their masks know nothing
    "falcon": FalconConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
    ),
    "opt": OPTConfig(
        vocab_size=400,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    ),
}


def examples() -> list[Example]:
    """Rows of many lengths, some of them behind a prompt."""
    texts = sentences("plants", 7, 1) + [" ".join(sentences("ships", 2, n)) for n in range(2)]
    prompts = [text.split()[0] if n % 3 == 1 else None for n, text in enumerate(texts)]
    return [
        Example(str(n), str(n), "s", text, prompt=prompt)
        for n, (text, prompt) in enumerate(zip(texts, prompts, strict=True))
    ]


def objective(
    backbone: LanguageBackbone, rows: list[Encoded], joined: list[int] | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Weighted loss with a penalty of rows, and its gradients."""
    losses, moved = backbone.losses_with_divergence(rows, joined=joined)
    weights = torch.arange(1, len(rows) + 1) / len(rows)
    whole = (weights * (losses.mean + 0.3 * moved.mean)).sum()
    assert float(moved.mean.detach().min()) > 0
    parameters = list(backbone.adapter_parameters().values())
    return torch.cat([losses.mean, moved.mean]), list(torch.autograd.grad(whole, parameters))


@pytest.mark.parametrize("family", APART)
@pytest.mark.parametrize("attention", ["sdpa", "flash"])
def test_losses_and_gradients_are_those_of_rows_alone(
    family: str, attention: str, tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = saved(tmp_path / family, APART[family])
    check_packing(config)
    with open_backbone(config, runtime) as backbone:
        assert isinstance(backbone, LanguageBackbone)
        rows = backbone.encode(examples())
        backbone.attach_adapter(AdapterConfig(rank=4), seed=0)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            for parameter in backbone.adapter_parameters().values():
                torch.nn.init.normal_(parameter, std=0.1)
        expected, gradients = objective(backbone, rows, None)
        shapes: list[tuple[int, int]] = []
        backbone._model.get_input_embeddings().register_forward_pre_hook(
            lambda _, given: shapes.append(tuple(given[0].shape))
        )
        assert backbone._in_one_row is False  # an attention that looks at one row alone is no CPU's
        monkeypatch.setattr(backbone, "_in_one_row", attention == "flash")
        found, joint = objective(backbone, rows, [2, 3, 1, 3])
        assert len({shape[0] for shape in shapes[-2:]}) == 1
        assert shapes[-1][0] == (1 if attention == "flash" else 4)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for mine, alone in zip(joint, gradients, strict=True):
            assert alone.abs().max() > 1e-3
            torch.testing.assert_close(mine, alone, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(backbone.losses(rows[::-1]).mean, expected[: len(rows)])


@pytest.mark.parametrize("family", MIXING)
def test_models_whose_tokens_see_other_rows_are_refused_before_the_run(
    family: str, tmp_path: Path
) -> None:
    config = saved(tmp_path / family, MIXING[family])
    with pytest.raises(BackboneError, match="holds the rows of one sequence apart, got ") as raised:
        check_packing(config)
    assert f"{type(MIXING[family]).__name__.removesuffix('Config')}ForCausalLM" in str(raised.value)
    assert "leave packing out" in raised.value.remedy


@pytest.mark.parametrize("family", HIDING)
def test_a_model_that_does_not_show_it_is_refused_when_rows_are_joined(
    family: str, tmp_path: Path, runtime: Runtime
) -> None:
    config = saved(tmp_path / family, HIDING[family])
    with open_backbone(config, runtime) as backbone:
        rows = backbone.encode(examples()[:2])
        said = f"got {type(HIDING[family]).__name__.removesuffix('Config')}ForCausalLM: its logits"
        with pytest.raises(BackboneError, match=said):
            backbone.losses(rows, joined=[2])
        assert backbone.losses(rows, joined=[1, 1]).mean.isfinite().all()


def test_a_mask_that_is_lost_is_found(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved(tmp_path / "llama", APART["llama"]).path)
    refuse_leaking(model.eval(), "there")
    forward = model.model.forward

    def blind(*args: Any, position_ids: Any = None, **others: Any) -> Any:
        """Read tokens as if they were of one row."""
        del position_ids
        return forward(*args, **others)

    model.model.forward = blind
    with pytest.raises(BackboneError, match="got LlamaForCausalLM"):
        refuse_leaking(model, "there")


def test_sequences_are_no_longer_than_the_longest_row_and_have_each_row_once() -> None:
    lengths = [int(n) for n in np.random.default_rng(0).integers(3, 60, 200)]
    sequences = packed(lengths)
    assert sorted(n for one in sequences for n in one) == list(range(200))
    sizes = [sum(lengths[n] for n in one) for one in sequences]
    assert max(sizes) == max(lengths)
    assert len(sequences) * max(lengths) < 1.1 * sum(lengths)
    padded = sum(max(lengths[n] for n in b) * len(b) for b in length_batches(lengths, 10**6))
    assert padded > 1.5 * sum(lengths)
    assert packed([]) == []
    assert packed([7, 7, 7]) == [[0], [1], [2]]


@pytest.mark.slow
def test_sequences_and_losses_are_those_of_trl(tmp_path: Path, runtime: Runtime) -> None:
    trl = pytest.importorskip("trl")
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    config = saved(tmp_path / "llama", APART["llama"])
    with open_backbone(config, runtime) as backbone:
        rows = backbone.encode(examples())
        lengths = [row.length for row in rows]
        sequences = packed(lengths)
        ids = [row.inputs["input_ids"].tolist() for row in rows]
        labels = [
            np.where(row.inputs["loss_mask"], row.inputs["input_ids"], -100).tolist()
            for row in rows
        ]
        given = Dataset.from_dict({"input_ids": ids, "labels": labels})
        theirs = trl.pack_dataset(given, max(lengths), "bfd")
        ours = [[lengths[n] for n in one] for one in sequences]
        assert sorted(map(sorted, theirs["seq_lengths"])) == sorted(map(sorted, ours))
        collate = DataCollatorForLanguageModeling(pad_token_id=2, padding_free=True)
        batch = collate(list(theirs))
        model = AutoModelForCausalLM.from_pretrained(config.path).eval()
        places = {name: batch[name] for name in ("input_ids", "position_ids")}
        with torch.no_grad():
            logits = model(**places, use_cache=False).logits
        expected = functional.cross_entropy(
            logits[0, :-1], batch["labels"][0, 1:], reduction="sum", ignore_index=-100
        )
        order = [rows[n] for one in sequences for n in one]
        with torch.no_grad():
            found = backbone.losses(order, joined=[len(one) for one in sequences])
        assert float(found.total.sum()) == pytest.approx(float(expected), rel=1e-5)
        assert int(found.units.sum()) == int((batch["labels"][0, 1:] != -100).sum())


def trained(
    backbone: LanguageBackbone, config: FinetuneConfig, folder: Path
) -> tuple[TrainingState, list[torch.Tensor]]:
    """Train a new adapter on weighted rows of many lengths, with a penalty; give its weights."""
    texts = [" ".join(sentences("plants", 1 + n % 5 // 4, n)) for n in range(40)]
    rows = [Example(str(n), str(n), "s", text) for n, text in enumerate(texts)]
    mixture = Mixture(rows[:16], rows[16:32], np.arange(1, 17) / 136, 0.5)
    backbone.attach_adapter(config.adapter, seed=0)
    kept = CheckpointFile(str(folder / "state.safetensors"))
    validation = backbone.encode(rows[32:])
    state = Trainer(backbone, mixture, validation, config, 0.3, 0, kept, 1000.0).train("")
    weights = [p.detach().clone() for p in backbone.adapter_parameters().values()]
    backbone.detach_adapter()
    return state, weights


def test_a_training_ends_as_without_packing(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[torch.Size, bool]] = []
    through = TokenRows.through

    def seen(self: TokenRows, model: Any) -> Any:
        shapes.append((self.ids.shape, self.positions is not None))
        return through(self, model)

    monkeypatch.setattr(TokenRows, "through", seen)
    config = FinetuneConfig(steps=8, batch_size=32, evaluate_every=4, warmup=2, adapter={"rank": 4})
    with open_backbone(saved(tmp_path / "llama", APART["llama"]), runtime) as backbone:
        assert isinstance(backbone, LanguageBackbone)
        plain, expected = trained(backbone, config, tmp_path)
        padded = sum(shape.numel() for shape, _ in shapes)
        assert not any(joined for _, joined in shapes)
        shapes.clear()
        packing = config.model_copy(update={"packing": True})
        joint, weights = trained(backbone, packing, tmp_path)
    assert sum(joined for _, joined in shapes) == config.steps
    assert sum(shape.numel() for shape, _ in shapes) < 0.9 * padded
    assert joint.passes == plain.passes
    for mine, theirs in zip(joint.history, plain.history, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    for mine, theirs in zip(weights, expected, strict=True):
        assert (mine - theirs).norm() < 1e-3 * theirs.norm()


def test_a_config_names_the_section(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    assert check_file(str(path)) == []
    saved(tmp_path / "backbone", MIXING["bloom"])
    rewrite(path, {"finetune": {"packing": True}})
    [error] = check_file(str(path))
    assert error.where.startswith("finetune.packing: ")
    assert "BloomForCausalLM" in error.message


def test_the_key_is_as_before_where_rows_are_padded() -> None:
    assert "packing" not in FinetuneConfig().settings().named
    assert FinetuneConfig(packing=True).settings().named["packing"] is True
