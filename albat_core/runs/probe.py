"""What single batches of a backbone take, measured on its device."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from albat_core.backbones import open_embedder, precomputes
from albat_core.backbones.base import Backbone, Encoded, FixedNoise, forward_units
from albat_core.backbones.batches import each_encoded
from albat_core.memory import measured
from albat_core.records.examples import Example
from albat_core.records.mixtures import Mixture
from albat_core.runs.config import RunConfig
from albat_core.seeding import derive_seed
from albat_core.sources.counting import spread
from albat_core.training.config import FinetuneConfig, penalty_weight

_FEW, _MANY = 8, 64  # rows that are encoded: where that is costly, and where not

Compute = Callable[[list[Encoded]], object]


@dataclass(frozen=True)
class Rate:
    """What one unit takes, and a batch."""

    seconds: float = 0.0
    bytes: int = 0


@dataclass(frozen=True)
class Embedding:
    """What embedding takes, in units of what embeds: an encoder has others than the backbone."""

    rate: Rate
    dimension: int
    corpus_units: float
    own_units: float


class Probe:
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

    def precompute(self) -> Rate:
        """Return what a row's costly inputs take."""
        rows = spread(self._examples[1], _FEW)
        self._backbone.precompute(rows[:1])
        with measured(self._backbone.device) as usage:
            self._backbone.precompute(rows)
        return Rate(usage.seconds / len(rows), usage.bytes)

    def embed(self) -> Embedding:
        """Return what embedding takes."""
        c, dimension = self._config, 0
        with open_embedder(c.embedding, c.backbone, c.runtime) as embedder:
            own, corpus = map(embedder.encode, self._cut)

            def embed(batch: list[Encoded]) -> None:
                nonlocal dimension
                dimension = embedder.embed(batch).shape[1]

            rate = self._batch(corpus, c.embedding.batch_tokens, embed)
        return Embedding(rate, dimension, self.mean_units(corpus), self.mean_units(own))

    def forward(self, budget: int) -> Rate:
        """Return what a unit's loss takes."""
        import torch

        self._backbone.training(False)
        noise = FixedNoise()

        def compute(batch: list[Encoded]) -> None:
            with torch.inference_mode():
                self._backbone.losses(batch, noise)

        rate = self._batch(self.corpus, budget, compute)
        return Rate(rate.seconds / self.levels(noise), rate.bytes)

    def gradients(self) -> Rate:
        """Return what the gradient of a unit takes, at the adapter that is attached."""
        from albat_core.measures.gradients import Projection, example_gradients

        c = self._config.estimate
        noise, projection = FixedNoise(c.noise_levels), Projection(c.dimension)
        take = partial(example_gradients, self._backbone, batch_tokens=c.batch_tokens, noise=noise)
        return self._batch(
            self.corpus, c.batch_tokens, lambda batch: take(batch, projection=projection)
        )

    def step(self, training: FinetuneConfig, alpha: float, rows: float) -> Rate:
        """Return what an optimizer step takes, on a mixture with this weight.

        The length is in steps; these read the adaptation set, of so many rows, as often as here.
        """
        own, corpus = self._examples
        weights = np.full(len(corpus), 1 / len(corpus))
        mixture = Mixture(own, corpus if alpha else [], weights[: len(corpus) * bool(alpha)], alpha)
        steps = math.ceil(training.steps * len(own) / rows)
        its = training.model_copy(update={"steps": steps})
        self._trained(mixture, its)  # finds what the device has to prepare
        return self._trained(mixture, its)

    def _trained(self, mixture: Mixture, training: FinetuneConfig) -> Rate:
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
            trainer.note_untouched()  # once a training: it is no part of a step
            with measured(self._backbone.device) as usage:
                trainer.train("")
        return Rate(usage.seconds, usage.bytes)

    def _batch(self, rows: Sequence[Encoded], budget: int, compute: Compute) -> Rate:
        """Return what a unit takes in a full batch of the longest rows."""
        longest = sorted(rows, key=lambda row: -row.length)
        count = max(budget // longest[0].length, 1)
        batch = [longest[place % len(longest)] for place in range(count)]
        compute(batch[:1])
        with measured(self._backbone.device) as usage:
            each_encoded(batch, budget, lambda places: compute([batch[n] for n in places]))
        return Rate(usage.seconds / sum(row.length for row in batch), usage.bytes)
