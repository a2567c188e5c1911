"""The theory against simulation: ridge and logistic regression with a known shift."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from albat_core.measures.theory import (
    FoldGradients,
    Terms,
    estimate_terms,
    metric,
    metric_root,
    population_terms,
    second_moments,
)

Floats = NDArray[np.float64]
D, N, M, DRAWS = 8, 120, 400, 400  # n = 15 d


def covariates(generator: np.random.Generator, count: int) -> Floats:
    return generator.normal(size=(count, D)) * np.linspace(0.6, 1.4, D)


def ridge_risk(shift: float, alpha: float, damping: float) -> tuple[float, float]:
    """Excess risk of weighted ridge regression: mean over draws, and the prediction."""
    generator = np.random.default_rng(0)
    hessian = np.diag(np.linspace(0.6, 1.4, D) ** 2)
    target = np.full(D, 0.4)
    corpus = target + shift * np.eye(D)[0]
    weights = generator.dirichlet(np.full(M, 5.0))
    risks = []
    for _ in range(DRAWS):
        x, z = covariates(generator, N), covariates(generator, M)
        y = x @ target + generator.normal(size=N)
        v = z @ corpus + generator.normal(size=M)
        left = (1 - alpha) * x.T @ x / N + alpha * (z.T * weights) @ z
        right = (1 - alpha) * x.T @ y / N + alpha * z.T @ (weights * v)
        # the penalty pulls to the target's optimum, as a damped step from there does
        found = np.linalg.solve(left + damping * np.eye(D), right + damping * target)
        risks.append((found - target) @ hessian @ (found - target) / 2)
    variance = np.diag(np.linspace(0.6, 1.4, D) ** 2)  # of x * noise
    drift = corpus - target
    spread = drift @ hessian @ drift * hessian + np.outer(hessian @ drift, hessian @ drift)
    terms = population_terms(
        metric(hessian, damping),
        variance,
        N,
        variance + spread,  # of -z (noise + z . drift), z Gaussian (Isserlis)
        1 / np.square(weights).sum(),
        -hessian @ drift,
    )
    return float(np.mean(risks)), terms.excess_risk(alpha)


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_predicted_risk_of_ridge_regression(shift: float, alpha: float, damping: float) -> None:
    measured, predicted = ridge_risk(shift, alpha, damping)
    assert predicted == pytest.approx(measured, rel=0.1)


def sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))


def fitted(x: Floats, y: Floats, weights: Floats) -> Floats:
    """The minimiser of the weighted logistic loss, by Newton's method."""
    found = np.zeros(x.shape[1])
    for _ in range(25):
        p = sigmoid(x @ found)
        curvature = (x.T * (weights * p * (1 - p))) @ x
        found = found - np.linalg.solve(curvature, x.T @ (weights * (p - y)))
    return found


@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 0.8])
def test_predicted_risk_of_logistic_regression(shift: float, alpha: float) -> None:
    generator = np.random.default_rng(1)
    d, n, m = 5, 250, 800
    target = np.linspace(-0.6, 0.6, d)
    corpus = target + shift * np.eye(d)[1]
    x = generator.normal(size=(200_000, d))  # the population, by a large sample
    p, q = sigmoid(x @ target), sigmoid(x @ corpus)
    hessian = (x.T * (p * (1 - p))) @ x / len(x)
    # of (p - y) x where y is drawn with chance q
    second = (x.T * (q * (1 - p) ** 2 + (1 - q) * p**2)) @ x / len(x)
    bias = x.T @ (p - q) / len(x)
    terms = population_terms(metric(hessian), hessian, n, second - np.outer(bias, bias), m, bias)

    def risk(found: Floats) -> float:
        f = x[:50_000] @ found
        loss = np.logaddexp(0, f) - p[:50_000] * f
        best = x[:50_000] @ target
        return float((loss - np.logaddexp(0, best) + p[:50_000] * best).mean())

    risks = []
    for _ in range(300):
        own, other = generator.normal(size=(n, d)), generator.normal(size=(m, d))
        y = generator.random(n) < sigmoid(own @ target)
        v = generator.random(m) < sigmoid(other @ corpus)
        weights = np.concatenate([np.full(n, (1 - alpha) / n), np.full(m, alpha / m)])
        risks.append(
            risk(fitted(np.concatenate([own, other]), np.concatenate([y, v]) * 1.0, weights))
        )
    assert terms.excess_risk(alpha) == pytest.approx(np.mean(risks), rel=0.1)


