"""Losses of many examples under the backbone as it stands, without gradients."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from albat_core.backbones.base import Backbone, Encoded, length_batches
from albat_core.progress import track


def example_losses(
    backbone: Backbone, encoded: Sequence[Encoded], batch_tokens: int, label: str = ""
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return each example's total loss in nats, (n,), and the units it falls on, (n,).

    Args:
        backbone: with or without an adapter.
        encoded: the examples.
        batch_tokens: tokens in a batch, padding included.
        label: names the progress line; none: no line.
    """
    totals = np.zeros(len(encoded))
    units = np.zeros(len(encoded), dtype=np.int64)
    with torch.inference_mode(), track(label, len(encoded), "examples") as advance:
        for batch in length_batches([e.length for e in encoded], batch_tokens):
            losses = backbone.losses([encoded[i] for i in batch])
            totals[batch] = losses.total.double().cpu().numpy()
            units[batch] = losses.units.cpu().numpy()
            advance(len(batch))
    return totals, units


def advantages(
    backbone: Backbone, encoded: Sequence[Encoded], batch_tokens: int, label: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each example's mean loss without and with the attached adapter, (n,) nats per unit.

    Both passes share their batches, so that what a batch adds to a loss cancels in the difference.
    """
    untouched = np.zeros(len(encoded))
    adapted = np.zeros(len(encoded))
    with torch.inference_mode(), track(label, len(encoded), "examples") as advance:
        for positions in length_batches([e.length for e in encoded], batch_tokens):
            batch = [encoded[i] for i in positions]
            with backbone.adapter_disabled():
                untouched[positions] = backbone.losses(batch).mean.double().cpu().numpy()
            adapted[positions] = backbone.losses(batch).mean.double().cpu().numpy()
            advance(len(positions))
    return untouched, adapted
