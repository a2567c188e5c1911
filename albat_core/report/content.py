"""What a report shows, gathered and checked before anything is drawn."""

from pydantic import BaseModel, ConfigDict

from albat_core.records.mixtures import RowChanges

NATS = "nats per token"
"""The unit of loss in which perplexity has a meaning."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Part):
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float


class Metric(_Part):
    """What a metric says of an arm's answers to held-out prompts or a task; higher is better."""

    name: str
    """As settings have it."""
    title: str
    value: Interval
    """Mean over the answers to all prompts that were asked."""
    gain: Interval | None = None
    """This arm's mean less adaptation-only's, paired by document; > 0 is better."""
    task: str | None = None
    """Of lm-eval, whose rows are its documents; None: of held-out prompts."""
    documents: int | None = None
    """Held-out documents, or rows of the task, that were answered; None: not told."""


class Arm(_Part):
    """One way to adapt, with what it came to on the held-out documents."""

    name: str
    """`untouched`, `adaptation_only`, `random`, `albat` or `all_data`."""
    label: str
    loss: Interval
    """Over all held-out documents, in the report's unit."""
    gain: Interval | None = None
    """Adaptation-only loss minus this arm's, paired by document; > 0 is better."""
    over_random: Interval | None = None
    """Loss with random corpus rows minus this arm's, paired by document; > 0 is better."""
    over_all_data: Interval | None = None
    """Loss with all of the adaptation data and no corpus minus this arm's, likewise."""
    metrics: tuple[Metric, ...] = ()
    """Of its answers to held-out prompts, then to tasks of lm-eval, where any are configured."""
    perplexity: float | None = None
    """exp of the loss, where that is in nats per token."""
    documents: int
    units: int
    """Held-out units that carry loss: tokens, or pictures times noise levels."""
    adaptation_rows: int = 0
    backbone_rows: int = 0
    best_step: int | None = None
    steps: int | None = None
    seconds: float | None = None
    """Training time, wall clock."""


class CurvePoint(_Part):
    """Losses at one step of training, in the report's unit."""

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
    score_error: float | None = None
    """Standard error of the score, where it has one."""
    weight: float | None
    """None: looked at and not selected."""
    similarity: float | None
    nearest_id: str | None
    nearest_text: str | None
    image: str | None = None
    """A picture as a data URI, where the example has one."""
    nearest_image: str | None = None


class RankAgreement(_Part):
    """How far scores from independent noise agree."""

    levels: int
    agreement: float
    """Spearman's correlation, in [-1, 1]."""


class SmallerRanks(_Part):
    """How far a smaller backbone ranks candidates as the run's own, and which of them scored."""

    agreement: Interval
    """Spearman's correlation, in [-1, 1]."""
    rows: int
    """Candidates that both scored."""
    least: float
    """From which on the smaller one is trusted."""
    trusted: bool
    scored: bool
    """Whether scores are the smaller one's."""


class NoiseLevels(_Part):
    """At how many noise levels candidates were looked at, and why so many."""

    levels: int
    asked: float | None = None
    """The agreement that was asked for; None: the number was configured."""
    tried: tuple[RankAgreement, ...] = ()


class Sample(_Part):
    """What an arm made of a prompt: a picture or a text."""

    text: str | None = None
    image: str | None = None
    """As a data URI."""


class SampleRow(_Part):
    """What the arms made of one prompt, by arm in the grid's order."""

    prompt: str
    cells: tuple[tuple[Sample, ...], ...]


class SampleGrid(_Part):
    """Samples of all arms from the same noise: a row a prompt, a column an arm."""

    labels: tuple[str, ...]
    rows: tuple[SampleRow, ...]
    prompts: int
    """Prompts in all; rows are given of the first."""
    per_prompt: int
    """Samples in all of a prompt and arm; the first are given."""


class AnsweredPrompt(_Part):
    """A held-out prompt with its own answer, and what the arms wrote to it, in their order."""

    prompt: str
    reference: str
    answers: tuple[str, ...]


