"""Schedules: what share of the highest learning rate a step has."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

ScheduleName = Literal["cosine", "constant", "linear", "cosine_with_restarts", "polynomial"]

_LEAST = 0.1  # who goes on with an adapter goes on at the rate reached, which must not be nil


def rate_share(
    schedule: ScheduleName, step: int, steps: int, *, cycles: int = 1, power: float = 1.0
) -> float:
    """Return the share of the highest learning rate, in [0.1, 1].

    Args:
        schedule: all but ``constant`` fall from 1 to 0.1, with the shapes of transformers.
        step: after warm-up, counted from 0.
        steps: after warm-up, at least 1.
        cycles: times that ``cosine_with_restarts`` falls.
        power: of ``polynomial``.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        done = step / steps
        return _LEAST + 0.9 * (1 + math.cos(math.pi * done)) / 2
    return _LEAST + (1 - _LEAST) * _shape(schedule, steps, cycles, power)(step)


@lru_cache
def _shape(schedule: ScheduleName, steps: int, cycles: int, power: float) -> Callable[[int], float]:
    """Return a schedule of transformers that falls from 1 to 0."""
    import torch
    from transformers.optimization import get_scheduler

    own: dict[str, dict[str, Any]] = {
        "cosine_with_restarts": {"num_cycles": cycles},
        "polynomial": {"power": power, "lr_end": 0.0},
    }
    unit = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # of which a schedule is always a part
    (shape,) = get_scheduler(schedule, unit, 0, steps, own.get(schedule)).lr_lambdas
    its: Callable[[int], float] = shape
    return its
