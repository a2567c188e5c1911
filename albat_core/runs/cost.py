"""What a run will take: time and memory by stage, from a few batches that are measured."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from albat_core.backbones import open_backbone, open_embedder, open_splitter, precomputes
from albat_core.backbones.base import Backbone, Encoded, FixedNoise, forward_units
from albat_core.backbones.batches import each_encoded
from albat_core.memory import measured
from albat_core.records.examples import Example
from albat_core.records.mixtures import Mixture
from albat_core.records.runs import ADAPTATION_ONLY, ALBAT, ALL_DATA
from albat_core.runs.config import RunConfig
from albat_core.seeding import derive_seed
from albat_core.sources.counting import Extent, extent_of, spread
from albat_core.training.config import FinetuneConfig, in_steps, penalty_weight

_FEW, _MANY = 8, 64  # rows that are encoded: where that is costly, and where not

Compute = Callable[[list[Encoded]], object]


@dataclass(frozen=True)
class StageCost:
    """What a stage will take.

    Args:
        name: of the stage.
        of: what it is done to.
        seconds: of computing, at most; None: not measured.
        bytes: of memory at its peak, the model included; 0: no model computes.
    """

    name: str
    of: str
    seconds: float | None
    bytes: int


@dataclass(frozen=True)
class _Rate:
    """What one unit takes, and a batch."""

    seconds: float = 0.0
    bytes: int = 0


@dataclass(frozen=True)
class _Embedding:
    """What embedding takes, in units of what embeds: an encoder has others than the backbone."""

    rate: _Rate
    dimension: int
    corpus_units: float
    own_units: float


@dataclass(frozen=True)
class _Rows:
    """How many rows there are of each role, and one's units on average."""

    corpus: float
    own: float
    """Adaptation rows that are not held out, and used."""
    all_own: float
    """Those that are not held out."""
    heldout: float
    corpus_units: float
    own_units: float


def expected_costs(config: RunConfig) -> list[StageCost]:
    """Return what each stage of a run will take, the sum last.

    A stage computes one full batch of the run's own rows, on the run's device, and the rest is
    counted. Trainings are counted to their last step, where most end earlier, a smaller backbone
    as one that is trusted. Not counted: a prefilter, building and searching the index,
    decontamination, samples, answers and tasks of lm-eval.

    Args:
        config: of a run whose inputs can be read.

    Raises:
        AlbatError: a row cannot be used, or there is no room for one.
    """
    split = open_splitter(config.backbone).pieces
    own = extent_of(config.adaptation, split)
    corpus = extent_of(config.corpus, split)
    heldout = extent_of(config.heldout, split)
    if not config.corpus:  # rows that the backbone makes: taken to be like one's own
        corpus = Extent(own.sample, config.generated.rows)
    with open_backbone(config.backbone, config.runtime) as backbone:
        probe = _Probe(backbone, config, own.sample, corpus.sample)
        free = own.count * (1.0 if config.heldout else 1 - config.split.test)
        rows = _Rows(
            corpus=corpus.count,
            own=free * config.split.use,
            all_own=free,
            heldout=heldout.count or own.count - free,
            corpus_units=probe.mean_units(probe.corpus),
            own_units=probe.mean_units(probe.own),
        )
        reading = own.seconds + corpus.seconds + heldout.seconds
        costs = [
            StageCost("read and cut", _counted(rows.corpus, "corpus rows"), reading, 0),
            *_before_training(config, rows, probe),
            *_trainings(config, rows, probe),
        ]
    if config.scoring.by_smaller:
        costs += _by_smaller(config, rows, own.sample, corpus.sample)
    total = sum(cost.seconds or 0.0 for cost in costs)
    return [*costs, StageCost("in all", "", total, max(cost.bytes for cost in costs))]


