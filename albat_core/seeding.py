"""Random draws: every one comes from a generator that is named and derived from one seed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # torch takes a second to import, and who only configures does not need it
    import torch


def derive_seed(root_seed: int, *names: str | int) -> int:
    """Return the seed in [0, 2**63) of the generator that ``names`` call for."""
    text = "/".join([str(root_seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def numpy_generator(root_seed: int, *names: str | int) -> np.random.Generator:
    """Return the named NumPy generator."""
    return np.random.default_rng(derive_seed(root_seed, *names))


def torch_generator(root_seed: int, *names: str | int) -> torch.Generator:
    """Return the named torch generator, on the CPU so that devices agree on its draws."""
    import torch

    return torch.Generator().manual_seed(derive_seed(root_seed, *names))
