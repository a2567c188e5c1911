"""Gradient similarity (LESS): how much a training step on a row would help the target."""

from collections.abc import Sequence

import numpy as np
import torch

from albat_core.backbones.base import Backbone
from albat_core.measures.gradients import AdapterGradients, Transform
from albat_core.records.candidates import Candidates
from albat_core.records.examples import Example
from albat_core.scorers.base import LABEL, Scores
from albat_core.training.checkpoint import KeptCheckpoint

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
        gradients: of the backbone's adapter.
    """

    def __init__(
        self,
        backbone: Backbone,
        checkpoints: Sequence[KeptCheckpoint],
        heldout: Sequence[Example],
        gradients: AdapterGradients,
    ) -> None:
        self._backbone = backbone
        self._checkpoints = checkpoints
        self._heldout = heldout
        self._gradients = gradients

    @property
    def passes(self) -> int:
        """Units that went through the model so far."""
        return self._gradients.passes

    def score(self, candidates: Candidates) -> dict[str, Scores]:
        """Return the sum over checkpoints."""
        total = sum(c.learning_rate for c in self._checkpoints)
        scores = np.zeros(len(candidates))
        for checkpoint in self._checkpoints:
            self._backbone.detach_adapter()
            self._backbone.load_adapter(checkpoint.adapter)
            target = self._gradients.of(self._heldout).mean(axis=0)
            step = adam_step(checkpoint.moments, self._backbone.device)
            steps = np.concatenate(
                [self._gradients.of(rows, LABEL, step) for rows in candidates.blocks()]
            )
            sizes = np.linalg.norm(steps, axis=1) * np.linalg.norm(target)
            scores += checkpoint.learning_rate / total * (steps @ target) / np.maximum(sizes, 1e-30)
        return {"score": scores}
