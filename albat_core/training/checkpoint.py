"""Resumable state of a training run: one safetensors file, replaced in one piece."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file

from albat_core.backbones.base import Backbone
from albat_core.redaction import redacted
from albat_core.store import storage

logger = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]


def aside(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return copies in the machine's memory: a device's is for what computes."""
    return {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}


@dataclass
class TrainingState:
    """Where a training run stands.

    Args:
        step: steps done.
        best_step: step with the lowest validation loss so far.
        best_loss: that loss, nats per unit.
        best_totals: the validation examples' total losses at that step, (n,).
        worse: whether the last evaluation was worse than that beyond noise.
        history: what was measured, one entry an evaluation.
        recent: batch losses since the last evaluation.
        passes: units that went through the model; a backward pass counts for two.
        seconds: that it took, before it was stopped too.
        parameters: adapter by name.
        best_parameters: adapter at ``best_step``.
        optimizer: tensors that the optimizer has learned, by ``<place>/<name>``.
        optimizer_rest: all else that it has, see ``optimizer_state``.
        waypoints: adapter and moments at earlier evaluations, by ``<step>/parameters/<name>``,
            ``<step>/first/<name>`` and ``<step>/second/<name>``, where they are wanted.
    """

    step: int = 0
    best_step: int = 0
    best_loss: float = float("inf")
    best_totals: list[float] = field(default_factory=list)
    worse: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    passes: int = 0
    seconds: float = 0.0
    parameters: Tensors = field(default_factory=dict)
    best_parameters: Tensors = field(default_factory=dict)
    optimizer: Tensors = field(default_factory=dict)
    optimizer_rest: dict[str, Any] = field(default_factory=dict)
    waypoints: Tensors = field(default_factory=dict)


_GROUPS = ("parameters", "best_parameters", "optimizer", "waypoints")
_BLANK = "0" * 64  # in the digest's place while the file's digest is computed


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
        content = save(tensors, {"state": json.dumps(scalars), "sha256": _BLANK})
        digest = hashlib.sha256(content).hexdigest()
        storage.write_bytes(self._uri, content.replace(_BLANK.encode(), digest.encode(), 1))

    def read(self) -> TrainingState | None:
        """Return the state to go on from, or None where there is none that is as it was written."""
        try:
            content = storage.read_bytes(self._uri)
            tensors = load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            said = header["__metadata__"]
            blank = content.replace(said["sha256"].encode(), _BLANK.encode(), 1)
            if (got := hashlib.sha256(blank).hexdigest()) != said["sha256"]:
                raise ValueError(f"expected SHA-256 {said['sha256'][:12]}, got {got[:12]}")
            state = TrainingState(**json.loads(said["state"]))
            groups = {group: getattr(state, group) for group in _GROUPS}
            for name, tensor in tensors.items():
                group, _, key = name.partition("/")
                groups[group][key] = tensor
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            told = "%s cannot be read (%s): training starts anew"
            logger.warning(told, redacted(self._uri), error)
            return None
        return state

    def remove(self) -> None:
        """Remove the checkpoint once its run is finished."""
        storage.remove(self._uri)


@dataclass(frozen=True)
class KeptCheckpoint:
    """An adapter on its way, as it was kept.

    Args:
        adapter: folder of the adapter.
        moments: Adam's moments by ``first/<name>`` and ``second/<name>``.
        learning_rate: of the step that led there.
    """

    adapter: Path
    moments: Tensors
    learning_rate: float


_FOLDER, _MOMENTS, _RATE = "checkpoints", "moments.safetensors", "learning_rate"


def write_checkpoint(
    folder: Path, step: int, backbone: Backbone, moments: Tensors, learning_rate: float
) -> None:
    """Keep the attached adapter with Adam's moments beside the adapter that is finished."""
    place = folder / _FOLDER / f"{step:08d}"
    backbone.save_adapter(place)
    there = {name: tensor.cpu().contiguous() for name, tensor in moments.items()}
    save_file(there, place / _MOMENTS, {_RATE: repr(learning_rate)})


def read_checkpoints(folder: Path) -> list[KeptCheckpoint]:
    """Return what was kept on the way to the adapter in a folder, in order."""
    found = []
    for place in sorted((folder / _FOLDER).glob("*")):
        with safe_open(place / _MOMENTS, "pt") as file:
            rate = float(file.metadata()[_RATE])
            moments = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found.append(KeptCheckpoint(place, moments, rate))
    return found


def spread_waypoints(state: TrainingState, count: int) -> list[int]:
    """Return steps evenly spread over the evaluations up to the best step, itself the last.

    All of them where there are no more than ``count``; the first where the start was best; none
    where none was wanted, or nothing was looked at.
    """
    steps = sorted({int(name.partition("/")[0]) for name in state.waypoints})
    if not steps:
        return []
    reached = [step for step in steps if step <= state.best_step] or steps[:1]
    places = [round((n + 1) * len(reached) / count) - 1 for n in range(count)]
    return [reached[place] for place in sorted({max(place, 0) for place in places})]
