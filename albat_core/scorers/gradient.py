"""Gradient similarity (LESS): how much a training step on a row would help the target."""

from collections.abc import Sequence

import numpy as np
import torch

from albat_core.backbones.base import Backbone, FixedNoise, forward_units
from albat_core.finetuning.checkpoint import KeptCheckpoint
from albat_core.gradients import Gradients, Projection, Transform, example_gradients
from albat_core.records import Example
from albat_core.scorers.base import Candidates, Scores

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8  # AdamW's rates, as the trainer has them


def adam_step(moments: dict[str, torch.Tensor], device: torch.device) -> Transform:
    """Return what makes a gradient g the step that Adam would take on it (arXiv 2402.04333).

    (b1 m + (1 - b1) g) / sqrt(b2 v + (1 - b2) g^2 + epsilon), m and v the moments so far.
    """
    there = {name: tensor.to(device) for name, tensor in moments.items()}

    def step(name: str, gradient: torch.Tensor) -> torch.Tensor:
        first = _FIRST * there[f"first/{name}"] + (1 - _FIRST) * gradient
        second = _SECOND * there[f"second/{name}"] + (1 - _SECOND) * gradient.square()
        return first / (second + _EPSILON).sqrt()

    return step


class Gradient:
    """LESS: sum over checkpoints of eta_i cos(Adam's step on the row, the target's gradient).

    Eta_i is the checkpoint's share of the learning rates, so scores lie in [-1, 1]: the higher, the
    more a step on the row lowers the target's loss. Both are random projections
    (Xia et al., arXiv 2402.04333).

    Args:
        backbone: without an adapter.
        checkpoints: of the surrogate, at least one.
        heldout: adaptation examples that the surrogate was not trained on.
        batch_tokens: tokens in a batch.
        noise: the same for every example.
        dimension: of the projection.
    """

    def __init__(
        self,
        backbone: Backbone,
        checkpoints: Sequence[KeptCheckpoint],
        heldout: Sequence[Example],
        batch_tokens: int,
        noise: FixedNoise,
        dimension: int,
    ) -> None:
        self._backbone = backbone
        self._checkpoints = checkpoints
        self._heldout = heldout
        self._batch_tokens = batch_tokens
        self._noise = noise
        self._projection = Projection(dimension)
        self.passes = 0

    def score(self, candidates: Candidates) -> dict[str, Scores]:
        """Return the sum over checkpoints."""
        total = sum(c.learning_rate for c in self._checkpoints)
        scores = np.zeros(len(candidates))
        for checkpoint in self._checkpoints:
            self._backbone.detach_adapter()
            self._backbone.load_adapter(checkpoint.adapter)
            target = self._gradients(self._heldout, None).mean(axis=0)
            step = adam_step(checkpoint.moments, self._backbone.device)
            steps = np.concatenate([self._gradients(rows, step) for rows in candidates.blocks()])
            sizes = np.linalg.norm(steps, axis=1) * np.linalg.norm(target)
            scores += checkpoint.learning_rate / total * (steps @ target) / np.maximum(sizes, 1e-30)
        return {"score": scores}

    def _gradients(self, examples: Sequence[Example], transform: Transform | None) -> Gradients:
        encoded = self._backbone.encode(examples)
        self.passes += 3 * forward_units(self._backbone, encoded, self._noise)
        return example_gradients(
            self._backbone,
            encoded,
            self._batch_tokens,
            self._noise,
            self._projection,
            transform,
            "score candidates" if transform else "",
        )
