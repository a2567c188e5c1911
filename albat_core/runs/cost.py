"""What a run will take: time and memory by stage, from a few batches that are measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from albat_core.backbones import kind_of, open_backbone, open_splitter, precomputes
from albat_core.backbones.base import FixedNoise
from albat_core.errors import InputError
from albat_core.records.examples import Example
from albat_core.records.runs import ADAPTATION_ONLY, ALBAT, ALL_DATA
from albat_core.runs.config import RunConfig
from albat_core.runs.probe import Probe, Rate
from albat_core.sources.counting import Extent, extent_of
from albat_core.training.config import FinetuneConfig, in_steps, penalty_weight


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
    decontamination, samples, answers and tasks of lm-eval, rows that the backbone makes, the proxy.

    Args:
        config: of a run whose inputs can be read.

    Raises:
        AlbatError: a row cannot be used, or there is no room for one.
    """
    split = open_splitter(config.backbone).pieces
    own = extent_of(config.adaptation, split)
    corpus = extent_of(config.corpus, split)
    heldout = extent_of(config.heldout, split)
    for role, extent in (("adaptation", own), ("corpus", corpus if config.corpus else own)):
        if not extent.sample:
            raise InputError(
                "expected rows that can be used, found none at the beginning of its files",
                where=role,
                remedy="`albat check` without --cost says what becomes of its rows",
            )
    if not config.corpus:  # rows that the backbone makes: taken to be like one's own
        corpus = Extent(own.sample, config.generated.rows)
    with open_backbone(config.backbone, config.runtime) as backbone:
        probe = Probe(backbone, config, own.sample, corpus.sample)
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


def _before_training(config: RunConfig, rows: _Rows, probe: Probe) -> list[StageCost]:
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


def _trainings(config: RunConfig, rows: _Rows, probe: Probe) -> list[StageCost]:
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
    gradient = probe.gradients() if auto or scorer.by_gradients else Rate()
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
        probe = Probe(backbone, config, own, corpus)
        probe.attach(config.surrogate)
        forward = probe.forward(config.scoring.batch_tokens)
        gradient = probe.gradients() if config.scoring.scorer.by_gradients else Rate()
        return [
            _surrogates("train a smaller surrogate", 1, config, rows, probe, forward),
            *_scores("score", _candidates(config, rows), config, rows, probe, forward, gradient),
        ]


def _candidates(config: RunConfig, rows: _Rows) -> float:
    """Return how many corpus rows are scored at most."""
    kept = rows.corpus * config.prefilter.share
    return kept if config.retrieval.pool == "corpus" else min(kept, config.retrieval.candidates)


def _surrogates(
    name: str, count: int, config: RunConfig, rows: _Rows, probe: Probe, forward: Rate
) -> StageCost:
    its = in_steps(config.surrogate, round(rows.own))
    step = probe.step(its, alpha=0.0, rows=rows.own)
    seconds = count * its.steps * step.seconds
    own = rows.own * rows.own_units
    seconds += _beside_steps(its, its.steps, count, own, config, probe, forward)
    return StageCost(name, f"{count} times {its.steps} steps", seconds, step.bytes)


def _scores(
    name: str,
    candidates: float,
    config: RunConfig,
    rows: _Rows,
    probe: Probe,
    forward: Rate,
    gradient: Rate,
) -> list[StageCost]:
    """Return the costs of scoring candidates, where a model does that."""
    scorer = config.scoring.scorer
    if scorer.by_losses:
        wanted = config.scoring.noise_levels
        levels = probe.levels(FixedNoise() if wanted == "auto" else FixedNoise(wanted))
        seconds = 2 * candidates * rows.corpus_units * forward.seconds * levels
        told = _counted(candidates, "candidates")
        if levels > 1:  # so many where `auto` has to find out
            told += f", {levels} noise levels"
        return [StageCost(name, told, seconds, forward.bytes)]
    if scorer.by_gradients:
        times = max(scorer.surrogate_checkpoints, 1)
        units = candidates * rows.corpus_units + rows.own * rows.own_units
        told = _counted(times * candidates, "gradients")
        return [StageCost(name, told, times * units * gradient.seconds, gradient.bytes)]
    return []


def _arms(config: RunConfig, rows: _Rows, probe: Probe) -> list[StageCost]:
    """Return the costs of fine-tuning every arm, and of evaluating them."""
    training = config.finetune
    probe.attach(training)
    forward = probe.forward(config.evaluation.batch_tokens)
    length = in_steps(training, round(rows.own))
    alpha = config.mixture.alpha
    most = kind_of(config.backbone).highest_alpha if alpha == "auto" else alpha
    alone, mixed = (probe.step(length, alpha=each, rows=rows.own) for each in (0.0, most))
    mixed = max(alone, mixed, key=lambda rate: rate.seconds)  # whichever rows are longer
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
        seconds += trainings * longest * rate.seconds
        own = free * rows.own_units
        seconds += _beside_steps(its, longest, trainings, own, config, probe, forward)
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


def _beside_steps(
    training: FinetuneConfig,
    steps: float,
    trainings: int,
    units: float,
    config: RunConfig,
    probe: Probe,
    forward: Rate,
) -> float:
    """Return the seconds that equal trainings spend beside their steps.

    One looks at validation rows on its way; for a penalty, each passes over adaptation rows once
    without the adapter.

    Args:
        training: their settings.
        steps: that each takes.
        trainings: how many there are.
        units: of the rows that they train and validate on.
        config: of the run.
        probe: of its backbone.
        forward: what a unit's loss takes.
    """
    looks = steps / training.evaluate_every + 1
    levels = probe.levels(FixedNoise(training.noise_levels))
    passed = looks * levels * units / config.split.folds
    if penalty_weight(training, config.backbone):
        passed += trainings * units
    return passed * forward.seconds


def _counted(count: float, what: str) -> str:
    """Return a number as it is told: two digits say enough of an estimate."""
    digits = max(int(math.log10(count)) - 2, 0) if count >= 1 else 0
    return f"{round(count, -digits):,.0f} {what}"
