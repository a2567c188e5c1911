"""Scores without a surrogate: similarity, and none at all."""

import numpy as np

from albat_core.errors import ConfigError
from albat_core.records.candidates import Candidates
from albat_core.scorers.base import Scores


class Nearest:
    """Similarity to the nearest adaptation example, in [-1, 1] (RDS+, arXiv 2503.01807)."""

    passes = 0

    def score(self, candidates: Candidates) -> dict[str, Scores]:
        """Return the similarity itself.

        Raises:
            ConfigError: the candidates were found for no adaptation example.
        """
        similarity = candidates.similarity
        if np.isnan(similarity).any():
            raise ConfigError(
                "expected candidates near the adaptation examples, got some that are near to none",
                where="scoring.scorer",
                remedy="choose another scorer, or set retrieval.pool to neighbours",
            )
        return {"score": similarity}
