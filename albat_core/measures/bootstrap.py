"""Intervals by drawing documents with replacement, and over few seeds."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from albat_core.seeding import numpy_generator

_DRAWN_AT_ONCE = 100  # bootstrap samples in memory
_TAILS = (0.025, 0.975)


Floats = NDArray[np.float64]


def bootstrap_interval(
    totals: Sequence[Floats], units: Floats, seed: int, draws: int = 2000
) -> tuple[float, float, float]:
    """Return a loss, or the difference of two, with its 95% percentile interval over documents.

    Documents are drawn with replacement, whole and paired: both arms see the same draw.

    Args:
        totals: one or two of (n_documents,), nats; the second is subtracted.
        units: (n_documents,), the same for both.
        seed: of the generator.
        draws: bootstrap samples.

    Returns:
        value, low and high, nats per unit.
    """
    difference = totals[0] - totals[1] if len(totals) == 2 else totals[0]
    samples = bootstrap_samples(difference, units, numpy_generator(seed, "bootstrap"), draws)
    low, high = np.quantile(samples, _TAILS)
    return float(difference.sum() / units.sum()), float(low), float(high)


def bootstrap_samples(
    totals: Floats, units: Floats, generator: np.random.Generator, draws: int = 2000
) -> Floats:
    """Return the loss of documents drawn with replacement, as many as there are, (draws,).

    Args:
        totals: (n_documents,), nats.
        units: (n_documents,).
        generator: of the draws.
        draws: bootstrap samples.
    """
    samples = np.empty(draws)
    for start in range(0, draws, _DRAWN_AT_ONCE):
        block = samples[start : start + _DRAWN_AT_ONCE]
        drawn = generator.integers(0, len(units), size=(len(block), len(units)))
        block[:] = totals[drawn].sum(axis=1) / units[drawn].sum(axis=1)
    return samples


def interval_over_seeds(
    value: float, by_seed: Floats, drawn: Floats, documents: int, *, same_documents: bool
) -> tuple[float, float]:
    """Return the 95% interval of a mean over few seeds, of which each has its held-out documents.

    Bootstrapping three seeds never leaves their range. So documents alone are drawn, and that
    interval is stretched to the variance ``V = V_documents + V_seeds``, by Student's t with the
    degrees of freedom of Welch and Satterthwaite (Satterthwaite 1946): two where three seeds differ
    by much more than their documents make them, as many as documents where by no more.

    Args:
        value: over all seeds and documents.
        by_seed: (n_seeds,) the same of each seed alone; of one seed nothing is known of others.
        drawn: (draws,) the same over all seeds, each with its documents drawn with replacement.
        documents: held out in all, at least 2.
        same_documents: whether all seeds hold out the same, which then explain no difference.
    """
    low, high = (float(end) for end in np.quantile(drawn, _TAILS))
    seeds = len(by_seed)
    if seeds == 1:
        return low, high
    of_documents = float(np.var(drawn))
    of_seeds = float(np.var(by_seed, ddof=1)) / seeds - (0 if same_documents else of_documents)
    if of_seeds <= 0:
        return low, high
    # heavy imports inside: most of what draws documents has no seeds
    from scipy.stats import norm, t

    total = of_documents + of_seeds
    freedom = total**2 / (of_seeds**2 / (seeds - 1) + of_documents**2 / (documents - 1))
    reach = float(t.ppf(_TAILS[1], freedom)) * total**0.5
    usual = float(norm.ppf(_TAILS[1])) * of_documents**0.5
    if usual < 1e-9 * reach:
        return value - reach, value + reach
    return value + (low - value) * reach / usual, value + (high - value) * reach / usual
