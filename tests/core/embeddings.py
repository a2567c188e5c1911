"""Drawn embeddings, as parts of a corpus that has no rows to read."""

from collections.abc import Callable

import numpy as np

from albat_core.records.vectors import EmbeddedPart

ROWS, D = 2000, 16

Embedded = Callable[..., list[EmbeddedPart]]


def clustered(rows: int = ROWS, dimension: int = D, seed: int = 0, spread: float = 3) -> np.ndarray:
    """Vectors around twenty centres, stretched so that whitening matters."""
    generator = np.random.default_rng(seed)
    centres = spread * generator.standard_normal((20, dimension))
    noise = generator.standard_normal((rows, dimension))
    stretched = (centres[generator.integers(20, size=rows)] + noise) * np.arange(1, dimension + 1)
    return (stretched + 5).astype(np.float32)
