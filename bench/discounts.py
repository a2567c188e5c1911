"""How well scores that allow for their errors choose rows.

Rows are chosen by half of their tokens, and the other half says what they are worth. Of runs with
texts: ``python -m bench.discounts CONFIG...``
"""

import sys
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from albat_core.backbones import open_backbone
from albat_core.backbones.base import adapted
from albat_core.backbones.batches import length_batches
from albat_core.measures.discounts import Discount, discounted, standard_errors
from albat_core.records.candidates import Candidates, read_candidates
from albat_core.runs.chain import Chain
from albat_core.store.artifacts import ArtifactStore
from flows.config import load_config

FIRST = 200
"""Rows that are chosen."""
SHORT = 15
"""Units below which a row is short."""

Floats = NDArray[np.float64]


def differences(path: str) -> list[Floats]:
    """Return each candidate's differences of loss, backbone less surrogate, by token."""
    chain = Chain(load_config(path))
    store = ArtifactStore(chain.config.runtime.root)
    candidates = Candidates(store, read_candidates(store, chain.candidates))
    surrogate = store.folder(chain.surrogate)
    found: list[Floats] = []
    with (
        open_backbone(chain.config.backbone, chain.config.runtime) as backbone,
        adapted(backbone, surrogate),
        torch.inference_mode(),
    ):
        for block in candidates.blocks():
            encoded = backbone.encode(block)
            its: list[Floats] = [np.zeros(0)] * len(block)
            for places in length_batches([e.length for e in encoded], 8192):
                batch = [encoded[place] for place in places]
                with backbone.adapter_disabled():
                    before = backbone.losses(batch)
                change = (before.each - backbone.losses(batch).each).double().cpu().numpy()
                for place, row, mask in zip(places, change, before.mask.cpu().numpy(), strict=True):
                    its[place] = row[mask]
            found += its
    return found


def half(rows: list[Floats]) -> tuple[Floats, Floats]:
    """Return the mean of each row and its standard error."""
    means = np.array([row.mean() for row in rows])
    squares = np.array([np.square(row - row.mean()).sum() for row in rows])
    return means, standard_errors(squares, np.array([len(row) for row in rows]))


def main() -> None:
    """Print, for each way to allow for errors, what the rows chosen are worth."""
    print(f"| run | {FIRST} rows by | worth by the other half | below {SHORT} tokens |")
    print("|---|---|---:|---:|")
    for path in sys.argv[1:]:
        rows = [row for row in differences(path) if len(row) > 1]
        short = np.array([len(row) for row in rows]) < SHORT
        scores, errors = half([row[::2] for row in rows])
        worth, _ = half([row[1::2] for row in rows])
        for how in get_args(Discount):
            best = np.argsort(-discounted(scores, errors, how), kind="stable")[:FIRST]
            print(f"| {path} | {how} | {worth[best].mean():.3f} | {short[best].mean():.1%} |")
        print(f"| {path} | all {len(rows):,} | {worth.mean():.3f} | {short.mean():.1%} |")


if __name__ == "__main__":
    main()
