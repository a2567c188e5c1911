"""No score at all: what choosing is worth shows beside it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from albat_core.records.candidates import Candidates
from albat_core.scorers.base import Given, Scorer, Scores
from albat_core.seeding import numpy_generator


class Random(Scorer):
    """A number drawn evenly from [0, 1): what choosing is worth shows beside it."""

    name: ClassVar[str] = "random"
    title: ClassVar[str] = "random corpus rows"
    says: ClassVar[str] = "evenly drawn from [0, 1)"
    draws: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "retrieval": {"pool": "corpus"},
        "selection": {"select": "top", "weigh": "even"},
    }

    def score(self, candidates: Candidates, given: Given) -> dict[str, Scores]:
        """Return a number for each candidate."""
        return {"score": numpy_generator(given.seed, "random scores").random(len(candidates))}