def _before_training(config: RunConfig, rows: _Rows, probe: _Probe) -> list[StageCost]:
    """Return the costs of inputs, embeddings and the index."""
    kept = rows.corpus * config.prefilter.share
    own = rows.own + rows.heldout
    costs = []
    if kept < rows.corpus:
        costs.append(StageCost("prefilter", _counted(rows.corpus, "corpus rows"), None, 0))
    if precomputes(config.backbone):
        rate = probe.precompute()
        told = _counted(kept + own, "rows")
        costs.append(StageCost("compute inputs", told, (kept + own) * rate.seconds, rate.bytes))
    if not config.embeds_corpus or config.embedding.vectors.adaptation.paths:
        return costs  # nothing is embedded here
    eye = probe.embed()
    fresh = 0.0 if config.embedding.vectors.corpus.paths else kept
    seconds = (fresh * eye.corpus_units + own * eye.own_units) * eye.rate.seconds
    costs.append(StageCost("embed", _counted(fresh + own, "rows"), seconds, eye.rate.bytes))
    vectors = min(kept * eye.dimension * 4, config.index.memory_gb * 1e9)
    told = f"{eye.dimension:,} dimensions, in the machine's memory"
    return [*costs, StageCost("search", told, None, round(vectors))]


def _trainings(config: RunConfig, rows: _Rows, probe: _Probe) -> list[StageCost]:
    """Return the costs of all that has an adapter: trainings, scores, gradients, evaluation."""
    scorer, auto = config.scoring.scorer, config.mixture.alpha == "auto"
    folds = min(config.estimate.folds, config.split.folds)
    at_surrogates = auto and config.estimate.at == "surrogates"
    surrogates = folds if at_surrogates else int(scorer.needs_surrogate)
    costs = []
    probe.attach(config.surrogate)
    forward = probe.forward(config.scoring.batch_tokens)
    if surrogates:
        costs.append(_surrogates("train surrogates", surrogates, config, rows, probe, forward))
    gradient = probe.gradients() if auto or scorer.by_gradients else _Rate()
    candidates, name = _candidates(config, rows), "score"
    if config.scoring.by_smaller:
        candidates, name = min(candidates, config.scoring.smaller.sample), "score a sample"
    costs += _scores(name, candidates, config, rows, probe, forward, gradient)
    if auto:
        times = folds if at_surrogates else 1
        looked = min(config.estimate.rows, config.selection.rows)
        units = looked * rows.corpus_units + rows.own * rows.own_units / times
        told = _counted(times * looked + rows.own, "gradients")
        costs.append(StageCost("estimate", told, times * units * gradient.seconds, gradient.bytes))
    return [*costs, *_arms(config, rows, probe)]


def _by_smaller(
    config: RunConfig, rows: _Rows, own: Sequence[Example], corpus: Sequence[Example]
) -> list[StageCost]:
    """Return the costs of a smaller backbone's surrogate, and of the scores by it."""
    with open_backbone(config.scoring.smaller.of(config.backbone), config.runtime) as backbone:
        probe = _Probe(backbone, config, own, corpus)
        probe.attach(config.surrogate)
        forward = probe.forward(config.scoring.batch_tokens)
        gradient = probe.gradients() if config.scoring.scorer.by_gradients else _Rate()
        return [
            _surrogates("train a smaller surrogate", 1, config, rows, probe, forward),
            *_scores("score", _candidates(config, rows), config, rows, probe, forward, gradient),
        ]


def _candidates(config: RunConfig, rows: _Rows) -> float:
    """Return how many corpus rows are scored at most."""
    kept = rows.corpus * config.prefilter.share
    return kept if config.retrieval.pool == "corpus" else min(kept, config.retrieval.candidates)


def _surrogates(
    name: str, count: int, config: RunConfig, rows: _Rows, probe: _Probe, forward: _Rate
) -> StageCost:
    its = in_steps(config.surrogate, round(rows.own))
    step = probe.step(its, alpha=0.0, rows=rows.own)
    seconds = count * its.steps * step.seconds + _looks(its, rows, config, probe, forward)
    return StageCost(name, f"{count} times {its.steps} steps", seconds, step.bytes)


