"""Scores as estimates: their standard errors, and scores that allow for them."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Discount = Literal["shrinkage", "bound", "none"]

_PRIOR = 4.0
"""Degrees of freedom with which the mean variance stands beside a row's own: a row of one unit has
none, and one of few is often thought exact."""


def standard_errors(squares: Floats, units: NDArray[np.int64]) -> Floats:
    """Return the standard errors (n,) of means over units, sqrt(v / u).

    v = (squares + d v_0) / (u - 1 + d) moderates a row's variance by the mean one, v_0, as Smyth
    does with genes (2004, 10.2202/1544-6115.1027).

    Args:
        squares: (n,) sums of squared deviations from the row's mean.
        units: u, (n,) that each mean is over, >= 1.
    """
    freedom = units - 1
    mean = squares.sum() / max(freedom.sum(), 1)
    variances = (squares + _PRIOR * mean) / (freedom + _PRIOR)
    return np.asarray(np.sqrt(variances / units))


def discounted(scores: Floats, errors: Floats, how: Discount) -> Floats:
    """Return scores (n,) that allow for their errors, so that chance does not rank first.

    `shrinkage`: m + (s - m) t^2 / (t^2 + e^2), the mean of a score's true value given what was
    measured (empirical Bayes): m is the mean weighed by 1 / (t^2 + e^2), and t^2 the variance of
    true scores, var s - mean e^2 over the k rows of the smaller errors, half of all; no less than
    what it may be off by, var s sqrt(2 / k), so that a rank is left where errors are large.
    `bound`: s - e. `none`: s.

    Args:
        scores: (n,) as measured.
        errors: (n,) their standard errors, >= 0.
        how: which of them.
    """
    if how == "none" or not len(scores):
        return scores
    if how == "bound":
        return scores - errors
    sure = errors <= np.median(errors)
    found = scores[sure].var()
    true = max(found - np.square(errors[sure]).mean(), found * np.sqrt(2 / sure.sum()))
    whole = true + np.square(errors)
    if not whole.all():  # nothing varies, and nothing is in doubt
        return scores
    mean = np.average(scores, weights=1 / whole)
    return np.asarray(mean + (scores - mean) * true / whole)
