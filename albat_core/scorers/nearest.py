"""Similarity to the nearest adaptation example."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from albat_core.errors import ConfigError
from albat_core.records.candidates import Candidates
from albat_core.scorers.base import Given, Scorer, Scores


class Nearest(Scorer):
    """Similarity to the nearest adaptation example, in [-1, 1] (RDS+, arXiv 2503.01807)."""

    name: ClassVar[str] = "nearest"
    title: ClassVar[str] = "nearest neighbours (RDS+)"
    says: ClassVar[str] = "similarity to the nearest adaptation example, in [-1, 1]"
    needs_neighbours: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "selection": {"select": "turns", "weigh": "even"}
    }

    def score(self, candidates: Candidates, given: Given) -> dict[str, Scores]:
        """Return the similarity itself.

        Raises:
            ConfigError: the candidates were found for no adaptation example.
        """
        del given
        similarity = candidates.similarity
        if np.isnan(similarity).any():
            raise ConfigError(
                "expected candidates near the adaptation examples, got some that are near to none",
                where="scoring.scorer",
                remedy="choose another scorer, or set retrieval.pool to neighbours",
            )
        return {"score": similarity}
