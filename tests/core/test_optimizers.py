"""Optimizers beside AdamW, and schedules: what they do, and that a training goes on with them."""

import itertools
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from albat_core.errors import Interrupted, MissingDependencyError
from albat_core.progress import reporting_to
from albat_core.records.adapters import rate_found
from albat_core.runs.config import RunConfig
from albat_core.training import config as settings
from albat_core.training.checkpoint import CheckpointFile, TrainingState
from albat_core.training.config import (
    FinetuneConfig,
    check_optimizer,
    continued,
    learning_rate,
)
from albat_core.training.optimizers import (
    open_optimizer,
    optimizer_state,
    restore_optimizer,
)
from albat_core.training.optimizers import rate_found as rate_found_by
from tests.core.trainings import STEPS, StopsAt, Training, same

OTHERS = ("adamw_8bit", "adafactor", "prodigy")
FEW = 5.0  # of Prodigy's factor, so that it finds a rate in twenty steps
FALLING = ("cosine", "linear", "cosine_with_restarts", "polynomial")


def factors() -> dict[str, torch.nn.Parameter]:
    """A LoRA pair large enough for 8 bits, and a vector that has no gradient."""
    generator = torch.Generator().manual_seed(0)
    down = 0.1 * torch.randn(128, 64, generator=generator)
    return {
        "w.lora_A.weight": torch.nn.Parameter(down),
        "w.lora_B.weight": torch.nn.Parameter(torch.zeros(64, 128)),
        "still": torch.nn.Parameter(torch.ones(5)),
    }


