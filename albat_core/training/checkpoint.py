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
from albat_core.errors import TransientError
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
        waypoints: steps whose adapter and moments are kept, see ``CheckpointFile.keep``.
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
    waypoints: list[int] = field(default_factory=list)


_GROUPS = ("parameters", "best_parameters", "optimizer")
_BLANK = "0" * 64  # in the digest's place while the file's digest is computed
_ENDING = ".safetensors"
_SPOILT = SafetensorError, ValueError, KeyError, TypeError


class CheckpointFile:
    """The checkpoint of one training run, and what is kept of it on the way.

    Args:
        uri: its file, local or remote; what is kept lies in a folder beside it.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._folder = uri.removesuffix(_ENDING)

    def write(self, state: TrainingState) -> None:
        """Replace the checkpoint."""
        tensors = {
            f"{group}/{name}": tensor
            for group in _GROUPS
            for name, tensor in getattr(state, group).items()
        }
        scalars = {k: v for k, v in vars(state).items() if k not in _GROUPS}
        _write(self._uri, tensors, {"state": json.dumps(scalars)})

    def read(self) -> TrainingState | None:
        """Return the state to go on from, or None where there is none that is as it was written."""
        try:
            tensors, said = _read(self._uri)
            state = TrainingState(**json.loads(said["state"]))
            groups = {group: getattr(state, group) for group in _GROUPS}
            for name, tensor in tensors.items():
                group, _, key = name.partition("/")
                groups[group][key] = tensor
        except FileNotFoundError:
            return None
        except _SPOILT as error:
            self._warn(self._uri, error)
            return None
        for step in state.waypoints:
            try:
                _read(self._waypoint(step))
            except (FileNotFoundError, *_SPOILT) as error:
                self._warn(self._waypoint(step), error)
                return None
        return state

    def keep(self, step: int, tensors: Tensors) -> None:
        """Keep the adapter and what else there is at a step, until the checkpoint is removed."""
        _write(self._waypoint(step), tensors, {})

    def kept(self, step: int) -> Tensors:
        """Return what was kept at a step.

        Raises:
            TransientError: it is not there any more as it was written.
        """
        try:
            return _read(self._waypoint(step))[0]
        except (FileNotFoundError, *_SPOILT) as error:
            raise TransientError(
                f"expected what was kept of step {step} as it was written: {error}",
                where=redacted(self._waypoint(step)),
                remedy="run again: the training starts anew",
            ) from error

    def remove(self) -> None:
        """Remove the checkpoint and what is kept once its run is finished."""
        storage.remove(self._uri)
        storage.remove(self._folder)

    def _waypoint(self, step: int) -> str:
        return storage.join(self._folder, f"{step:08d}{_ENDING}")

    @staticmethod
    def _warn(uri: str, error: Exception) -> None:
        told = "%s cannot be read (%s): training starts anew"
        logger.warning(told, redacted(uri), error)


def _write(uri: str, tensors: Tensors, said: dict[str, str]) -> None:
    """Replace a file of tensors, with its digest in it."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(whole, said | {"sha256": _BLANK})
    digest = hashlib.sha256(content).hexdigest()
    storage.write_bytes(uri, content.replace(_BLANK.encode(), digest.encode(), 1))


def _read(uri: str) -> tuple[Tensors, dict[str, str]]:
    """Return tensors as they were written, and what was said with them.

    Raises:
        FileNotFoundError: there are none.
        SafetensorError, ValueError, KeyError, TypeError: they are not as they were written.
    """
    content = storage.read_bytes(uri)
    tensors = load(content)
    said = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    blank = content.replace(said["sha256"].encode(), _BLANK.encode(), 1)
    if (got := hashlib.sha256(blank).hexdigest()) != said["sha256"]:
        raise ValueError(f"expected SHA-256 {said['sha256'][:12]}, got {got[:12]}")
    return tensors, said


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
    steps = sorted(state.waypoints)
    if not steps:
        return []
    reached = [step for step in steps if step <= state.best_step] or steps[:1]
    places = [round((n + 1) * len(reached) / count) - 1 for n in range(count)]
    return [reached[place] for place in sorted({max(place, 0) for place in places})]
