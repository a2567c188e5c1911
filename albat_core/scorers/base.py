"""What a scorer is: its settings, what it needs, what it is given and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import model_serializer

from albat_core.backbones.base import Backbone, FixedNoise
from albat_core.records.candidates import Candidates
from albat_core.records.examples import Example
from albat_core.records.splits import read_role
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.stage import StageConfig

if TYPE_CHECKING:
    from albat_core.measures.gradients import AdapterGradients

Scores = NDArray[np.float64]
Measured = NDArray[Any]
"""Floats or counts, (n,)."""

_KEPT = 4  # a gradient keeps so many times what a loss does
LABEL = "score candidates"
"""Names the progress line of work on all candidates."""


@dataclass
class Given:
    """What a scorer may read beside the candidates.

    Args:
        store: where artifacts are.
        adaptation: the adaptation set, split.
        seed: of the run.
        batch_tokens: tokens in a batch.
        noise: the same for every candidate and every pass.
        attached: the backbone with the surrogate attached; None where the scorer needs none.
        surrogate: the surrogate's folder, with the checkpoints that were asked for.
        passes: units that went through the model so far; a backward pass counts for two.
    """

    store: ArtifactStore
    adaptation: ArtifactRef
    seed: int
    batch_tokens: int
    noise: FixedNoise = field(default_factory=FixedNoise)
    attached: Backbone | None = None
    surrogate: Path | None = None
    passes: int = 0

    def rows(self, role: str) -> list[Example]:
        """Return the adaptation examples of a role."""
        return read_role(self.store, self.adaptation, role)

    @property
    def backbone(self) -> Backbone:
        """The backbone with the surrogate attached."""
        assert self.attached is not None  # a scorer that reads it says so
        return self.attached

    def gradients(self, dimension: int) -> AdapterGradients:
        """Return what takes gradients of the attached adapter, projected to so many coordinates."""
        from albat_core.measures.gradients import AdapterGradients

        at_once = max(self.batch_tokens // _KEPT, 1)
        return AdapterGradients(self.backbone, at_once, self.noise, dimension)


class Scorer(StageConfig):
    """A way to score candidates: one class in one file, and its line in the table of ``scorers``.

    Its fields are its own settings; the class variables say what it needs and what it gives.
    """

    name: ClassVar[str]
    """What it is called in settings."""
    title: ClassVar[str]
    """What it is called in tables."""
    says: ClassVar[str]
    """What a score means, with unit and range; higher is better."""
    needs_surrogate: ClassVar[bool] = False
    """Whether it reads the surrogate, which is then trained."""
    needs_neighbours: ClassVar[bool] = False
    """Whether candidates have to be neighbours of adaptation examples."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Roles of the adaptation set that it reads."""
    draws: ClassVar[bool] = False
    """Whether it draws at random, by the run's seed."""
    by_row: ClassVar[bool] = False
    """Whether what is measured of a row does not depend on the other candidates: blocks of them are
    then measured side by side (``measure``), and surrogates can be compared on a sample."""
    by_losses: ClassVar[bool] = False
    """Whether a score is a difference of losses of the row alone: then scores of an earlier
    surrogate may be kept where the new one ranks alike."""
    by_gradients: ClassVar[bool] = False
    """Whether it takes gradients of single examples at the surrogate."""
    gives_weights: ClassVar[bool] = False
    """Whether scores are weights: >= 0 with mean 1."""
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """How its own paper selects and weighs with it: settings by section of a run."""

    @property
    def surrogate_checkpoints(self) -> int:
        """Checkpoints that the surrogate's training is to keep."""
        return 0

    def score(self, candidates: Candidates, given: Given) -> dict[str, Scores]:
        """Return columns (n,) by name: ``score``, and the losses behind it where there are any."""
        return self.conclude(self.measure(candidates, given))

    def measure(self, candidates: Candidates, given: Given) -> dict[str, Measured]:
        """Return what is measured of each row, columns (n,) by name, by a scorer ``by_row``."""
        raise NotImplementedError

    def conclude(self, measured: dict[str, Measured]) -> dict[str, Scores]:
        """Return the columns of ``score``, of what was measured of all candidates."""
        return measured

    @model_serializer
    def _named(self) -> str | dict[str, Any]:
        """Return the name; with settings that are not at their defaults, where there are any."""
        fields = type(self).model_fields
        changed = {n: getattr(self, n) for n in fields if getattr(self, n) != fields[n].default}
        return {"name": self.name} | changed if changed else self.name


def rank_correlation(first: Scores, second: Scores) -> float:
    """Return Spearman's correlation of two scores (n,), in [-1, 1]; 1 where neither varies."""
    from scipy.stats import spearmanr

    if len(first) < 2:
        return 1.0
    if not (np.ptp(first) and np.ptp(second)):
        return float(np.ptp(first) == np.ptp(second))
    return float(spearmanr(first, second).statistic)