class Answers(_Part):
    """Answers to held-out prompts, of which metrics tell."""

    labels: tuple[str, ...]
    """Of the arms."""
    shown: tuple[AnsweredPrompt, ...]
    """The first, each of another document."""
    rows: int
    """Prompts that were answered."""
    documents: int
    """That these are of."""
    answerable: int
    """Held-out rows with prompt and answer."""
    bare: int
    """Held-out rows without."""
    begun: int
    """Of the rows answered, those whose answer is compared as far as it fits beside its prompt."""
    cut: tuple[int, ...]
    """Other answers that were cut at the most tokens, by arm."""


class Fidelity(_Part):
    """How close an arm's pictures are to subject and prompts: mean cosines, in [-1, 1]."""

    name: str
    label: str
    prompts: int
    unread_prompts: int = 0
    """Prompts without CLIP-T, longer than its text encoder takes."""
    dino: Interval | None = None
    clip_i: Interval | None = None
    clip_t: Interval | None = None


class PixelError(_Part):
    """How far an arm's drawings are from held-out pictures: squared error of pixels in [0, 1]."""

    name: str
    label: str
    error: Interval
    gain: Interval | None = None
    """Adaptation-only error minus this arm's, paired by document; > 0 is better."""
    over_random: Interval | None = None
    """Error with random corpus rows minus this arm's, paired by document; > 0 is better."""
    pictures: int
    """Held-out pictures that were drawn."""
    documents: int | None = None
    """That they are of; None: not told."""


class Selection(_Part):
    """What was selected."""

    scorer: str
    corpus_rows: int
    candidates: int
    copies: int | None = None
    """Candidates left out because they repeat a held-out row; None where none were looked for."""
    selected: int
    wanted: int | None = None
    """Rows that were asked for; None where all candidates were taken without being asked for."""
    effective_sample_size: float
    sources: tuple[SourceCount, ...]
    candidate_scores: tuple[float, ...]
    selected_scores: tuple[float, ...]
    selected_weights: tuple[float, ...]
    """Sums to 1."""
    most_useful: tuple[SelectedExample, ...]
    least_useful: tuple[SelectedExample, ...]
    noise: NoiseLevels | None = None
    """Where losses depend on noise."""
    smaller: SmallerRanks | None = None
    """Where a smaller backbone was to score."""


class Changes(_Part):
    """How a selection differs from the one that an adapter was last trained on."""

    adaptation: RowChanges
    backbone: RowChanges
    moved: float
    """Share of the objective's weight that is on other rows than before, in [0, 1]."""
    alpha: tuple[float, float]
    """Before and now."""
    multiplier: tuple[float | None, float | None]
    """Predicted, before and now; None where alpha is configured."""
    worth: bool
    """Whether enough has moved for a new fine-tuning."""
    threshold: float
    """Of ``moved``, from which on it is."""
    came: tuple[SelectedExample, ...]
    """The selected rows of the largest weights that entered."""
    went: tuple[SelectedExample, ...]
    """Those that left, with what they were then."""


class InputCount(_Part):
    """What became of one input's rows."""

    name: str
    role: str
    """`corpus`, `adaptation`, `generated` for rows that the backbone made beside a corpus, or
    `prefilter` for those of the corpus that were kept by their words."""
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
    unit: str = NATS
    """What losses and gains are measured in."""
    arms: tuple[Arm, ...]
    curves: tuple[Curve, ...]
    selection: Selection
    changes: Changes | None = None
    """Where the run selected again."""
    samples: SampleGrid | None = None
    fidelity: tuple[Fidelity, ...] = ()
    answers: Answers | None = None
    refit: bool = False
    """Whether arms were trained anew on all rows once their best step was known."""
    redrawn: SampleGrid | None = None
    """Held-out pictures, first as they are, then as each arm draws them."""
    pixel_errors: tuple[PixelError, ...] = ()
    alpha: float
    proxy: Interval | None = None
    """How much harder the corpus is for the backbone than its own rows, where it is a proxy."""
    verdict: str | None = None
    """What mixing was expected to be worth before it was tried, where alpha was computed."""
    multiplier: Interval | None = None
    """Effective data multiplier that was expected, where alpha was computed."""
    splits: dict[str, int]
    """Adaptation documents by role."""
    inputs: tuple[InputCount, ...]
    index: dict[str, str | int | float]
    """Kind, rows, dimension, recall@k of the index."""
    stages: tuple[StageTime, ...]
    config_yaml: str
    versions: dict[str, str]
    machine: str
