"""Runs: what one leaves behind, and what its arms are called."""

from pydantic import BaseModel, ConfigDict

from albat_core.store.artifacts import ArtifactRef

UNTOUCHED, ADAPTATION_ONLY, RANDOM = "untouched", "adaptation_only", "random"
GENERATED, ALBAT, ALL_DATA = "generated", "albat", "all_data"
LABELS = {
    UNTOUCHED: "Backbone untouched",
    ADAPTATION_ONLY: "Adaptation data only",
    RANDOM: "With random corpus rows",
    GENERATED: "With generated rows",
    ALBAT: "ALBAT",
    ALL_DATA: "All of the adaptation data",
}
"""What the arms are called, by name."""


class ArmRun(BaseModel):
    """One arm's artifacts; no adapter where the backbone is untouched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    label: str
    adapter: ArtifactRef | None
    evaluation: ArtifactRef
    samples: ArtifactRef | None = None
    """What it made of the prompts, where any are configured."""
    fidelity: ArtifactRef | None = None
    """How close that is to subject and prompts, where encoders are configured."""
    answers: ArtifactRef | None = None
    """What it wrote to held-out prompts, where metrics are configured."""
    grades: tuple[ArtifactRef, ...] = ()
    """What each of the metrics says of that, and then what it came to on each of the tasks of
    lm-eval, in the order of the configuration."""
    redrawn: ArtifactRef | None = None
    """Held-out pictures as it draws them, where that is configured."""


class StageRun(BaseModel):
    """One stage's artifacts, as this run came by them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    refs: tuple[ArtifactRef, ...]

    @property
    def reused(self) -> bool:
        """Whether nothing of the stage had to be computed."""
        return all(ref.reused for ref in self.refs)


class RunArtifacts(BaseModel):
    """References to all that a report tells of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: tuple[ArtifactRef, ...]
    proxy: ArtifactRef | None = None
    """How far the corpus is from what the backbone models, where it stands for its own."""
    adaptation: ArtifactRef
    index: ArtifactRef | None = None
    """None where no corpus row is embedded."""
    candidates: ArtifactRef
    agreement: ArtifactRef | None = None
    """How far a smaller backbone ranks as the run's own; None where none was to score."""
    scores: ArtifactRef
    selection: ArtifactRef
    estimate: ArtifactRef | None = None
    """How alpha was computed; none where it was configured."""
    mixture: ArtifactRef
    changes: ArtifactRef | None = None
    """What differs from an earlier selection; none where the run is the first."""
    arms: tuple[ArmRun, ...]
    stages: tuple[StageRun, ...]
