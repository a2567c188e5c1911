"""Gradient similarity (LESS): how much a training step on a row would help the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from albat_core.records.candidates import Candidates
from albat_core.records.splits import VALIDATION
from albat_core.scorers.base import LABEL, Given, Measured, Scorer

if TYPE_CHECKING:
    import torch

    from albat_core.measures.gradients import Transform

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


class Gradient(Scorer):
    """LESS: sum over checkpoints of eta_i cos(Adam's step on the row, the target's gradient).

    Eta_i is the checkpoint's share of the learning rates, so scores lie in [-1, 1]: the higher, the
    more a step on the row lowers the loss of adaptation examples that the surrogate was not trained
    on. Both are random projections (Xia et al., arXiv 2402.04333).
    """

    name: ClassVar[str] = "gradient"
    title: ClassVar[str] = "gradient similarity (LESS)"
    says: ClassVar[str] = "how much a training step on the row would help, in [-1, 1]"
    needs_surrogate: ClassVar[bool] = True
    by_row: ClassVar[bool] = True
    by_gradients: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = (VALIDATION,)
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "selection": {"select": "top", "weigh": "even"}
    }

    dimension: int = Field(2048, ge=16)
    """Coordinates of the random projection of gradients."""
    checkpoints: int = Field(4, ge=1)
    """Surrogates on the way to the best one whose gradients are compared."""

    @property
    def surrogate_checkpoints(self) -> int:
        """See ``Scorer``."""
        return self.checkpoints

    def measure(self, candidates: Candidates, given: Given) -> dict[str, Measured]:
        """Return the sum over checkpoints."""
        from albat_core.training.checkpoint import read_checkpoints

        assert given.surrogate is not None  # it is needed, see above
        checkpoints = read_checkpoints(given.surrogate)
        gradients, heldout = given.gradients(self.dimension), given.rows(VALIDATION)
        total = sum(c.learning_rate for c in checkpoints)
        scores = np.zeros(len(candidates))
        for checkpoint in checkpoints:
            given.backbone.detach_adapter()
            given.backbone.load_adapter(checkpoint.adapter)
            target = gradients.of(heldout).mean(axis=0)
            step = adam_step(checkpoint.moments, given.backbone.device)
            blocks = candidates.encoded(given.backbone.encode)
            steps = np.concatenate([gradients.of_encoded(rows, LABEL, step) for rows in blocks])
            sizes = np.linalg.norm(steps, axis=1) * np.linalg.norm(target)
            scores += checkpoint.learning_rate / total * (steps @ target) / np.maximum(sizes, 1e-30)
        given.passes += gradients.passes
        return {"score": scores}
