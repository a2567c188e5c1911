"""Losses from the head's hidden states, in parts, against the model's own logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
)

from albat_core.backbones import open_backbone
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.language import likelihood
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.records.examples import Example
from albat_core.store.stage import Runtime
from tests.toys import save_backbone, sentences

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
_SMALL = {"vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
PLAIN = {
    "llama": LlamaConfig(**_SHAPE),
    "gpt2": GPT2Config(**_SMALL, bos_token_id=0),
    "phi": PhiConfig(**_SHAPE),  # its last layer has a bias
}
OTHERS = {
    "cohere": CohereConfig(**_SHAPE, logit_scale=0.25),
    "gemma2": Gemma2Config(**_SHAPE, head_dim=8, final_logit_softcapping=3.0),
    "granite": GraniteConfig(**_SHAPE, logits_scaling=4.0),
}


def saved(folder: Path, description: Any) -> BackboneConfig:
    """Save a tiny model of a family, its logits far from even."""
    save_backbone(folder)  # for its tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(description)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return BackboneConfig(path=str(folder), max_length=64, dtype="float32")


def gradients(backbone: LanguageBackbone, rows: list[Any]) -> list[torch.Tensor]:
    """Gradients of the objective with a penalty, in the adapter's parameters."""
    losses, moved = backbone.losses_with_divergence(rows)
    weights = torch.arange(1, len(rows) + 1)
    objective = (weights * (losses.mean + 0.3 * moved.mean)).sum()
    return list(torch.autograd.grad(objective, list(backbone.adapter_parameters().values())))


def gradients_by_logits(backbone: LanguageBackbone, rows: list[Any]) -> list[torch.Tensor]:
    """The same of the model's own logits, row by row, by torch's autograd alone."""
    objective = torch.zeros(())
    for place, row in enumerate(rows, 1):
        ids, learnt = (torch.tensor(row.inputs[n][None]).long() for n in ("input_ids", "loss_mask"))
        mask = learnt[0, 1:].bool()
        with torch.no_grad(), backbone.adapter_disabled():
            before = backbone._whole(input_ids=ids).logits[0, :-1][mask].log_softmax(dim=-1)
        logits = backbone._whole(input_ids=ids).logits[0, :-1][mask]
        after = logits.log_softmax(dim=-1)
        moved = (before.exp() * (before - after)).sum(dim=-1).mean()
        objective = objective + place * (
            functional.cross_entropy(logits, ids[0, 1:][mask]) + 0.3 * moved
        )
    return list(torch.autograd.grad(objective, list(backbone.adapter_parameters().values())))


@pytest.mark.parametrize("family", [*PLAIN, *OTHERS])
def test_losses_and_gradients_are_those_of_the_logits(
    family: str, tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = saved(tmp_path / family, (PLAIN | OTHERS)[family])
    monkeypatch.setattr(likelihood, "_AT_ONCE", 400 * 7)
    texts = [
        Example(str(n), str(n), "s", " ".join(words), prompt=words[0] if n % 2 else None)
        for n, words in enumerate(
            zip(sentences("plants", 9, 1), sentences("ships", 9, 2), strict=True)
        )
    ]
    with open_backbone(config, runtime) as backbone:
        assert isinstance(backbone, LanguageBackbone)
        rows = backbone.encode(texts)
        model = AutoModelForCausalLM.from_pretrained(config.path).eval()
        found = backbone.losses(rows)
        for row, total in zip(rows, found.total, strict=True):
            ids, learnt = (
                torch.tensor(row.inputs[n][None]).long() for n in ("input_ids", "loss_mask")
            )
            labels = ids.masked_fill(learnt == 0, -100)[0, 1:]
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, :-1]
            expected = functional.cross_entropy(logits, labels, reduction="sum")
            assert float(total) == pytest.approx(float(expected), rel=1e-4)
        assert backbone._head.stands_alone == (family in PLAIN)
        backbone.attach_adapter(AdapterConfig(rank=4), seed=0)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            for parameter in backbone.adapter_parameters().values():
                torch.nn.init.normal_(parameter, std=0.1)
        expected = gradients_by_logits(backbone, rows)
        for mine, whole in zip(gradients(backbone, rows), expected, strict=True):
            assert whole.abs().max() > 1e-3
            torch.testing.assert_close(mine, whole, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scale", [0.3, 3.0], ids=["before it is far", "far"])
def test_rounding_moves_the_gradient_of_the_divergence_little_beside_that_of_the_loss(
    tmp_path: Path, runtime: Runtime, scale: float
) -> None:
    saved(tmp_path / "llama", PLAIN["llama"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    layer = model.lm_head.requires_grad_(requires_grad=False)
    torch.manual_seed(0)
    before = 2 * torch.randn(200, 32)
    after = (before + scale * torch.randn(200, 32)).requires_grad_()
    targets = torch.randint(400, (200,))

    def found(rounds: bool) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=rounds):
            each = likelihood.token_losses(layer, after, targets)
            logit = (after * layer.weight[targets]).sum(dim=-1)
            there = likelihood.tangents(layer, before)
            moved = likelihood.divergence(there, after, each + logit)
        return torch.autograd.grad(moved.sum(), after)[0]

    said, now = (layer(its).log_softmax(dim=-1) for its in (before, after))
    moved = functional.kl_div(now, said, reduction="sum", log_target=True)
    exact = torch.autograd.grad(moved, after)[0]
    torch.testing.assert_close(found(rounds=False), exact, rtol=1e-3, atol=1e-5)
    loss = functional.cross_entropy(layer(after), targets, reduction="sum")
    size = torch.autograd.grad(loss, after)[0].norm()
    assert 0 < (found(rounds=True) - exact).norm() < 0.01 * size


def test_a_head_that_is_adapted_is_used_as_the_model_does(tmp_path: Path, runtime: Runtime) -> None:
    config = saved(tmp_path / "llama", LlamaConfig(**_SHAPE, tie_word_embeddings=False))
    with open_backbone(config, runtime) as backbone:
        assert isinstance(backbone, LanguageBackbone)
        rows = backbone.encode([Example("0", "0", "s", " ".join(sentences("plants", 2, 1)))])
        assert backbone._head.stands_alone
        backbone.attach_adapter(AdapterConfig(rank=4, target_modules=["lm_head"]), seed=0)
        assert not backbone._head.stands_alone
        moved = gradients(backbone, rows)
        assert any(gradient.abs().max() > 0 for gradient in moved)
        backbone.detach_adapter()
        assert backbone._head.stands_alone


def test_no_more_logits_than_a_part_are_alive(
    tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = saved(tmp_path / "llama", PLAIN["llama"])
    monkeypatch.setattr(likelihood, "_AT_ONCE", 400 * 5)
    sizes: list[int] = []
    with open_backbone(config, runtime) as backbone:
        assert isinstance(backbone, LanguageBackbone)
        row = Example("0", "0", "s", "leaf root seed stem bloom. " * 4, prompt="leaf root seed")
        rows = backbone.encode([row] * 3)
        backbone.attach_adapter(AdapterConfig(rank=4), seed=0)
        assert backbone._head.stands_alone
        seen = backbone._head.layer.register_forward_hook(
            lambda _, __, out: sizes.append(out[..., 0].numel())
        )
        backbone.losses(rows).mean.sum().backward()
        seen.remove()
    assert max(sizes) == 5
    assert sum(sizes) == sum(row.loss_units for row in rows) + 1  # and one to learn the width