def _scores(
    name: str,
    candidates: float,
    config: RunConfig,
    rows: _Rows,
    probe: _Probe,
    forward: _Rate,
    gradient: _Rate,
) -> list[StageCost]:
    """Return the costs of scoring candidates, where a model does that."""
    scorer = config.scoring.scorer
    if scorer.by_losses:
        seconds = 2 * candidates * rows.corpus_units * forward.seconds
        seconds *= probe.levels(FixedNoise())
        return [StageCost(name, _counted(candidates, "candidates"), seconds, forward.bytes)]
    if scorer.by_gradients:
        times = max(scorer.surrogate_checkpoints, 1)
        units = candidates * rows.corpus_units + rows.own * rows.own_units
        told = _counted(times * candidates, "gradients")
        return [StageCost(name, told, times * units * gradient.seconds, gradient.bytes)]
    return []


def _arms(config: RunConfig, rows: _Rows, probe: _Probe) -> list[StageCost]:
    """Return the costs of fine-tuning every arm, and of evaluating them."""
    training = config.finetune
    probe.attach(training)
    forward = probe.forward(config.evaluation.batch_tokens)
    length = in_steps(training, round(rows.own))
    alone, mixed = (probe.step(length, alpha=alpha, rows=rows.own) for alpha in (0.0, 0.5))
    arms = {*config.baselines, ALBAT}
    if training.stretch > 1 or config.mixture.fall_back:
        arms.add(ADAPTATION_ONLY)
    trainings = 1 + config.refit
    seconds = steps = 0.0
    for arm in arms:
        free = rows.all_own if arm == ALL_DATA else rows.own
        its, rate = in_steps(training, round(free)), alone
        longest = float(its.steps)
        if arm not in (ADAPTATION_ONLY, ALL_DATA):
            longest, rate = its.steps * training.stretch, mixed
        steps += trainings * longest
        seconds += trainings * longest * rate.seconds + _looks(its, rows, config, probe, forward)
    told = f"{trainings * len(arms)} trainings, {_counted(steps, 'steps')}"
    memory = max(alone.bytes, mixed.bytes)
    names = 1 + len({*config.baselines, ALBAT})
    noise = FixedNoise(config.evaluation.noise_levels)
    units = names * rows.heldout * rows.own_units * probe.levels(noise)
    return [
        StageCost("fine-tune", told, seconds, memory),
        StageCost(
            "evaluate",
            f"{names} arms, {_counted(rows.heldout, 'rows')}",
            units * forward.seconds,
            forward.bytes,
        ),
    ]


def _looks(
    training: FinetuneConfig, rows: _Rows, config: RunConfig, probe: _Probe, forward: _Rate
) -> float:
    """Return the seconds that a training spends on validation rows."""
    looks = training.steps / training.evaluate_every + 1
    levels = probe.levels(FixedNoise(training.noise_levels))
    return looks * rows.own / config.split.folds * rows.own_units * levels * forward.seconds


def _counted(count: float, what: str) -> str:
    """Return a number as it is told: two digits say enough of an estimate."""
    digits = max(int(math.log10(count)) - 2, 0) if count >= 1 else 0
    return f"{round(count, -digits):,.0f} {what}"


