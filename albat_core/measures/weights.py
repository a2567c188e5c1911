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
    from scipy.optimize import brentq

    weights = np.full(len(scores), 1 / len(scores))
    if ess >= 1 or scores.std() == 0:
        return weights, np.inf
    shifted = scores - scores.max()

    def weights_at(log_tau: float) -> Floats:
        weights: Floats = np.exp(shifted / np.exp(log_tau))
        weights /= weights.sum()
        return weights

    def excess(log_tau: float) -> float:
        return effective_sample_size(weights_at(log_tau)) - ess * len(scores)

    # ESS grows with tau, from the number of equally best scores to n
    low, high = np.log(scores.std()) - 12, np.log(scores.std()) + 12
    if excess(high) <= 0:
        return weights, np.inf
    log_tau = low if excess(low) >= 0 else float(brentq(excess, low, high, xtol=1e-14))
    return weights_at(log_tau), float(np.exp(log_tau))
