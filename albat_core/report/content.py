"""What a report shows, gathered and checked before anything is drawn."""

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Part):
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float


class Arm(_Part):
    """One way to adapt, with what it came to on the held-out documents."""

    name: str
    """`untouched`, `adaptation_only`, `random`, `albat` or `all_data`."""
    label: str
    loss: Interval
    """Nats per token over all held-out documents."""
    gain: Interval | None = None
    """Adaptation-only loss minus this arm's, paired by document, nats per token; > 0 is better."""
    perplexity: float
    documents: int
    units: int
    """Held-out tokens that carry loss."""
    adaptation_rows: int = 0
    backbone_rows: int = 0
    best_step: int | None = None
    steps: int | None = None
    seconds: float | None = None
    """Training time, wall clock."""


class CurvePoint(_Part):
    """Losses at one step of training, nats per token."""

    step: int
    train: float | None = None
    validation: float | None = None


class Curve(_Part):
    """How one arm learned."""

    arm: str
    label: str
    best_step: int
    points: tuple[CurvePoint, ...]


class SourceCount(_Part):
    """Where the selected rows come from."""

    source: str
    corpus: int
    """Rows of this source in the corpus."""
    candidates: int
    selected: int
    weight: float
    """Share of the backbone weight, in [0, 1]."""


class SelectedExample(_Part):
    """A candidate shown in full."""

    example_id: str
    source: str
    text: str
    score: float | None
    weight: float | None
    """None: looked at and not selected."""
    similarity: float | None
    nearest_id: str | None
    nearest_text: str | None


class Selection(_Part):
    """What was selected."""

    scorer: str
    corpus_rows: int
    candidates: int
    selected: int
    effective_sample_size: float
    sources: tuple[SourceCount, ...]
    candidate_scores: tuple[float, ...]
    selected_scores: tuple[float, ...]
    selected_weights: tuple[float, ...]
    """Sums to 1."""
    most_useful: tuple[SelectedExample, ...]
    least_useful: tuple[SelectedExample, ...]


class InputCount(_Part):
    """What became of one input's rows."""

    name: str
    role: str
    """`corpus` or `adaptation`."""
    rows: int
    examples: int
    notes: tuple[str, ...] = ()
    """What was counted and is worth knowing: empty, cut or dropped rows."""


class StageTime(_Part):
    """One stage of the run."""

    stage: str
    label: str
    rows: int
    seconds: float
    """Time it took when it was made."""
    reused: bool
    artifact: str


class ReportContent(_Part):
    """Everything a report shows."""

    title: str
    created: str
    headline: str
    """The result in one or two plain sentences."""
    arms: tuple[Arm, ...]
    curves: tuple[Curve, ...]
    selection: Selection
    alpha: float
    multiplier: Interval | None = None
    """Effective data multiplier, where it is known."""
    splits: dict[str, int]
    """Adaptation documents by role."""
    inputs: tuple[InputCount, ...]
    index: dict[str, str | int | float]
    """Kind, rows, dimension, recall@k of the index."""
    stages: tuple[StageTime, ...]
    config_yaml: str
    versions: dict[str, str]
    machine: str
