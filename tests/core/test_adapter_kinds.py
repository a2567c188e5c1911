"""Kinds of adapters beside plain LoRA: as peft has them, and where they do not fit, refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from albat_core.backbones import check_adapter, open_backbone
from albat_core.backbones.adapters import ADAPTERS, BY_LAYER, AdapterConfig
from albat_core.backbones.base import FixedNoise
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.errors import BackboneError
from albat_core.measures.gradients import Projection, example_gradients
from albat_core.records.examples import Example
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from albat_core.training import trainer
from tests.core.trainings import STEPS, Training
from tests.pipelines import save_pipeline

ROW = Example("0", "0", "s", "leaf root seed stem bloom.")


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_peft_s_own(
    kind: str, backbone_config: BackboneConfig, runtime: Runtime, tmp_path: Path
) -> None:
    with open_backbone(backbone_config, runtime) as backbone:
        assert isinstance(backbone, LanguageBackbone)
        backbone.attach_adapter(AdapterConfig(kind=kind, rank=4), seed=0)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            for name, parameter in backbone.adapter_parameters().items():
                if "magnitude" not in name:
                    torch.nn.init.normal_(parameter, std=0.1)
        found = backbone.losses(backbone.encode([ROW])).mean.detach()
        backbone.save_adapter(tmp_path / "adapter")
        ids = torch.tensor(backbone.encode([ROW])[0].inputs["input_ids"][None]).long()
    plain = AutoModelForCausalLM.from_pretrained(backbone_config.path)
    loaded = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    its = loaded.peft_config["default"]
    assert (its.use_rslora, its.use_dora) == (kind == "rslora", kind == "dora")
    with torch.no_grad():
        expected = loaded(input_ids=ids, labels=ids).loss
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_gaussian_start_is_peft_s_with_no_effect_and_of_the_seed(
    kind: str, backbone_config: BackboneConfig, runtime: Runtime, tmp_path: Path
) -> None:
    with open_backbone(backbone_config, runtime) as backbone:
        encoded = backbone.encode([ROW])
        before = float(backbone.losses(encoded).mean.detach())
        drawn = []
        for seed, init in ((0, "gaussian"), (0, "gaussian"), (1, "gaussian")):
            backbone.attach_adapter(AdapterConfig(kind=kind, rank=8, init=init), seed)
            assert float(backbone.losses(encoded).mean.detach()) == pytest.approx(before, rel=1e-6)
            here = backbone.adapter_parameters()
            drawn.append(torch.cat([p.detach().flatten() for n, p in here.items() if "_A" in n]))
            if seed == 1:
                backbone.save_adapter(tmp_path / "adapter")
            backbone.detach_adapter()
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    plain = AutoModelForCausalLM.from_pretrained(backbone_config.path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=8, init_lora_weights="gaussian", target_modules="all-linear")
        theirs = get_peft_model(plain, config).named_parameters()
    expected = torch.cat([p.detach().flatten() for n, p in theirs if "_A" in n])
    assert torch.equal(drawn[0], expected)
    assert float(drawn[0].std()) == pytest.approx(1 / 8, rel=0.05)
    plain = AutoModelForCausalLM.from_pretrained(backbone_config.path)
    assert PeftModel.from_pretrained(plain, tmp_path / "adapter") is not None


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "loftq", "corda"])
def test_a_start_that_changes_the_backbone_is_refused_with_the_reason(init: str) -> None:
    with pytest.raises(ValidationError, match=rf"{init} begins by changing the backbone's own"):
        AdapterConfig(init=init)
    with pytest.raises(ValidationError, match="'default' or 'gaussian'"):
        AdapterConfig(init="kaiming")


def test_gradients_of_examples_are_those_of_autograd(
    backbone_config: BackboneConfig, runtime: Runtime
) -> None:
    for kind in BY_LAYER:
        with open_backbone(backbone_config, runtime) as backbone:
            backbone.attach_adapter(AdapterConfig(kind=kind, rank=4), seed=0)
            encoded = backbone.encode([ROW])
            (found,) = example_gradients(backbone, encoded, 512, FixedNoise(1), Projection(64))
            parameters = backbone.adapter_parameters()
            loss = backbone.losses(encoded).mean.sum()
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            sketch, projection = torch.zeros(1, 64), Projection(64)
            for name, gradient in zip(parameters, gradients, strict=True):
                projection.add(sketch, name, gradient[None])
            assert sketch.abs().max() > 1e-4
            torch.testing.assert_close(torch.tensor(found), sketch[0], rtol=1e-3, atol=1e-6)


def test_a_dora_is_trained_beside_a_surrogate_that_is_none(run_config: RunConfig) -> None:
    changed = {
        "finetune": run_config.finetune.model_copy(
            update={"adapter": AdapterConfig(kind="dora", rank=4)}
        ),
        "mixture": run_config.mixture.model_copy(update={"alpha": "auto"}),
    }
    run = RunConfig.model_validate(run_config.model_copy(update=changed).model_dump())
    chain = Chain(run)
    folder = ArtifactStore(run.runtime.root).folder(chain.arms.adapter("albat"))
    plain = AutoModelForCausalLM.from_pretrained(run.backbone.path)
    names = [n for n, _ in PeftModel.from_pretrained(plain, folder).named_parameters()]
    assert any("lora_magnitude_vector" in name for name in names)


def test_where_gradients_are_not_known_it_is_refused_by_name(run_config: RunConfig) -> None:
    surrogate = run_config.surrogate.model_copy(update={"adapter": AdapterConfig(kind="dora")})
    given = run_config.model_copy(update={"surrogate": surrogate}).model_dump()
    for mixture, scorer, fits in (
        ("auto", "nearest", False),
        (0.5, "gradient", False),
        (0.5, "matching", False),
        (0.5, "advantage", True),
    ):
        asked = given | {"mixture": {"alpha": mixture}, "scoring": {"scorer": scorer}}
        if fits:
            RunConfig.model_validate(asked)
            continue
        with pytest.raises(ValidationError, match=r"adapter dora: set surrogate\.adapter\.kind"):
            RunConfig.model_validate(asked)


def test_pictures_take_what_their_programs_load(tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path / "pipeline")
    config = BackboneConfig(kind="diffusion", path=str(pipeline))
    check_adapter(config, AdapterConfig(kind="rslora", rank=4))
    with pytest.raises(BackboneError, match=r"programs for pictures load, got .*dora"):
        check_adapter(config, AdapterConfig(kind="dora", rank=4))


def test_lora_plus_has_the_groups_of_peft(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[dict]] = []
    real = torch.optim.AdamW

    def noted(groups: list[dict], **more: float) -> torch.optim.Optimizer:
        made.append(groups)
        return real(groups, **more)

    monkeypatch.setattr(trainer.torch.optim, "AdamW", noted)
    config = STEPS.model_copy(update={"lora_plus": 16.0})
    rates: list[tuple[float, float]] = []
    step = real.step
    monkeypatch.setattr(
        real,
        "step",
        lambda self, *a: rates.append(tuple(g["lr"] for g in self.param_groups)) or step(self, *a),
    )
    training.run(config)
    low, high = made[0]
    assert all(b == pytest.approx(16 * a) for a, b in rates)
    with open_backbone(training.backbone, training.runtime) as backbone:
        assert isinstance(backbone, LanguageBackbone)
        backbone.attach_adapter(config.adapter, 0)
        theirs = create_loraplus_optimizer(
            backbone._adapted, real, lr=1.0, loraplus_lr_ratio=16.0
        ).param_groups
    by_rate = {g["lr"]: len(g["params"]) for g in theirs if g["params"]}
    assert by_rate == {1.0: len(low["params"]), 16.0: len(high["params"])}


def test_a_bare_name_of_a_module_is_a_list_of_one() -> None:
    def taken(value: Any) -> Any:
        return AdapterConfig(target_modules=value).target_modules

    assert taken("q_proj") == ("q_proj",)
    assert [taken(value) for value in ("auto", "all-linear", ".*_proj")] == [
        "auto",
        "all-linear",
        ".*_proj",
    ]
