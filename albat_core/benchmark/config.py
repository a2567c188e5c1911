"""What the efficacy benchmark compares, on which tasks."""

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from albat_core.runs.config import RunConfig
from albat_core.scorers import AnyScorer
from albat_core.scorers.advantage import Advantage
from albat_core.scorers.base import Scorer
from albat_core.scorers.gradient import Gradient
from albat_core.scorers.matching import Matching
from albat_core.scorers.ngram import Ngram
from albat_core.store.stage import StageConfig


class Situation(StageConfig):
    """A task on which arms are compared."""

    name: str = Field(min_length=1)
    """What it is called in the table."""
    run: RunConfig
    """The run; its seed is replaced."""


class EfficacyConfig(StageConfig):
    """What is compared, on which tasks."""

    name: str = Field("efficacy", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the benchmark, and of the file that its table is written to."""
    situations: tuple[Situation, ...] = Field(min_length=1)
    """The tasks."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Each draws adaptation documents, initialization and batches anew."""
    scorers: tuple[AnyScorer, ...] = (Advantage(), Ngram(), Gradient(), Matching())
    """Scorers that are compared with ALBAT, at its mixing weight."""
    alphas: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    """Mixing weights at which ALBAT is tried beside the one that it computes."""
    shares: tuple[float, ...] = (0.2, 0.4, 0.7, 1.0)
    """Larger shares of the documents that are not held out, for the curve of adaptation data
    only; the arms have `split.use` of them."""
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Learning rates of which each arm, and the surrogate, has its best; validation documents of
    the first seed choose, from the middle one on for as long as the loss falls. None: the
    configured one."""
    penalty: float = Field(0.3, gt=0)
    """Weight of the penalty towards the backbone's outputs, which arms without corpus are trained
    both with and without; validation documents of the first seed choose."""
    parallel: int = Field(1, ge=1)
    """Tasks and seeds that run at once, each in a process of its own."""

    @field_validator("scorers")
    @classmethod
    def _each_once(cls, value: tuple[Scorer, ...]) -> tuple[Scorer, ...]:
        names = [scorer.name for scorer in value]
        if again := sorted({name for name in names if names.count(name) > 1 or name == "random"}):
            raise ValueError(f"each scorer once, and random is there anyway: {', '.join(again)}")
        return value

    @model_validator(mode="after")
    def _more_than_is_used(self) -> Self:
        for task in self.situations:
            if self.shares and min(self.shares) <= (use := task.run.split.use):
                raise ValueError(
                    f"shares: expected shares above split.use, got {min(self.shares):g} where "
                    f"{task.name} has {use:g}: the curve begins with what the arms have; set "
                    "split.use below it, to 0.1 for instance"
                )
        return self


class CalibrationConfig(StageConfig):
    """On which tasks, seeds and sizes what is said beforehand is held against what it was worth."""

    name: str = "calibration"
    """What its run is called in Prefect's pages."""
    situations: tuple[Situation, ...] = Field(min_length=1)
    """The tasks."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Each draws adaptation documents, initialization and batches anew."""
    sizes: tuple[Annotated[float, Field(gt=0)], ...] = Field((0.5, 1.0, 2.0), min_length=1)
    """Sizes of the adaptation set, over the task's own `split.use`."""
    parallel: int = Field(2, ge=1)
    """Tasks and seeds that run at once, each in a process of its own."""

    @model_validator(mode="after")
    def _more_is_left(self) -> Self:
        for task in self.situations:
            if (used := max(self.sizes) * task.run.split.use) >= 1:
                raise ValueError(
                    f"sizes: expected sizes that leave documents to compare with, got "
                    f"{max(self.sizes):g} where {task.name} has split.use "
                    f"{task.run.split.use:g}, {used:g} in all; set split.use lower, to 0.1 for "
                    "instance"
                )
        return self
