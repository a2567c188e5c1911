"""Batches drawn from the mixture by alpha and the weights, anew in each epoch."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from albat_core.seeding import numpy_generator


class MixtureSampler:
    """Says which rows are in the batch of any step; a function of the seed and the step alone.

    Adaptation rows come in a new random order each epoch. Backbone rows come in rounds of n
    draws; in a round row j is drawn floor or ceil of n w_j times (systematic sampling), in random
    order. Of every batch, alpha * size rows are from the backbone, exact over time.

    Args:
        adaptation_rows: rows of the adaptation set, at least 1.
        weights: (n_backbone,) float64, sums to 1; may be empty where alpha is 0.
        alpha: mixing weight, in [0, 1).
        batch_size: rows in a batch.
        seed: of its named generators.
    """

    def __init__(
        self,
        adaptation_rows: int,
        weights: NDArray[np.float64],
        alpha: float,
        batch_size: int,
        seed: int,
    ) -> None:
        self.rows = adaptation_rows
        self._weights = weights
        self._alpha = alpha
        self.batch_size = batch_size
        self._seed = seed
        self._adaptation_order = lru_cache(maxsize=2)(self._shuffle_adaptation)
        self._backbone_order = lru_cache(maxsize=2)(self._draw_backbone)

    def batch(self, step: int) -> tuple[list[int], list[int]]:
        """Return the adaptation rows and the backbone rows of a step, counted from 0."""
        before, after = self.drawn(step), self.drawn(step + 1)
        own, other = (range(*ends) for ends in zip(before, after, strict=True))
        return (
            [int(self._adaptation_order(n // self.rows)[n % self.rows]) for n in own],
            [
                int(self._backbone_order(n // len(self._weights))[n % len(self._weights)])
                for n in other
            ],
        )

    def drawn(self, steps: int) -> tuple[int, int]:
        """Return how many adaptation rows and backbone rows the first steps have together."""
        other = round(self._alpha * self.batch_size * steps)
        return steps * self.batch_size - other, other

    def _shuffle_adaptation(self, epoch: int) -> NDArray[np.int64]:
        return numpy_generator(self._seed, "adaptation order", epoch).permutation(self.rows)

    def _draw_backbone(self, turn: int) -> NDArray[np.int64]:
        generator = numpy_generator(self._seed, "backbone draws", turn)
        n = len(self._weights)
        marks = (generator.random() + np.arange(n)) / n
        ends = np.cumsum(self._weights)
        drawn = np.searchsorted(ends / ends[-1], marks, side="right").clip(0, n - 1)
        return generator.permutation(drawn)
