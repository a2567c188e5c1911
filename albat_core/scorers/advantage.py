"""Surrogate advantage: how much better the surrogate predicts a row than the backbone does."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from albat_core.backbones.base import Backbone, FixedNoise, forward_units
from albat_core.measures.discounts import standard_errors
from albat_core.measures.losses import advantages
from albat_core.records.candidates import Candidates
from albat_core.records.examples import Example
from albat_core.scorers.base import LABEL, Given, Measured, Scorer, Scores, rank_correlation

_LEVELS = (4, 8, 16, 32, 64)


class Advantage(Scorer):
    """Surrogate advantage s(c) = l(c; backbone) - l(c; surrogate), loss per unit, any sign.

    It estimates log P_T(c) / P_C(c) per unit: the backbone models the corpus and the surrogate
    the adaptation set (cross-entropy difference, Moore and Lewis 2010; RHO-loss, arXiv 2206.07137).
    """

    name: ClassVar[str] = "advantage"
    title: ClassVar[str] = "advantage, best rows"
    says: ClassVar[str] = (
        "how much better the surrogate predicts a row than the backbone, in nats per unit"
    )
    needs_surrogate: ClassVar[bool] = True
    by_row: ClassVar[bool] = True
    by_losses: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {"selection": {"select": "top"}}

    def measure(self, candidates: Candidates, given: Given) -> dict[str, Measured]:
        """Return both losses, and by how much the units of a row differ in their differences."""
        blocks = []
        for encoded in candidates.encoded(given.backbone.encode):
            given.passes += 2 * forward_units(given.backbone, encoded, given.noise)
            found = advantages(given.backbone, encoded, given.batch_tokens, given.noise, LABEL)
            blocks.append((found.untouched, found.adapted, found.squares, found.units))
        names = ("untouched", "adapted", "squares", "units")
        columns = zip(*blocks, strict=True)
        return {n: np.concatenate(column) for n, column in zip(names, columns, strict=True)}

    def conclude(self, measured: dict[str, Measured]) -> dict[str, Scores]:
        """Return the advantage with its standard error, and both losses."""
        untouched, adapted = measured["untouched"], measured["adapted"]
        return {
            "loss_backbone": untouched,
            "loss_surrogate": adapted,
            "score": untouched - adapted,
            "score_error": standard_errors(measured["squares"], measured["units"]),
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
