"""Gradient matching: weights under which the corpus pulls the adapter as the target does."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from albat_core.measures.theory import metric_root, second_moments
from albat_core.records.candidates import Candidates
from albat_core.records.splits import VALIDATION
from albat_core.scorers.base import LABEL, Given, Scorer, Scores

Floats = NDArray[np.float64]
_AT_ONCE = 256  # gradients that are in float64 together: what a processor's cache holds
_STEPS = 500
_SLOW = 1e-6  # relative change of the objective at which the descent may be at its end
_CLOSE = 1e-3  # and is, if so much of the objective is left to gain at most


def simplex_projection(values: Floats) -> Floats:
    """Return the nearest point (n,) with w >= 0 and sum w = 1 (Duchi et al. 2008, figure 1)."""
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(values) + 1)
    last = int(np.flatnonzero(falling > excess)[-1])
    return np.asarray(np.maximum(values - excess[last], 0))


class Whitened:
    """Gradients G W (n, d), of which only G is kept: a few thousand rows are whitened at a time.

    Args:
        gradients: G, (n, d) float32 or float64.
        whitening: W, (d, d) symmetric; None: the identity.
    """

    def __init__(
        self, gradients: Floats | NDArray[np.float32], whitening: Floats | None = None
    ) -> None:
        self._gradients = gradients
        self._whitening = whitening

    def __len__(self) -> int:
        return len(self._gradients)

    def mean(self, weights: Floats) -> Floats:
        """Return sum_j w_j g_j, (d,) float64, of weights (n,)."""
        found = np.zeros(self._gradients.shape[1])
        for some in self._blocks():
            found += weights[some] @ self._gradients[some].astype(np.float64)
        return self._white(found)

    def along(self, direction: Floats) -> Floats:
        """Return each gradient's product with a direction (d,), (n,) float64."""
        turned, found = self._white(direction), np.empty(len(self))
        for some in self._blocks():
            found[some] = self._gradients[some].astype(np.float64) @ turned
        return found

    def spread(self) -> Floats:
        """Return each gradient's squared distance from their mean, (n,) float64."""
        mean, found = self._gradients.mean(axis=0, dtype=np.float64), np.empty(len(self))
        for some in self._blocks():
            found[some] = np.square(self._white(self._gradients[some] - mean)).sum(axis=1)
        return found

    def largest_eigenvalue(self) -> float:
        """Return that of the sum of all g g^T."""
        moments = self._white(self._white(second_moments(self._gradients)).T)
        return float(np.linalg.eigvalsh(moments)[-1])

    def _white(self, vectors: Floats) -> Floats:
        return vectors if self._whitening is None else vectors @ self._whitening

    def _blocks(self) -> Iterator[slice]:
        return (slice(start, start + _AT_ONCE) for start in range(0, len(self), _AT_ONCE))


def matching_weights(
    gradients: Whitened, target: Floats, *, steps: int = _STEPS
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
    spread = gradients.spread()

    def objective(weights: Floats) -> float:
        gap = gradients.mean(weights) - target
        return float(gap @ gap + np.square(weights) @ spread)

    def slope_at(weights: Floats) -> Floats:
        pull = gradients.along(gradients.mean(weights) - target)
        return np.asarray(2 * (pull + weights * spread))

    def left_to_gain(weights: Floats) -> float:  # at most: the gap of Frank and Wolfe
        slope = slope_at(weights)
        return float(weights @ slope - slope.min())

    # the largest eigenvalue of G G^T bounds the curvature, with the variance's added
    curvature = 2 * (gradients.largest_eigenvalue() + float(spread.max()))
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
        corpus = np.empty((len(candidates), self.dimension), np.float32)
        done = 0
        for encoded in candidates.encoded(given.backbone.encode):
            corpus[done : done + len(encoded)] = gradients.of_encoded(encoded, LABEL)
            done += len(encoded)
        target = gradients.of(given.rows(VALIDATION)).astype(np.float64)
        given.passes += gradients.passes
        moments = second_moments(corpus) + target.T @ target
        whitening = metric_root(moments / (len(corpus) + len(target)), self.damping)
        mean = target.mean(axis=0) @ whitening
        weights, _ = matching_weights(Whitened(corpus, whitening), mean)
        return {"score": weights * len(candidates)}
