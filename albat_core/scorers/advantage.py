"""Surrogate advantage: how much better the surrogate predicts a row than the backbone does."""

from collections.abc import Sequence

import numpy as np

from albat_core.backbones.base import Backbone, FixedNoise, forward_units
from albat_core.measures.losses import advantages
from albat_core.records.candidates import Candidates
from albat_core.records.examples import Example
from albat_core.scorers.base import LABEL, Scores, rank_correlation

_LEVELS = (4, 8, 16, 32, 64)


class Advantage:
    """Surrogate advantage s(c) = l(c; backbone) - l(c; surrogate), loss per unit, any sign.

    It estimates log P_T(c) / P_C(c) per unit: the backbone models the corpus and the surrogate
    the adaptation set (cross-entropy difference, Moore and Lewis 2010; RHO-loss, arXiv 2206.07137).

    Args:
        backbone: with the surrogate's adapter attached.
        batch_tokens: tokens in a batch.
        noise: the same for every candidate and both passes.
    """

    def __init__(self, backbone: Backbone, batch_tokens: int, noise: FixedNoise) -> None:
        self._backbone = backbone
        self._batch_tokens = batch_tokens
        self._noise = noise
        self.passes = 0

    def score(self, candidates: Candidates) -> dict[str, Scores]:
        """Return the advantage with its standard error, and both losses."""
        blocks = []
        for examples in candidates.blocks():
            encoded = self._backbone.encode(examples)
            self.passes += 2 * forward_units(self._backbone, encoded, self._noise)
            found = advantages(self._backbone, encoded, self._batch_tokens, self._noise, LABEL)
            blocks.append((found.untouched, found.adapted, found.error))
        untouched, adapted, error = (np.concatenate(column) for column in zip(*blocks, strict=True))
        return {
            "loss_backbone": untouched,
            "loss_surrogate": adapted,
            "score": untouched - adapted,
            "score_error": error,
        }


def choose_noise_levels(
    backbone: Backbone, examples: Sequence[Example], batch_tokens: int, agreement: float
) -> tuple[int, list[dict[str, float]]]:
    """Return the fewest noise levels at which ranks do not depend on the noise drawn.

    The advantage of every example is measured twice, with independent noise; levels are doubled
    until both give nearly the same ranks (Spearman).

    Args:
        backbone: with the surrogate's adapter attached.
        examples: a sample of the candidates.
        batch_tokens: tokens in a batch.
        agreement: the correlation asked for.

    Returns:
        the levels, and what was tried: ``levels`` with their ``agreement``.
    """
    encoded = backbone.encode(examples)
    tried = []
    for levels in _LEVELS:
        pair = [
            advantages(backbone, encoded, batch_tokens, FixedNoise(levels, replicate))
            for replicate in (1, 2)
        ]
        first, second = (a.untouched - a.adapted for a in pair)
        tried.append({"levels": levels, "agreement": rank_correlation(first, second)})
        if tried[-1]["agreement"] >= agreement:
            break
    return levels, tried
