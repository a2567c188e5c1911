"""Scores as estimates: their errors, and what is made of them."""

from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from albat_core.measures.discounts import Discount, discounted, standard_errors

Floats = NDArray[np.float64]


def drawn_rows(seed: int = 0) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    """Draw rows of 1 to 100 units: true scores, means as measured, squares, and units."""
    generator = np.random.default_rng(seed)
    units = np.where(
        generator.random(4000) < 0.1,
        generator.integers(1, 6, 4000),
        generator.integers(20, 100, 4000),
    )
    true = generator.normal(0.1, 0.15, 4000)
    each = [generator.normal(mean, 0.9, size) for mean, size in zip(true, units, strict=True)]
    measured = np.array([row.mean() for row in each])
    squares = np.array([np.square(row - row.mean()).sum() for row in each])
    return true, measured, squares, units


def test_standard_errors_are_those_of_means_where_rows_are_long() -> None:
    _, _, squares, units = drawn_rows()
    plain = np.sqrt(squares / np.maximum(units - 1, 1) / units)
    errors = standard_errors(squares, units)
    long = units >= 20
    np.testing.assert_allclose(errors[long], plain[long], rtol=0.2)
    assert np.corrcoef(errors[long], plain[long])[0, 1] > 0.95


def test_a_row_of_one_unit_is_not_thought_exact() -> None:
    true, measured, squares, units = drawn_rows()
    errors = standard_errors(squares, units)
    for size in range(1, 6):
        rows = units == size
        missed = np.sqrt(np.square(measured - true)[rows].mean())
        assert errors[rows].mean() == pytest.approx(missed, rel=0.25)


def test_shrunk_scores_are_nearest_the_truth_and_right_in_the_mean() -> None:
    true, measured, squares, units = drawn_rows()
    errors = standard_errors(squares, units)
    shrunk = discounted(measured, errors, "shrinkage")

    def off(scores: Floats) -> float:
        return float(np.square(scores - true).mean())

    assert off(shrunk) < 0.8 * off(measured)
    assert off(shrunk) < off(discounted(measured, errors, "bound"))
    # E[true | shrunk] = shrunk: who is promised more has more, by as much
    slope, start = np.polyfit(shrunk, true, 1)
    assert slope == pytest.approx(1, abs=0.1)
    assert start == pytest.approx(0, abs=0.02)
    assert np.polyfit(measured, true, 1)[0] < 0.5


def test_scraps_do_not_rank_first() -> None:
    true, measured, squares, units = drawn_rows()
    errors = standard_errors(squares, units)
    scraps = units < 6

    def best(how: Discount) -> NDArray[np.int64]:
        return np.argsort(-discounted(measured, errors, how))[:200]

    shares = {how: scraps[best(how)].mean() for how in get_args(Discount)}
    assert shares["shrinkage"] < 0.1 < scraps.mean()
    assert shares["shrinkage"] < shares["bound"] < shares["none"]
    assert shares["none"] > 0.5
    worth = {how: true[best(how)].mean() for how in get_args(Discount)}
    assert worth["shrinkage"] > worth["bound"] > worth["none"] + 0.05


def test_equal_errors_change_no_rank_and_none_no_score() -> None:
    scores = np.random.default_rng(0).normal(size=50)
    errors = np.full(50, 0.3)
    for how in get_args(Discount):
        assert np.array_equal(np.argsort(discounted(scores, errors, how)), np.argsort(scores))
    assert np.array_equal(discounted(scores, errors, "none"), scores)
    assert np.array_equal(discounted(np.zeros(3), np.zeros(3), "shrinkage"), np.zeros(3))
    assert len(discounted(np.zeros(0), np.zeros(0), "shrinkage")) == 0


def test_where_rows_differ_by_chance_alone_none_is_much_better() -> None:
    generator = np.random.default_rng(1)
    errors = generator.uniform(0.1, 2, 2000)
    measured = generator.normal(0.3, errors)
    shrunk = discounted(measured, errors, "shrinkage")
    assert shrunk.std() < 0.05 * measured.std()
    assert shrunk.mean() == pytest.approx(0.3, abs=0.05)