def test_alpha_is_where_the_risk_is_least_and_the_multiplier_is_the_ratio() -> None:
    terms = Terms(target_variance=0.3, corpus_variance=0.05, bias=0.1)
    grid = np.linspace(0, 1, 100_001)
    risks = [terms.excess_risk(a) for a in grid]
    assert terms.alpha == pytest.approx(grid[int(np.argmin(risks))], abs=1e-4)
    assert terms.multiplier == pytest.approx(risks[0] / min(risks), rel=1e-6)
    # n times the multiplier as many examples, without the corpus, have the same risk
    more = Terms(0.3 / terms.multiplier, 0.05, 0.1)
    assert more.excess_risk(0) == pytest.approx(min(risks), rel=1e-6)


def test_a_corpus_that_costs_nothing_and_a_target_without_need() -> None:
    assert Terms(0.0, 0.1, 0.1).alpha == 0
    assert Terms(0.0, 0.1, 0.1).multiplier == 1
    assert Terms(0.0, 0.0, 0.0).multiplier == 1
    assert Terms(0.2, 0.0, 0.0).alpha == 1
    assert Terms(0.2, 0.0, 0.0).multiplier == np.inf


def test_worth_is_less_beside_the_best_weight_and_below_1_beyond_twice_it() -> None:
    terms = Terms(0.3, 0.05, 0.15)  # alpha* = 0.6
    assert terms.worth(terms.alpha) == pytest.approx(terms.multiplier)
    assert terms.worth(0.0) == 1
    assert terms.worth(0.3) == pytest.approx(terms.worth(0.9))  # as far from it
    assert 1 < terms.worth(0.3) < terms.multiplier
    small = terms.moved(0.2)  # alpha* = 0.23
    assert small.alpha == pytest.approx(0.3 / (0.3 + 5 * 0.2))
    assert small.worth(2 * small.alpha) == pytest.approx(1)
    assert small.worth(0.6) < 1
    assert Terms(0.2, 0.0, 0.0).worth(1.0) == np.inf
    assert Terms(0.0, 0.0, 0.0).worth(0.5) == 1


def test_root_of_the_metric_makes_gradients_white() -> None:
    generator = np.random.default_rng(2)
    gradients = generator.normal(size=(5_000, 6)) @ generator.normal(size=(6, 6))
    fisher = second_moments(gradients) / len(gradients)
    white = gradients @ metric_root(fisher, 1e-9)
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(6), atol=1e-5)
    # with much damping all directions count alike, up to one factor
    even = metric_root(fisher, 1e6)
    np.testing.assert_allclose(even, np.eye(6) * even[0, 0], atol=1e-5 * even[0, 0])


