"""Weights of selected rows, and how many equal rows they count as."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def effective_sample_size(weights: Floats) -> float:
    """Return ESS = 1 / sum w^2 of weights (n,) that sum to 1; in [1, n]."""
    return float(1 / np.square(weights).sum())


def exponential_weights(scores: Floats, ess: float) -> tuple[Floats, float]:
    """Return w = exp(s / tau) / sum exp(s / tau) with the tau at which ESS = ess * n.

    Args:
        scores: (n,), higher is better.
        ess: target share, in (0, 1].

    Returns:
        weights (n,), which sum to 1, and tau; infinite where all weights are equal.
    """
    weights = np.full(len(scores), 1 / len(scores))
    if ess >= 1 or np.ptp(scores) == 0:
        return weights, np.inf
    shifted = scores - scores.max()
    # ESS grows with tau, from the number of equally best scores to n: bisect log tau
    low, high = np.log(scores.std()) - 12, np.log(scores.std()) + 12
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.exp(shifted / np.exp(middle))
        weights /= weights.sum()
        if effective_sample_size(weights) < ess * len(scores):
            low = middle
        else:
            high = middle
    return weights, float(np.exp(middle))