def advance(
    its: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: range
) -> list[float]:
    """Learn to turn vectors round; return the losses."""
    losses = []
    for step in steps:
        read = torch.randn(16, 64, generator=torch.Generator().manual_seed(step % 4))
        written = read @ its["w.lora_A.weight"].T @ its["w.lora_B.weight"].T
        loss = (written - read.flip(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", ["adamw", *OTHERS])
def test_an_optimizer_goes_on_from_a_checkpoint_bit_for_bit(name: str, tmp_path: Path) -> None:
    rate = 1.0 if name == "prodigy" else 0.01
    config = FinetuneConfig(optimizer=name, learning_rate=rate, weight_decay=0.01)
    whole, begun = factors(), factors()
    losses = advance(whole, open_optimizer(config, whole), range(16))
    assert sum(losses[-4:]) < sum(losses[:4])  # of the same vectors
    stopped = open_optimizer(config, begun)
    advance(begun, stopped, range(7))
    tensors, rest = optimizer_state(stopped)
    if name == "adamw_8bit":
        assert tensors["0/state1"].dtype == tensors["1/state2"].dtype == torch.uint8
    file = CheckpointFile(str(tmp_path / "state.safetensors"))
    file.write(TrainingState(step=7, optimizer=tensors, optimizer_rest=rest))
    read = file.read()
    assert read is not None
    later = {n: torch.nn.Parameter(p.detach().clone()) for n, p in begun.items()}
    resumed = open_optimizer(config, later)
    restore_optimizer(resumed, read.optimizer, read.optimizer_rest)
    advance(later, resumed, range(7, 16))
    assert same(dict(whole), dict(later))
    anew = {n: torch.nn.Parameter(p.detach().clone()) for n, p in begun.items()}
    advance(anew, open_optimizer(config, anew), range(7, 16))
    assert not same(dict(whole), dict(anew))


@pytest.mark.parametrize("name", OTHERS)
def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(
    training: Training, another: Training, name: str
) -> None:
    rate = FEW if name == "prodigy" else 0.02
    config = STEPS.model_copy(update={"optimizer": name, "learning_rate": rate})
    with reporting_to(StopsAt(13)), pytest.raises(Interrupted):
        training.run(config)
    resumed, whole = training.run(config), another.run(config)
    assert resumed == whole
    assert same(training.weights(resumed), another.weights(whole))
    facts = another.store.manifest(whole).facts
    assert training.store.manifest(resumed).facts["history"] == facts["history"]
    assert facts["validation_loss"] < facts["history"][0]["validation"]
    assert not same(another.weights(whole), another.weights(another.run()))


def test_prodigy_goes_on_as_adamw_at_the_rate_that_it_found(training: Training) -> None:
    config = STEPS.model_copy(update={"optimizer": "prodigy", "learning_rate": FEW})
    ref = training.run(config)
    found = rate_found(training.store, ref)
    assert found is not None
    assert found > 1e-6  # where it begins
    assert rate_found(training.store, training.run()) is None
    later = continued(config, 10, 0.5, found)
    assert later.optimizer == "adamw"
    assert later.learning_rate == learning_rate(config, 10) * found


def test_a_step_of_prodigy_is_adamw_s_at_the_rate_found() -> None:
    config = FinetuneConfig(optimizer="prodigy", learning_rate=1.0)
    its = factors()
    prodigy = open_optimizer(config, its)
    advance(its, prodigy, range(200))
    found = rate_found_by(prodigy)
    assert found > 1e-5  # it begins at 1e-6
    others = {n: torch.nn.Parameter(p.detach().clone()) for n, p in its.items()}
    adamw = open_optimizer(FinetuneConfig(learning_rate=found), others)
    for name in list(its)[:2]:
        moments = prodigy.state[its[name]]  # of gradients times the rate found
        adamw.state[others[name]] = {
            "step": torch.tensor(float(moments["step"])),
            "exp_avg": moments["exp_avg"] / found,
            "exp_avg_sq": moments["exp_avg_sq"] / found**2,
        }
    before = {n: p.detach().clone() for n, p in its.items()}
    advance(its, prodigy, range(200, 201))
    advance(others, adamw, range(200, 201))
    for name, start in before.items():
        one, other = (p[name].detach() - start for p in (its, others))
        assert torch.allclose(one, other, rtol=0.02, atol=1e-3 * float(other.abs().max()))
    assert not torch.equal(before["w.lora_B.weight"], its["w.lora_B.weight"])


@pytest.mark.parametrize("schedule", FALLING)
def test_rates_fall_to_a_tenth_with_the_shape_that_is_named(schedule: str) -> None:
    config = FinetuneConfig(
        steps=110, warmup=10, learning_rate=2.0, schedule=schedule, cycles=2, power=3.0
    )
    rates = [learning_rate(config, step) / 2 for step in range(111)]
    assert rates[:11] == pytest.approx([*(n / 10 for n in range(1, 11)), 1.0])
    assert rates[-1] == pytest.approx(0.1)
    middle = {"linear": 0.55, "polynomial": 0.1 + 0.9 / 8, "cosine_with_restarts": 1.0}
    assert rates[60] == pytest.approx(middle.get(schedule, 0.55))
    falls = [a >= b for a, b in itertools.pairwise(rates[10:])]
    assert falls.count(False) == (1 if schedule == "cosine_with_restarts" else 0)


@pytest.mark.parametrize("schedule", FALLING)
def test_what_goes_on_goes_on_at_a_rate_that_still_learns(schedule: str) -> None:
    config = FinetuneConfig(steps=400, schedule=schedule, optimizer="adafactor")
    for reached in (200, 400, 500):
        later = continued(config, reached, 0.1)
        assert later.optimizer == "adafactor"
        assert later.learning_rate == learning_rate(config, min(reached, 400)) >= 2e-4
        assert learning_rate(later, later.steps - 1) == later.learning_rate


@pytest.mark.parametrize("name", OTHERS)
def test_moments_for_the_scorer_of_gradients_are_asked_of_adamw_alone(
    name: str, run_config: RunConfig
) -> None:
    with pytest.raises(ValidationError, match=rf"the optimizer {name} keeps none of Adam's"):
        FinetuneConfig(optimizer=name, checkpoints=2)
    wanted = run_config.model_dump() | {"scoring": {"scorer": "gradient"}}
    wanted["surrogate"]["optimizer"] = name
    with pytest.raises(ValidationError, match=r"surrogate\.optimizer to adamw"):
        RunConfig.model_validate(wanted)
    wanted["surrogate"]["optimizer"] = "adamw"
    wanted["finetune"]["optimizer"] = name
    assert RunConfig.model_validate(wanted).finetune.optimizer == name


def test_prodigy_has_one_rate_for_all() -> None:
    with pytest.raises(ValidationError, match="leave lora_plus out"):
        FinetuneConfig(optimizer="prodigy", lora_plus=16)


def test_a_missing_library_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda _: None)
    check_optimizer(FinetuneConfig(optimizer="adafactor"), "finetune")
    with pytest.raises(MissingDependencyError, match="prodigyopt") as caught:
        check_optimizer(FinetuneConfig(optimizer="prodigy"), "finetune")
    assert caught.value.where == "finetune.optimizer: prodigy"
    assert "albat[optimizers]" in caught.value.remedy


def test_optimizers_and_schedules_at_their_defaults_change_no_key() -> None:
    assert FinetuneConfig().settings().named == {}
