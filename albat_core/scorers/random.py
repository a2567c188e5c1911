"""No score at all: what choosing is worth shows beside it."""

from albat_core.records.candidates import Candidates
from albat_core.scorers.base import Scores
from albat_core.seeding import numpy_generator


class Random:
    """A number drawn evenly from [0, 1): what choosing is worth shows beside it.

    Args:
        seed: of the draws.
    """

    passes = 0

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def score(self, candidates: Candidates) -> dict[str, Scores]:
        """Return a number for each candidate."""
        return {"score": numpy_generator(self._seed, "random scores").random(len(candidates))}
