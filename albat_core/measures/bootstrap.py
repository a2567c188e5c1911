"""Intervals by drawing documents with replacement."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from albat_core.seeding import numpy_generator

_DRAWN_AT_ONCE = 100  # bootstrap samples in memory


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
    low, high = np.quantile(samples, [0.025, 0.975])
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
