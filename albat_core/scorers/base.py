"""What a scorer is given and what it gives."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from albat_core.records.candidates import Candidates

Scores = NDArray[np.float64]


LABEL = "score candidates"
"""Names the progress line of work on all candidates."""


class Scorer(Protocol):
    """Gives candidates their scores: higher is better."""

    @property
    def passes(self) -> int:
        """Units that went through the model so far; a backward pass counts for two."""

    def score(self, candidates: Candidates) -> dict[str, Scores]:
        """Return columns (n,) by name: ``score``, and the losses behind it where there are any."""


def rank_correlation(first: Scores, second: Scores) -> float:
    """Return Spearman's correlation of two scores (n,), in [-1, 1]; 1 where neither varies."""
    if len(first) < 2:
        return 1.0
    ranks = [np.argsort(np.argsort(v, kind="stable")).astype(np.float64) for v in (first, second)]
    first, second = (r - r.mean() for r in ranks)
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))
