"""Optimizers of adapters by name, and what they have learned as a checkpoint keeps it."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from albat_core.training.checkpoint import Tensors, aside
from albat_core.training.config import FinetuneConfig

Groups = list[dict[str, Any]]


def open_optimizer(
    config: FinetuneConfig, parameters: Mapping[str, torch.Tensor]
) -> torch.optim.Optimizer:
    """Return the optimizer of a training; each group's ``times`` is a factor of its rate.

    Args:
        config: of the training.
        parameters: of the adapter, by name.
    """
    return _OPENED[config.optimizer](_groups(parameters, config.lora_plus), config)


def _groups(parameters: Mapping[str, torch.Tensor], times: float) -> Groups:
    """Return an optimizer's groups: the factors B have so many times the learning rate."""
    if times == 1:
        return [{"params": list(parameters.values()), "times": 1.0}]
    sorts: dict[float, list[torch.Tensor]] = {1.0: [], times: []}
    for name, parameter in parameters.items():
        sorts[times if ".lora_B." in f".{name}" else 1.0].append(parameter)
    return [{"params": its, "times": factor} for factor, its in sorts.items()]


def _adamw(groups: Groups, config: FinetuneConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


def _adamw_8bit(groups: Groups, config: FinetuneConfig) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    its: torch.optim.Optimizer = AdamW8bit(
        groups, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    return its


def _adafactor(groups: Groups, config: FinetuneConfig) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    its: torch.optim.Optimizer = Adafactor(
        groups,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        scale_parameter=False,  # the rate is the schedule's
        relative_step=False,
    )
    return its


def _prodigy(groups: Groups, config: FinetuneConfig) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy

    # with the group, as the library prints a line where all have one
    decayed = [{**group, "weight_decay": config.weight_decay} for group in groups]
    its: torch.optim.Optimizer = Prodigy(
        decayed,
        lr=config.learning_rate,
        use_bias_correction=True,  # both as its authors advise for diffusion models
        safeguard_warmup=True,
    )
    return its


_OPENED: dict[str, Callable[[Groups, FinetuneConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "adafactor": _adafactor,
    "prodigy": _prodigy,
}


def rate_found(optimizer: torch.optim.Optimizer) -> float:
    """Return what Prodigy multiplies learning rates by as yet (arXiv 2306.06101); else 1."""
    return float(optimizer.param_groups[0].get("d", 1.0))


def adam_moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]
) -> Tensors:
    """Return copies of AdamW's moments by ``first/<name>`` and ``second/<name>``, on the CPU."""
    return aside(
        {
            f"{moment}/{name}": optimizer.state[p].get(key, torch.zeros_like(p))
            for name, p in parameters.items()
            for moment, key in (("first", "exp_avg"), ("second", "exp_avg_sq"))
        }
    )


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """Return all that an optimizer has learned, for ``restore_optimizer``.

    Returns:
        copies of its tensors by ``<place of the parameter>/<name>``, on the CPU;
        its numbers likewise, and its groups, as JSON has them.
    """
    # the base class's: bitsandbytes would nest some of it
    whole = torch.optim.Optimizer.state_dict(optimizer)
    flat = {f"{n}/{name}": v for n, its in whole["state"].items() for name, v in its.items()}
    tensors = {name: v for name, v in flat.items() if isinstance(v, torch.Tensor)}
    numbers = {name: v for name, v in flat.items() if name not in tensors}
    return aside(tensors), {"numbers": numbers, "groups": whole["param_groups"]}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Tensors, others: Mapping[str, Any]
) -> None:
    """Let an optimizer of the same parameters go on from what ``optimizer_state`` returned."""
    state: dict[int, dict[str, Any]] = defaultdict(dict)
    for path, value in {**tensors, **others["numbers"]}.items():
        place, _, name = path.partition("/")
        state[int(place)][name] = value
    optimizer.load_state_dict({"state": dict(state), "param_groups": others["groups"]})