class _Probe:
    """Measures what a backbone takes for single batches.

    Args:
        backbone: without adapter.
        config: of the run.
        own: adaptation rows, as they are cut.
        corpus: corpus rows likewise.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: RunConfig,
        own: Sequence[Example],
        corpus: Sequence[Example],
    ) -> None:
        self._backbone = backbone
        self._config = config
        count = config.finetune.batch_size
        self._examples = spread(own, count), spread(corpus, count)
        most = _FEW if precomputes(config.backbone) else _MANY
        self._cut = [spread(rows, min(most, len(rows))) for rows in (own, corpus)]
        self.own, self.corpus = map(backbone.encode, self._cut)

    @staticmethod
    def mean_units(rows: Sequence[Encoded]) -> float:
        """Return the units of a row, on average."""
        return float(np.mean([row.length for row in rows]))

    def levels(self, noise: FixedNoise) -> int:
        """Return how many times a row goes through the model for its loss."""
        return forward_units(self._backbone, self.own[:1], noise) // self.own[0].length

    def attach(self, training: FinetuneConfig) -> None:
        """Attach a new adapter."""
        self._backbone.detach_adapter()
        self._backbone.attach_adapter(training.adapter, derive_seed(self._config.seed, "adapter"))

    def precompute(self) -> _Rate:
        """Return what a row's costly inputs take."""
        rows = spread(self._examples[1], _FEW)
        self._backbone.precompute(rows[:1])
        with measured(self._backbone.device) as usage:
            self._backbone.precompute(rows)
        return _Rate(usage.seconds / len(rows), usage.bytes)

    def embed(self) -> _Embedding:
        """Return what embedding takes."""
        c, dimension = self._config, 0
        with open_embedder(c.embedding, c.backbone, c.runtime) as embedder:
            own, corpus = map(embedder.encode, self._cut)

            def embed(batch: list[Encoded]) -> None:
                nonlocal dimension
                dimension = embedder.embed(batch).shape[1]

            rate = self._batch(corpus, c.embedding.batch_tokens, embed)
        return _Embedding(rate, dimension, self.mean_units(corpus), self.mean_units(own))

    def forward(self, budget: int) -> _Rate:
        """Return what a unit's loss takes."""
        import torch

        self._backbone.training(False)
        noise = FixedNoise()

        def compute(batch: list[Encoded]) -> None:
            with torch.inference_mode():
                self._backbone.losses(batch, noise)

        rate = self._batch(self.corpus, budget, compute)
        return _Rate(rate.seconds / self.levels(noise), rate.bytes)

    def gradients(self) -> _Rate:
        """Return what the gradient of a unit takes, at the adapter that is attached."""
        from albat_core.measures.gradients import Projection, example_gradients

        c = self._config.estimate
        noise, projection = FixedNoise(c.noise_levels), Projection(c.dimension)
        take = partial(example_gradients, self._backbone, batch_tokens=c.batch_tokens, noise=noise)
        return self._batch(
            self.corpus, c.batch_tokens, lambda batch: take(batch, projection=projection)
        )

    def step(self, training: FinetuneConfig, alpha: float, rows: float) -> _Rate:
        """Return what an optimizer step takes, on a mixture with this weight.

        Args:
            training: how, its length in steps.
            alpha: the mixing weight.
            rows: of the adaptation set, which are read as often as in the training.
        """
        own, corpus = self._examples
        weights = np.full(len(corpus), 1 / len(corpus))
        mixture = Mixture(own, corpus if alpha else [], weights[: len(corpus) * bool(alpha)], alpha)
        steps = math.ceil(training.steps * len(own) / rows)
        rate = _Rate()
        for _ in range(2):  # the first finds what the device has to prepare
            rate = self._trained(mixture, training.model_copy(update={"steps": steps}))
        return rate

    def _trained(self, mixture: Mixture, training: FinetuneConfig) -> _Rate:
        from albat_core.training.checkpoint import CheckpointFile
        from albat_core.training.trainer import Trainer

        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                self._backbone,
                mixture,
                [],
                training,
                penalty_weight(training, self._config.backbone),
                self._config.seed,
                CheckpointFile(str(Path(folder, "none.safetensors"))),
                math.inf,
                until=1,
            )
            trainer.note_untouched()
            with measured(self._backbone.device) as usage:
                trainer.train("")
        return _Rate(usage.seconds, usage.bytes)

    def _batch(self, rows: Sequence[Encoded], budget: int, compute: Compute) -> _Rate:
        """Return what a unit takes in a full batch of the longest rows."""
        longest = sorted(rows, key=lambda row: -row.length)
        count = max(budget // longest[0].length, 1)
        batch = [longest[place % len(longest)] for place in range(count)]
        compute(batch[:1])
        with measured(self._backbone.device) as usage:
            each_encoded(batch, budget, lambda places: compute([batch[n] for n in places]))
        return _Rate(usage.seconds / sum(row.length for row in batch), usage.bytes)
