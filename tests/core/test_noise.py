"""Noise schedules agree with those of diffusers."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr

from albat_core.backbones.diffusion.noise import (
    DiscreteSchedule,
    drawn_levels,
    open_schedule,
    stratified_levels,
)
from albat_core.errors import BackboneError

GAMMA = 5.0


def ddpm(prediction: str = "epsilon") -> DDPMScheduler:
    return DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction)


def latents() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(6, 4, 3, 5, generator=generator) for _ in range(2))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noise_and_target_are_the_scheduler_s(prediction: str) -> None:
    scheduler = ddpm(prediction)
    clean, noise = latents()
    u = stratified_levels(6)
    found = open_schedule(scheduler, None, "here").noise(clean, noise, u)
    steps = torch.tensor([83, 250, 416, 583, 750, 916])
    assert found.timestep.tolist() == steps.tolist()
    assert torch.allclose(found.latents, scheduler.add_noise(clean, noise, steps), atol=1e-6)
    target = {
        "epsilon": noise,
        "v_prediction": scheduler.get_velocity(clean, noise, steps),
        "sample": clean,
    }[prediction]
    assert torch.allclose(found.target, target, atol=1e-6)


def test_weights_are_one_unless_min_snr_is_asked_for() -> None:
    assert open_schedule(ddpm(), None, "").weight(stratified_levels(9)).tolist() == [1.0] * 9


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_diffusers_training_scripts(prediction: str) -> None:
    scheduler = ddpm(prediction)
    u = stratified_levels(50)
    snr = compute_snr(scheduler, (u * 1000).long())
    base = torch.minimum(snr, torch.full_like(snr, GAMMA))
    expected = base / (snr + 1 if prediction == "v_prediction" else snr)
    found = open_schedule(scheduler, GAMMA, "").weight(u)
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.max() > 3 * found.min()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_levels_are_the_quantiles_of_what_training_draws(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = open_schedule(scheduler, None, "")
    u = stratified_levels(2001)
    clean, noise = torch.zeros(2001, 1, 1, 1), torch.ones(2001, 1, 1, 1)
    found = schedule.noise(clean, noise, u)
    level = found.latents.flatten()  # (1 - s) * 0 + s * 1
    assert torch.allclose(found.timestep, level * 1000, atol=1e-3)
    assert torch.allclose(found.target, torch.ones_like(found.target))
    density = compute_density_for_timestep_sampling(
        "logit_normal", 200_000, 0.0, 1.0, generator=torch.Generator().manual_seed(1)
    )
    drawn = scheduler.sigmas[(density * 1000).long()]
    for share in (0.1, 0.5, 0.9):
        expected = torch.quantile(drawn, share)
        assert torch.quantile(level, share) == pytest.approx(float(expected), abs=6e-3)


def test_a_shift_by_picture_size_plays_no_part_in_training() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    found = open_schedule(scheduler, None, "").noise(
        torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.tensor([0.5])
    )
    assert float(found.latents) == pytest.approx(0.5, abs=1e-6)


def test_min_snr_is_refused_for_flows() -> None:
    with pytest.raises(BackboneError, match="matches flows"):
        open_schedule(FlowMatchEulerDiscreteScheduler(), GAMMA, "here")


def test_an_unknown_prediction_is_refused() -> None:
    scheduler = LCMScheduler(prediction_type="epsilon")
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(BackboneError, match="predicts flow"):
        open_schedule(scheduler, None, "here")


def test_drawn_levels_fill_every_part_once() -> None:
    torch.manual_seed(3)
    found = drawn_levels(32)
    assert sorted((found * 32).long().tolist()) == list(range(32))
    assert found.tolist() != sorted(found.tolist())


def test_levels_reach_both_ends_of_the_schedule() -> None:
    schedule = DiscreteSchedule(torch.linspace(0.99, 0.01, 10), "epsilon", None)
    clean, noise = torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    found = schedule.noise(clean, noise, torch.tensor([0.0, 0.99999]))
    assert found.timestep.tolist() == [0, 9]
    assert found.latents.flatten().tolist() == pytest.approx([0.99**0.5, 0.01**0.5])
