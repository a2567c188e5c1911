"""Resumable state of a training run: one safetensors file, replaced in one piece."""

import json
import logging
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from albat_core import storage

logger = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]


@dataclass
class TrainingState:
    """Where a training run stands.

    Args:
        step: steps done.
        best_step: step with the lowest validation loss so far.
        best_loss: that loss, nats per unit.
        history: what was measured, one entry an evaluation.
        recent: batch losses since the last evaluation.
        parameters: adapter by name.
        best_parameters: adapter at ``best_step``.
        moments: Adam's first and second moments by ``first/<name>`` and ``second/<name>``.
    """

    step: int = 0
    best_step: int = 0
    best_loss: float = float("inf")
    history: list[dict[str, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    parameters: Tensors = field(default_factory=dict)
    best_parameters: Tensors = field(default_factory=dict)
    moments: Tensors = field(default_factory=dict)


_GROUPS = ("parameters", "best_parameters", "moments")


class CheckpointFile:
    """The checkpoint of one training run.

    Args:
        uri: its file, local or remote.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def write(self, state: TrainingState) -> None:
        """Replace the checkpoint."""
        tensors = {
            f"{group}/{name}": tensor.detach().cpu().contiguous()
            for group in _GROUPS
            for name, tensor in getattr(state, group).items()
        }
        scalars = {k: v for k, v in vars(state).items() if k not in _GROUPS}
        storage.write_bytes(self._uri, save(tensors, {"state": json.dumps(scalars)}))

    def read(self) -> TrainingState | None:
        """Return the state to go on from, or None where there is none that can be read."""
        try:
            content = storage.read_bytes(self._uri)
            tensors = load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            state = TrainingState(**json.loads(header["__metadata__"]["state"]))
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError, KeyError, TypeError):
            logger.warning("%s cannot be read: training starts anew", self._uri)
            return None
        for name, tensor in tensors.items():
            group, _, key = name.partition("/")
            getattr(state, group)[key] = tensor
        return state

    def remove(self) -> None:
        """Remove the checkpoint once its run is finished."""
        storage.remove(self._uri)
