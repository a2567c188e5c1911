"""Noise schedules of diffusion models: what is added, what is predicted, how errors are weighed.

Levels are quantiles u in (0, 1) of the noise levels that training draws: u = 0 is nearly clean,
u = 1 nearly all noise. Evenly spread u are a stratified sample of the training objective.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from albat_core.backbones.base import Losses
from albat_core.errors import BackboneError

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class Noised:
    """Latents with noise, and what the denoiser is to say of them.

    Args:
        latents: (n, c, h, w), noise added.
        target: (n, c, h, w), what is predicted.
        timestep: (n,), as the denoiser takes it.
        weight: (n,), of squared errors.
    """

    latents: torch.Tensor
    target: torch.Tensor
    timestep: torch.Tensor
    weight: torch.Tensor

    def take(self, which: torch.Tensor) -> "Noised":
        """Return those of some examples, (n,) bool."""
        parts = (self.latents, self.target, self.timestep, self.weight)
        return Noised(*(part[which.to(part.device)] for part in parts))

    def difference(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the weighted mean squared difference of two (n, c, h, w), (n,)."""
        return (second - first).square().flatten(1).mean(dim=1) * self.weight


def by_level(columns: Sequence[torch.Tensor], which: torch.Tensor | None = None) -> Losses:
    """Return losses with a column for each noise level.

    Args:
        columns: (n,) of all examples, or of some.
        which: the some, (m,) bool; the losses of others are 0.
    """
    each = torch.stack(list(columns), dim=1)
    if which is not None:
        place = which[:, None].expand(-1, each.shape[1])
        each = torch.zeros_like(place, dtype=each.dtype).masked_scatter(place, each)
    return Losses(each=each, mask=torch.ones_like(each, dtype=torch.bool))


class Schedule(Protocol):
    """A noise schedule."""

    def noise(self, latents: torch.Tensor, noise: torch.Tensor, u: torch.Tensor) -> Noised:
        """Add noise (n, c, h, w) to latents (n, c, h, w) at levels u (n,) in (0, 1)."""

    def weight(self, u: torch.Tensor) -> torch.Tensor:
        """Return the factor (n,) of the squared error at levels u (n,)."""


class DiscreteSchedule:
    """x_t = sqrt(a_t) x + sqrt(1 - a_t) e at the scheduler's own steps (DDPM, arXiv 2006.11239).

    Args:
        alphas_cumprod: (steps,) a_t, falling.
        prediction: ``epsilon``: e; ``v_prediction``: sqrt(a) e - sqrt(1 - a) x
            (arXiv 2202.00512); ``sample``: x.
        snr_gamma: weigh by min-SNR (arXiv 2303.09556): min(snr, gamma) / snr for ``epsilon``,
            / (snr + 1) for ``v_prediction``, min(snr, gamma) for ``sample``; None: 1.
    """

    def __init__(
        self, alphas_cumprod: torch.Tensor, prediction: Prediction, snr_gamma: float | None
    ) -> None:
        self._alphas = alphas_cumprod.to(torch.float32)
        self._prediction = prediction
        self._gamma = snr_gamma

    def _step(self, u: torch.Tensor) -> torch.Tensor:
        steps = len(self._alphas)
        return (u * steps).long().clamp(0, steps - 1)

    def noise(self, latents: torch.Tensor, noise: torch.Tensor, u: torch.Tensor) -> Noised:
        """See ``Schedule``."""
        step = self._step(u.to(latents.device))
        a = self._alphas.to(latents.device)[step].view(-1, 1, 1, 1)
        signal, spread = a.sqrt(), (1 - a).sqrt()
        target = {
            "epsilon": noise,
            "v_prediction": signal * noise - spread * latents,
            "sample": latents,
        }[self._prediction]
        weight = self.weight(u).to(latents.device)
        return Noised(signal * latents + spread * noise, target, step, weight)

    def weight(self, u: torch.Tensor) -> torch.Tensor:
        """See ``Schedule``."""
        if self._gamma is None:
            return torch.ones_like(u)
        a = self._alphas.to(u.device)[self._step(u)]
        snr = a / (1 - a)
        capped = snr.clamp(max=self._gamma)
        if self._prediction == "sample":
            return capped
        return capped / (snr + 1 if self._prediction == "v_prediction" else snr)


class FlowSchedule:
    """x_s = (1 - s) x + s e, predicting e - x (rectified flow, arXiv 2209.03003).

    Levels are logit-normal, as Stable Diffusion 3 and Flux are trained (arXiv 2403.03206), then
    shifted: s' = k s / (1 + (k - 1) s).

    Args:
        shift: k of the scheduler; 1 where it shifts by picture size at sampling only.
        steps: what a level of 1 is as a timestep.
    """

    def __init__(self, shift: float, steps: int) -> None:
        self._shift = shift
        self._steps = steps

    def noise(self, latents: torch.Tensor, noise: torch.Tensor, u: torch.Tensor) -> Noised:
        """See ``Schedule``."""
        level = torch.special.expit(torch.special.ndtri(u.double())).float().to(latents.device)
        level = self._shift * level / (1 + (self._shift - 1) * level)
        s = level.view(-1, 1, 1, 1)
        return Noised(
            (1 - s) * latents + s * noise,
            noise - latents,
            level * self._steps,
            self.weight(u).to(latents.device),
        )

    def weight(self, u: torch.Tensor) -> torch.Tensor:
        """Return 1: the levels that are drawn are the weighting."""
        return torch.ones_like(u)


def open_schedule(scheduler: Any, snr_gamma: float | None, where: str) -> Schedule:
    """Return the training schedule of a diffusers scheduler.

    Raises:
        BackboneError: its kind is not known, or min-SNR is asked of flow matching.
    """
    config = scheduler.config
    if type(scheduler).__name__.startswith("FlowMatch"):
        if snr_gamma is not None:
            raise BackboneError(
                "min-SNR weights errors of noise prediction, this backbone matches flows",
                where=where,
                remedy="drop backbone.diffusion.snr_gamma",
            )
        shift = 1.0 if config.get("use_dynamic_shifting") else float(config.get("shift", 1.0))
        return FlowSchedule(shift, int(config.num_train_timesteps))
    alphas = getattr(scheduler, "alphas_cumprod", None)
    prediction = config.get("prediction_type", "epsilon")
    if alphas is None or prediction not in ("epsilon", "v_prediction", "sample"):
        raise BackboneError(
            f"expected a scheduler with known noise levels, got {type(scheduler).__name__} that "
            f"predicts {prediction}",
            where=where,
            remedy="use a pipeline whose scheduler is DDPM, DDIM, PNDM, Euler or FlowMatchEuler",
        )
    return DiscreteSchedule(alphas, prediction, snr_gamma)


def stratified_levels(count: int) -> torch.Tensor:
    """Return the middles of ``count`` equal parts of (0, 1), (count,) float32."""
    return (torch.arange(count, dtype=torch.float32) + 0.5) / count


def drawn_levels(count: int) -> torch.Tensor:
    """Draw one level from each of ``count`` equal parts of (0, 1), in random order, (count,)."""
    return ((torch.randperm(count) + torch.rand(count)) / count).clamp(1e-5, 1 - 1e-5)
