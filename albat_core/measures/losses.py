"""Losses of many examples under a backbone as it stands, without gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from albat_core.backbones.base import Backbone, Encoded, FixedNoise
from albat_core.backbones.batches import Each, each_encoded
from albat_core.errors import BackboneError
from albat_core.progress import track

Floats = NDArray[np.float64]


def example_losses(
    backbone: Backbone,
    encoded: Sequence[Encoded],
    batch_tokens: int,
    noise: FixedNoise,
    label: str = "",
    units_each: int | None = None,
    each: Each | None = None,
) -> tuple[Floats, NDArray[np.int64]]:
    """Return each example's total loss, (n,), and the units it falls on, (n,).

    Args:
        backbone: with or without an adapter.
        encoded: the examples.
        batch_tokens: tokens in a batch, padding included.
        noise: what a backbone that adds noise adds.
        label: names the progress line; none: no line.
        units_each: the first units of an example that count; None: all.
        each: computes batches in place of ``each_encoded``.
    """
    import torch

    totals = np.zeros(len(encoded))
    units = np.zeros(len(encoded), dtype=np.int64)
    with torch.inference_mode(), track(label, len(encoded), "examples") as advance:

        def measure(batch: list[int]) -> None:
            losses = backbone.losses([encoded[i] for i in batch], noise)
            losses = losses if units_each is None else losses.first(units_each)
            totals[batch] = losses.total.double().cpu().numpy()
            units[batch] = losses.units.cpu().numpy()
            advance(len(batch))

        if each is None:
            each_encoded(encoded, batch_tokens, measure)
        else:
            each([e.length for e in encoded], [e.shape for e in encoded], measure)
    return totals, units


def is_worse(totals: ArrayLike, best: ArrayLike, units: ArrayLike) -> bool:
    """Tell whether losses are above others by more than two standard errors of the difference.

    The difference is a ratio, sum(totals - best) / sum(units), paired by example.

    Args:
        totals: of each example, (n,).
        best: likewise, (n,).
        units: that they fall on, (n,) >= 1.
    """
    n = np.asarray(units, dtype=np.float64)
    each = np.asarray(totals) - np.asarray(best)
    difference = each.sum() / n.sum()
    error = np.sqrt(np.square(each - difference * n).sum()) / n.sum()
    return bool(difference > 2 * error)


def refuse_not_finite(
    losses: Floats, names: Sequence[str], remedy: str, what: str = "losses"
) -> None:
    """Raise a BackboneError that names the first example whose loss is NaN or infinite.

    Args:
        losses: (n,).
        names: of the examples.
        remedy: what to do about it.
        what: they are.
    """
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        raise BackboneError(
            f"expected finite {what}, got NaN or infinity",
            where=f"example {names[int(bad[0])]}",
            remedy=remedy,
        )


@dataclass(frozen=True)
class Advantages:
    """What an adapter changes, by example; each (n,) float64, per unit.

    Args:
        untouched: mean loss of the backbone.
        adapted: mean loss with the adapter.
        squares: sum of squared deviations of its units' differences from their mean, u - 1 times
            their variance.
        units: u, int64 >= 1.
    """

    untouched: Floats
    adapted: Floats
    squares: Floats
    units: NDArray[np.int64]


def advantages(
    backbone: Backbone,
    encoded: Sequence[Encoded],
    batch_tokens: int,
    noise: FixedNoise,
    label: str = "",
) -> Advantages:
    """Measure each example's mean loss without and with the attached adapter.

    Both passes share their batches and their noise, so that what these add to a loss cancels in
    the difference. Noise levels are strata of a sample: there neighbours tell the variance, half of
    the mean square of their differences (Wolter, Introduction to Variance Estimation, 2007, 8.2).

    Args:
        backbone: with an adapter.
        encoded: the examples.
        batch_tokens: tokens in a batch, padding included.
        noise: what a backbone that adds noise adds.
        label: names the progress line; none: no line.
    """
    import torch

    untouched, adapted, squares = (np.zeros(len(encoded)) for _ in range(3))
    units = np.zeros(len(encoded), dtype=np.int64)
    with torch.inference_mode(), track(label, len(encoded), "examples") as advance:

        def measure(positions: list[int]) -> None:
            batch = [encoded[i] for i in positions]
            with backbone.adapter_disabled():
                before = backbone.losses(batch, noise)
            after = backbone.losses(batch, noise)
            untouched[positions] = before.mean.double().cpu().numpy()
            adapted[positions] = after.mean.double().cpu().numpy()
            units[positions] = before.units.cpu().numpy()
            each = torch.where(before.mask, before.each - after.each, 0.0).double()
            if backbone.noisy:
                found = each.diff(dim=1).square().sum(1) / 2
            else:
                mean = each.sum(1) / before.units
                found = torch.where(before.mask, each - mean[:, None], 0.0).square().sum(1)
            squares[positions] = found.cpu().numpy()
            advance(len(positions))

        each_encoded(encoded, batch_tokens, measure)
    return Advantages(untouched, adapted, squares, units)