def folds_of_regression(
    shift: float, count: int, generator: np.random.Generator
) -> tuple[list[FoldGradients], Terms]:
    """Gradients of linear regressions fitted without a fold, and the terms at their size."""
    target = np.full(D, 0.4)
    corpus = target + shift * np.eye(D)[0]
    hessian = np.diag(np.linspace(0.6, 1.4, D) ** 2)
    n, found = 3 * D, []
    for number in range(count):
        x = covariates(generator, n)
        fit = np.linalg.lstsq(x, x @ target + generator.normal(size=n), rcond=None)[0]
        own, z = covariates(generator, n // 2), covariates(generator, M)
        found.append(
            FoldGradients(
                heldout=own * (own @ (fit - target) - generator.normal(size=n // 2))[:, None],
                documents=np.array([f"document {number}/{i // 2}" for i in range(n // 2)]),
                corpus=z * (z @ (fit - corpus) - generator.normal(size=M))[:, None],
            )
        )
    # the exact variance of least squares from few rows: d / (n - d - 1)
    terms = Terms(D / (n - D - 1), D / M, float((shift * np.eye(D)[0]) @ hessian[0] * shift))
    return found, terms


@pytest.mark.parametrize("shift", [0.0, 0.4, 0.7])
def test_terms_are_estimated_from_gradients(shift: float) -> None:
    folds, terms = folds_of_regression(shift, 400, np.random.default_rng(3))
    estimate = estimate_terms(folds, effective_rows=M, damping=1e-6, seed=0, draws=200)
    assert estimate.terms.alpha == pytest.approx(terms.alpha, abs=0.06)
    low, high = estimate.alpha
    assert low <= estimate.terms.alpha <= high
    assert high - low < 0.2


def test_the_target_s_variance_falls_with_the_rows_trained_on() -> None:
    folds, _ = folds_of_regression(0.4, 20, np.random.default_rng(3))
    once, twice = (
        estimate_terms(folds, M, 1e-6, 0, draws=20, more_rows=more).terms for more in (1.0, 2.0)
    )
    assert twice.target_variance == pytest.approx(once.target_variance / 2)
    assert (twice.corpus_variance, twice.bias) == (once.corpus_variance, once.bias)


def test_terms_are_the_same_from_gradients_at_any_adapter() -> None:
    """Least squares is quadratic: where the gradients are taken must not matter but by noise."""
    generator = np.random.default_rng(6)
    target, n = np.full(D, 0.4), 3 * D
    drift = 0.7 * np.eye(D)[0]
    found: dict[str, list[FoldGradients]] = {"start": [], "fit": []}
    for _ in range(300):
        x, own = covariates(generator, n), covariates(generator, n)
        z = covariates(generator, M)
        y, v = x @ target + generator.normal(size=n), own @ target + generator.normal(size=n)
        u = z @ (target + drift) + generator.normal(size=M)
        names = np.arange(n).astype(str)
        for name, phi in (("start", np.zeros(D)), ("fit", np.linalg.lstsq(x, y, rcond=None)[0])):
            found[name].append(
                FoldGradients(
                    heldout=own * (own @ phi - v)[:, None],
                    documents=names,
                    corpus=z * (z @ phi - u)[:, None],
                    trained=x * (x @ phi - y)[:, None],
                )
            )
    start, fit = (
        estimate_terms(found[name], M, 1e-6, 0, draws=50).terms.alpha for name in ("start", "fit")
    )
    assert start == pytest.approx(fit, abs=0.12)
    assert 0.6 < fit < 0.85


def test_the_interval_covers_what_is_true() -> None:
    generator = np.random.default_rng(4)
    inside = 0
    for number in range(60):
        folds, terms = folds_of_regression(0.5, 12, generator)
        low, high = estimate_terms(folds, M, 1e-6, number, draws=300).alpha
        inside += low <= terms.alpha <= high
    assert inside >= 48  # 95% of 60 is 57; few documents make intervals a little short


def test_documents_held_out_from_several_surrogates_say_no_more_than_they_are() -> None:
    (fold,), _ = folds_of_regression(0.5, 1, np.random.default_rng(5))
    once, thrice = (estimate_terms([fold] * count, M, 1e-6, 0, draws=400) for count in (1, 3))
    assert thrice.terms.alpha == pytest.approx(once.terms.alpha, rel=1e-6)
    assert thrice.alpha == pytest.approx(once.alpha, rel=1e-6)
    low, high = once.alpha
    assert high - low > 0.1


def test_doubt_widens_the_interval_by_as_much() -> None:
    folds, _ = folds_of_regression(0.5, 400, np.random.default_rng(6))

    def width(doubt: float) -> tuple[float, float]:
        found = estimate_terms(folds, M, 1e-6, 0, doubt=doubt)
        odds = np.log(np.array(found.alpha) / (1 - np.array(found.alpha)))
        return float(np.diff(odds)[0]), found.multiplier[0]

    (sure, likely), (unsure, unclear) = width(0.0), width(1.5)
    assert unsure == pytest.approx(np.hypot(sure, 2 * 1.96 * 1.5), rel=0.1)
    assert unclear < 1 < likely
    capped = estimate_terms(folds, M, 1e-6, 0, highest=0.2)
    assert capped.multiplier[1] < 1 / 0.8**2  # a fifth of the objective cannot be worth more


def test_a_corpus_that_pulls_the_wrong_way_is_not_mixed_in() -> None:
    generator = np.random.default_rng(5)
    heldout = generator.normal(size=(40, 4)) + 1
    fold = FoldGradients(heldout, np.array([str(i) for i in range(40)]), -heldout)
    estimate = estimate_terms([fold], 40, 1.0, 0)
    assert estimate.terms.alpha == 0
    assert estimate.terms.multiplier == 1
    assert estimate.alpha[0] == 0


def test_what_drawing_few_rows_adds_is_taken_off() -> None:
    folds, _ = folds_of_regression(0.7, 400, np.random.default_rng(7))
    few = [replace(fold, corpus=fold.corpus[:12]) for fold in folds]
    many, little = (estimate_terms(f, M, 1e-6, 0, draws=50).terms for f in (folds, few))
    assert little.alpha == pytest.approx(many.alpha, abs=0.06)
    assert little.bias == pytest.approx(many.bias, rel=0.3)
