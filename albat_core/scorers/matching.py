"""Gradient matching: weights under which the corpus pulls the adapter as the target does."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from albat_core.measures.theory import metric_root
from albat_core.records.candidates import Candidates
from albat_core.records.splits import VALIDATION
from albat_core.scorers.base import LABEL, Given, Scorer, Scores

Floats = NDArray[np.float64]
_STEPS = 500
_SLOW = 1e-6  # relative change of the objective at which the descent may be at its end
_CLOSE = 1e-3  # and is, if so much of the objective is left to gain at most


def simplex_projection(values: Floats) -> Floats:
    """Return the nearest point (n,) with w >= 0 and sum w = 1 (Duchi et al. 2008, figure 1)."""
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(values) + 1)
    last = int(np.flatnonzero(falling > excess)[-1])
    return np.asarray(np.maximum(values - excess[last], 0))


def matching_weights(
    gradients: Floats, target: Floats, *, steps: int = _STEPS
) -> tuple[Floats, list[float]]:
    """Return the weights whose mean gradient is nearest the target's, its variance counted.

    They minimise Q(w) = |sum_j w_j g_j - t|^2 + sum_j w_j^2 |g_j - m|^2 on the simplex, m the mean
    gradient: B + V_w of the theory, up to what no weight changes. Accelerated projected gradient
    descent (FISTA, Beck and Teboulle 2009) with restarts, until a thousandth of Q is left to gain.

    Args:
        gradients: (n, d) in coordinates in which H is the identity.
        target: (d,) in the same.
        steps: at most.

    Returns:
        w, (n,) >= 0 with sum 1, and Q after each step, falling.
    """
    spread = np.square(gradients - gradients.mean(axis=0)).sum(axis=1)

    def objective(weights: Floats) -> float:
        gap = weights @ gradients - target
        return float(gap @ gap + np.square(weights) @ spread)

    def slope_at(weights: Floats) -> Floats:
        pull = gradients @ (weights @ gradients - target)
        return np.asarray(2 * (pull + weights * spread))

    def left_to_gain(weights: Floats) -> float:  # at most: the gap of Frank and Wolfe
        slope = slope_at(weights)
        return float(weights @ slope - slope.min())

    # the largest eigenvalue of G G^T bounds the curvature, with the variance's added
    curvature = 2 * (float(np.linalg.eigvalsh(gradients.T @ gradients)[-1]) + float(spread.max()))
    weights = np.full(len(gradients), 1 / len(gradients))
    values = [objective(weights)]
    ahead, momentum = weights, 1.0
    for _ in range(steps):
        following = simplex_projection(ahead - slope_at(ahead) / curvature)
        value = objective(following)
        if value > values[-1]:
            if momentum == 1.0:
                break
            ahead, momentum = weights, 1.0  # overshot: start anew from here
            continue
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = following + (momentum - 1) / grown * (following - weights)
        slow = values[-1] - value <= _SLOW * value
        weights, momentum = following, grown
        values.append(value)
        if slow and left_to_gain(weights) <= _CLOSE * value:
            break
    return weights, values


class Matching(Scorer):
    """Weight of a row under which the corpus's mean gradient matches the target's, times n.

    At least 0, mean 1: 0 for rows that do not help; see ``matching_weights``. Gradients are those
    at the surrogate, the target's of examples that it was not trained on.
    """

    name: ClassVar[str] = "matching"
    title: ClassVar[str] = "gradient matching"
    says: ClassVar[str] = "weight at which the rows' mean gradient is the target's, mean 1"
    needs_surrogate: ClassVar[bool] = True
    by_gradients: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = (VALIDATION,)
    gives_weights: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "selection": {"select": "top", "weigh": "proportional"}
    }

    dimension: int = Field(2048, ge=16)
    """Coordinates of the random projection of gradients."""
    damping: float = Field(10.0, gt=0)
    """Damping of the Hessian in units of its mean eigenvalue, see ``theory.metric_root``."""

    def score(self, candidates: Candidates, given: Given) -> dict[str, Scores]:
        """Return the weights times n."""
        gradients = given.gradients(self.dimension)
        corpus = np.concatenate([gradients.of(rows, LABEL) for rows in candidates.blocks()])
        target = gradients.of(given.rows(VALIDATION))
        given.passes += gradients.passes
        corpus, target = corpus.astype(np.float64), target.astype(np.float64)
        whitening = metric_root(np.concatenate([corpus, target]), self.damping)
        weights, _ = matching_weights(corpus @ whitening, target.mean(axis=0) @ whitening)
        return {"score": weights * len(candidates)}
