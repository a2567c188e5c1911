"""The configuration of a run: the stages' own models, side by side."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from albat_core.backbones import kind_of, writes_answers
from albat_core.backbones.config import BackboneConfig
from albat_core.records.splits import VALIDATION
from albat_core.search.config import IndexConfig
from albat_core.sources.config import SourceConfig
from albat_core.stages.decontaminate import DecontaminationConfig
from albat_core.stages.embed import EmbeddingConfig
from albat_core.stages.estimate import EstimateConfig
from albat_core.stages.evaluate import EvaluationConfig
from albat_core.stages.generate import GenerationConfig
from albat_core.stages.mix import MixtureConfig
from albat_core.stages.prefilter import PrefilterConfig
from albat_core.stages.proxy import ProxyConfig
from albat_core.stages.retrieve import RetrievalConfig
from albat_core.stages.sample import SampleConfig
from albat_core.stages.score import ScoringConfig
from albat_core.stages.select import SelectionConfig
from albat_core.stages.shard import ShardConfig
from albat_core.stages.split import SplitConfig
from albat_core.store import storage
from albat_core.store.stage import Runtime, StageConfig
from albat_core.trackers import TrackerName, Tracking
from albat_core.training.config import FOR_PICTURES, FinetuneConfig, lacks_moments


def _makes_no_rows(others: ValidationInfo) -> bool:
    """Tell whether the backbone is given nothing to make rows from."""
    backbone, generated = others.data.get("backbone"), others.data.get("generated")
    if generated is None:
        return False  # another mistake, told elsewhere
    needs_prompts = backbone is None or kind_of(backbone).needs_prompts or not generated.freely
    return bool(needs_prompts and not generated.prompts)


def _whole_corpus(others: ValidationInfo) -> bool:
    retrieval = others.data.get("retrieval")
    return retrieval is not None and retrieval.pool == "corpus"


Baseline = Literal["adaptation_only", "random", "generated", "all_data"]


class ReselectionConfig(StageConfig):
    """What is done when the adaptation data of a run that is watched has changed."""

    threshold: float = Field(0.1, ge=0, le=1)
    """Share of the objective's weight that has to lie on other rows than before for a new
    fine-tuning to be worth it, in [0, 1]."""
    finetune: bool = True
    """Whether that fine-tuning is then done, with its evaluation and report; if not, the new
    mixture alone is put below `output`, to be trained on elsewhere."""
    settle_seconds: float = Field(20.0, ge=0, le=3600)
    """The data has to be unchanged for so long before it is acted on: files come in bursts."""


RENAMED = {
    "dataset": "mixture",
    "mixing": "estimate",
    **{f"mixture.{n}": f"selection.{n}" for n in ("rows", "select", "temperature", "weigh", "ess")},
    **{f"scoring.{n}": f"scoring.scorer.{n}" for n in ("dimension", "damping", "checkpoints")},
}
"""Keys of files that were written for 0.1, with what they are called now."""


class RunConfig(StageConfig):
    """Everything that one run is made of."""

    asked_first: ClassVar[tuple[str, ...]] = ("name", "backbone", "adaptation", "corpus")

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)
    """Name of the run: up to 100 letters, digits, dots, dashes and underscores."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Root of all random draws; the same seed gives the same result."""
    output: str = Field("runs", min_length=1)
    """Folder (or `s3://` prefix) for report, adapter and mixture, in a folder of the run's name."""
    backbone: BackboneConfig
    """The pretrained model that is adapted."""
    generated: GenerationConfig = GenerationConfig()
    """Rows that the backbone makes: for the baseline `generated`, and as corpus where none is
    named."""
    corpus: tuple[SourceConfig, ...] = Field((), validate_default=True)
    """The backbone's own pretraining data, or what stands for it: one source or a list. None: the
    rows that the backbone makes (`generated`)."""
    proxy: ProxyConfig = ProxyConfig()
    """Where the backbone's own data is closed and the corpus stands for it."""
    adaptation: tuple[SourceConfig, ...] = Field(min_length=1)
    """The few examples of what the backbone is adapted to: one source or a list."""
    heldout: tuple[SourceConfig, ...] = ()
    """Documents for the evaluation alone; none: `split.test` of the adaptation set."""
    split: SplitConfig = SplitConfig()
    """How the adaptation documents are divided."""
    shards: ShardConfig = ShardConfig()
    """How the corpus is cut up."""
    prefilter: PrefilterConfig = PrefilterConfig()
    """Which corpus rows are looked at at all, by their words alone."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    """How embeddings are computed."""
    index: IndexConfig = IndexConfig()
    """How the corpus is searched."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """How many corpus examples are looked at."""
    decontamination: DecontaminationConfig = DecontaminationConfig()
    """Which candidates count as copies of adaptation rows, or of one another, and are left out."""
    surrogate: FinetuneConfig = FinetuneConfig()
    """How the surrogate is trained, on the adaptation set alone."""
    scoring: ScoringConfig = ScoringConfig()
    """How candidates are scored."""
    selection: SelectionConfig = Field(SelectionConfig(), validate_default=True)
    """Which candidates are selected, and how much each counts."""
    mixture: MixtureConfig = Field(MixtureConfig(), validate_default=True)
    """How much backbone data is mixed in, and how it is written."""
    estimate: EstimateConfig = EstimateConfig()
    """How the mixing weight is computed, and what the selection is worth."""
    finetune: FinetuneConfig = FinetuneConfig()
    """How adapters are trained on a mixture; every arm alike."""
    refit: bool = True
    """Whether an arm, once validation documents have told its best step, is trained anew for as
    many steps on all documents, those included: few documents are too many to only validate. It
    costs a second fine-tuning for each arm."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How adapters are compared."""
    samples: SampleConfig = Field(SampleConfig(), validate_default=True)
    """What every arm is asked to make, shown side by side in the report."""
    baselines: tuple[Baseline, ...] = ("adaptation_only", "random")
    """Arms trained beside ALBAT, to say what it was worth; each costs one fine-tuning. `random`:
    as many random corpus rows; `generated`: rows that the backbone made from
    `generated.prompts`; `all_data`: no corpus, but all documents that are not held out, where
    `split.use` is below 1."""
    reselection: ReselectionConfig = ReselectionConfig()
    """What is done when the adaptation data has changed, where the run is watched."""
    tracking: tuple[TrackerName, ...] = ()
    """Where curves and results are shown beside the report: `mlflow`, `tensorboard`, `trackio`,
    `wandb` (install `albat[tracking]`). Addresses and keys are those of their own environment
    variables. Changes no result, and no run ends by it."""
    runtime: Runtime = Runtime()
    """Where and with what to compute; changes no result."""

    @property
    def tracked(self) -> Tracking:
        """Where the run's work is shown."""
        folder = storage.join(storage.absolute(self.output), self.name) if self.tracking else ""
        return Tracking(to=self.tracking, project=self.name, folder=folder)

    @property
    def embeds_corpus(self) -> bool:
        """Whether corpus rows are embedded: to find near ones, or pictures that are copies."""
        if self.retrieval.pool != "corpus":
            return True
        compared = self.decontamination.enabled and self.decontamination.similarity is not None
        return compared and not kind_of(self.backbone).told_by_words

    @field_validator("corpus")
    @classmethod
    def _corpus_or_prompts(
        cls, value: tuple[SourceConfig, ...], others: ValidationInfo
    ) -> tuple[SourceConfig, ...]:
        if not value and _makes_no_rows(others):
            raise ValueError("name at least one source, or generated.prompts where there is none")
        return value

    @field_validator("adaptation", "heldout")
    @classmethod
    def _own_rows_are_kept(cls, value: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        if any(source.filters for source in value):
            raise ValueError("filters are for the corpus; no rule leaves out your own rows")
        return value

    @field_validator("proxy")
    @classmethod
    def _prompts_for_proxy(cls, value: ProxyConfig, others: ValidationInfo) -> ProxyConfig:
        if value.enabled and not others.data.get("corpus"):
            raise ValueError("rows that the backbone made need no proxy.enabled: name a corpus")
        if value.enabled and _makes_no_rows(others):
            raise ValueError(
                "the corpus is compared with rows that the backbone makes: give generated.prompts, "
                "or generated.freely for a language model"
            )
        return value

    @field_validator("embedding")
    @classmethod
    def _vectors_of_a_corpus(
        cls, value: EmbeddingConfig, others: ValidationInfo
    ) -> EmbeddingConfig:
        if value.vectors.corpus.paths and others.data.get("corpus") == ():
            raise ValueError("vectors.corpus are of corpus rows: name a corpus")
        return value

    @field_validator("surrogate", "finetune")
    @classmethod
    def _pictures_are_varied(cls, value: FinetuneConfig, others: ValidationInfo) -> FinetuneConfig:
        backbone = others.data.get("backbone")
        named = [name for name in FOR_PICTURES if getattr(value, name)]
        if named and backbone is not None and not kind_of(backbone).draws_pictures:
            raise ValueError(
                f"{' and '.join(named)}: for backbones that draw pictures alone, leave that out"
            )
        return value

    @field_validator("scoring")
    @classmethod
    def _neighbours_for_nearest(cls, value: ScoringConfig, others: ValidationInfo) -> ScoringConfig:
        if value.scorer.needs_neighbours and _whole_corpus(others):
            raise ValueError(f"the scorer {value.scorer.name} needs retrieval.pool neighbours")
        return value

    @field_validator("scoring")
    @classmethod
    def _surrogate_for_smaller(cls, value: ScoringConfig) -> ScoringConfig:
        if value.smaller.path is not None and not value.by_smaller:
            raise ValueError(
                f"the scorer {value.scorer.name} gives rows no score by a surrogate alone, which a "
                "smaller backbone could have: leave smaller out, or set scorer to advantage or "
                "gradient"
            )
        return value

    @field_validator("scoring")
    @classmethod
    def _moments_for_gradient(cls, value: ScoringConfig, others: ValidationInfo) -> ScoringConfig:
        surrogate = others.data.get("surrogate")
        said = "" if surrogate is None else lacks_moments(surrogate.optimizer)
        if said and value.scorer.surrogate_checkpoints:
            raise ValueError(
                f"the scorer {value.scorer.name} takes Adam's steps at the surrogate, and {said}: "
                "set surrogate.optimizer to adamw (finetune.optimizer may stay), or another scorer"
            )
        return value

    @field_validator("selection")
    @classmethod
    def _selects_what_is_there(
        cls, value: SelectionConfig, others: ValidationInfo
    ) -> SelectionConfig:
        if value.select == "turns" and _whole_corpus(others):
            raise ValueError(
                "with retrieval.pool corpus there are no turns: select top, sources or gumbel"
            )
        scoring = others.data.get("scoring")
        if value.weigh == "proportional" and scoring and not scoring.scorer.gives_weights:
            raise ValueError(
                "weigh proportional needs the scorer matching, whose scores are weights"
            )
        return value

    @field_validator("mixture")
    @classmethod
    def _gradients_are_known(cls, value: MixtureConfig, others: ValidationInfo) -> MixtureConfig:
        surrogate, scoring = others.data.get("surrogate"), others.data.get("scoring")
        by_gradients = value.alpha == "auto" or (scoring and scoring.scorer.by_gradients)
        if surrogate and by_gradients and not surrogate.adapter.by_layer:
            raise ValueError(
                "gradients of single examples are taken at the surrogate, and are not known of the "
                f"adapter {surrogate.adapter.kind}: set surrogate.adapter.kind to lora "
                "(finetune.adapter.kind may stay), or alpha to a number and scoring.scorer to "
                "nearest"
            )
        return value

    @field_validator("estimate")
    @classmethod
    def _folds_that_did_not_choose(
        cls, value: EstimateConfig, others: ValidationInfo
    ) -> EstimateConfig:
        mixture, scoring = others.data.get("mixture"), others.data.get("scoring")
        computed = mixture is not None and mixture.alpha == "auto"
        if computed and scoring and VALIDATION in scoring.scorer.reads and value.one_surrogate:
            raise ValueError(
                f"the scorer {scoring.scorer.name} chooses rows by the documents that validate, so "
                "that others have to tell what these are worth: set folds to 2 at least, or at to "
                "start"
            )
        return value

    @field_validator("evaluation")
    @classmethod
    def _metrics_of_texts(cls, value: EvaluationConfig, others: ValidationInfo) -> EvaluationConfig:
        backbone = others.data.get("backbone")
        for name in ("metrics", "tasks"):
            asked = getattr(value, name)
            if asked and backbone is not None and not writes_answers(backbone):
                raise ValueError(
                    f"{name} ({', '.join(asked)}) compare texts, and this kind of backbone "
                    "writes none: leave them out; samples.dino and samples.clip measure pictures"
                )
        return value

    @field_validator("samples")
    @classmethod
    def _pictures_to_measure(cls, value: SampleConfig, others: ValidationInfo) -> SampleConfig:
        backbone = others.data.get("backbone")
        asked = [name for name in ("heldout", "dino", "clip") if getattr(value, name)]
        if asked and backbone is not None and not kind_of(backbone).draws_pictures:
            raise ValueError(
                f"expected no {' and '.join(asked)}: pictures are looked at, and this kind of "
                "backbone draws none; evaluation.metrics compare texts"
            )
        return value

    @field_validator("samples")
    @classmethod
    def _prompts_on_the_way(cls, value: SampleConfig, others: ValidationInfo) -> SampleConfig:
        for section in ("surrogate", "finetune"):
            training = others.data.get(section)
            if training is not None and training.sample_every and not value.all_prompts:
                raise ValueError(
                    f"{section}.sample_every draws the first of samples.prompts on the way: give "
                    "some, or samples.dreambooth"
                )
        return value

    @field_validator("baselines")
    @classmethod
    def _prompts_for_baseline(
        cls, value: tuple[Baseline, ...], others: ValidationInfo
    ) -> tuple[Baseline, ...]:
        if "generated" in value and _makes_no_rows(others):
            raise ValueError("the baseline generated needs generated.prompts")
        split = others.data.get("split")
        if "all_data" in value and split and split.use == 1:
            raise ValueError("with split.use 1, adaptation_only is all_data: name that one alone")
        return value

    @field_validator("corpus", "adaptation", "heldout", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path | dict | SourceConfig) else value
