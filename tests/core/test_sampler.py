"""Batches by alpha and weights."""

from collections import Counter

import numpy as np
import pytest

from albat_core.training.sampler import MixtureSampler

WEIGHTS = np.array([0.5, 0.3, 0.15, 0.05])


def sampler(alpha: float = 0.3, rows: int = 7, size: int = 5, seed: int = 0) -> MixtureSampler:
    return MixtureSampler(rows, WEIGHTS, alpha, size, seed)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.77])
def test_alpha_is_exact_over_time_and_batches_are_full(alpha: float) -> None:
    drawn = sampler(alpha)
    backbone = 0
    for step in range(200):
        own, other = drawn.batch(step)
        backbone += len(other)
        assert len(own) + len(other) == 5
        assert abs(backbone - alpha * 5 * (step + 1)) <= 0.5


def test_each_epoch_has_every_adaptation_row_once_in_a_new_order() -> None:
    drawn = sampler(alpha=0.4, rows=6, size=5)
    stream = [row for step in range(40) for row in drawn.batch(step)[0]]
    epochs = [stream[start : start + 6] for start in range(0, 114, 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > len(epochs) / 2


def test_a_round_draws_each_backbone_row_floor_or_ceil_of_its_share() -> None:
    weights = np.random.default_rng(0).dirichlet(np.full(50, 0.5))
    drawn = MixtureSampler(3, weights, 0.5, 20, 1)
    stream = [row for step in range(10) for row in drawn.batch(step)[1]]
    for start in (0, 50):
        counts = Counter(stream[start : start + 50])
        for row, weight in enumerate(weights):
            assert np.floor(50 * weight) <= counts[row] <= np.ceil(50 * weight)
    assert stream[:50] != stream[50:100]


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    forwards = [sampler().batch(step) for step in range(30)]
    fresh = sampler()
    assert [fresh.batch(step) for step in reversed(range(30))] == forwards[::-1]
    assert [sampler(seed=1).batch(step) for step in range(30)] != forwards
