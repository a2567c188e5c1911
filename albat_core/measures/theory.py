"""What backbone data is worth: the first-order theory of a weighted objective.

L(phi) = (1 - alpha) mean_i l(t_i; phi) + alpha sum_j w_j l(c_j; phi); phi* minimises the target's
expected loss, H is its Hessian there, and b the weighted corpus's expected gradient there. To first
order the excess risk R of L's minimiser is (this project's reconstruction of arXiv 2506.04288 on
the theory of arXiv 2402.04376 and 2309.14563)

    2 R(alpha) = (1 - alpha)^2 V_T + alpha^2 (V_w + B)
    V_T = tr(H^-1 S_T) / n,   V_w = tr(H^-1 S_w) / ESS,   B = b^T H^-1 b.

Nothing here knows of models: vectors are gradients in any coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from albat_core.seeding import numpy_generator

Floats = NDArray[np.float64]

_AT_ONCE = 4096  # gradients that are in float64 together


@dataclass(frozen=True)
class Terms:
    """The three terms of the excess risk, each >= 0, in units of the loss.

    Args:
        target_variance: V_T, what is lost because the adaptation set is small.
        corpus_variance: V_w, what is lost because the selection is.
        bias: B, what is lost because the selection is not the target.
    """

    target_variance: float
    corpus_variance: float
    bias: float

    def excess_risk(self, alpha: float) -> float:
        """Return R(alpha), nats per unit of loss above the best adapter; alpha in [0, 1]."""
        corpus = self.corpus_variance + self.bias
        return ((1 - alpha) ** 2 * self.target_variance + alpha**2 * corpus) / 2

    def moved(self, factor: float) -> Terms:
        """Return the terms with V_T / (V_w + B) ``factor`` > 0 times as large."""
        return Terms(self.target_variance, self.corpus_variance / factor, self.bias / factor)

    @property
    def alpha(self) -> float:
        """alpha* = V_T / (V_T + V_w + B), at which R is least; in [0, 1]; 0 where all are 0."""
        whole = self.target_variance + self.corpus_variance + self.bias
        return self.target_variance / whole if whole > 0 else 0.0

    def worth(self, alpha: float) -> float:
        """R(0) / R(alpha): how many times the adaptation data mixing at alpha in [0, 1] is worth.

        Below 1 where it costs; 1 where nothing is lost without it; infinite where nothing is with.
        """
        without, mixed = self.excess_risk(0.0), self.excess_risk(alpha)
        if mixed > 0:
            return without / mixed
        return np.inf if without > 0 else 1.0

    @property
    def multiplier(self) -> float:
        """R(0) / R(alpha*) = 1 + V_T / (V_w + B): what mixing is worth at its best.

        At least 1; infinite where the corpus costs nothing.
        """
        corpus = self.corpus_variance + self.bias
        if corpus > 0:
            return 1 + self.target_variance / corpus
        return np.inf if self.target_variance > 0 else 1.0


def metric(hessian: Floats, damping: float = 0.0) -> Floats:
    """Return M = (H + damping)^-1 H (H + damping)^-1, (d, d): M = H^-1 without damping.

    2 R = g^T M g is the excess risk of the step -(H + damping)^-1 g from the optimum: with damping,
    that of a ridge estimate.

    Args:
        hessian: H, (d, d) symmetric, positive definite together with the damping.
        damping: >= 0.
    """
    values, vectors = np.linalg.eigh(hessian)
    factors = values / (values + damping) ** 2
    return np.asarray((vectors * factors) @ vectors.T)


def population_terms(
    metric: Floats,
    target_covariance: Floats,
    rows: int,
    corpus_covariance: Floats,
    effective_rows: float,
    bias: Floats,
) -> Terms:
    """Return the terms where all that they consist of is known.

    Args:
        metric: M, (d, d).
        target_covariance: S_T of one adaptation example's gradient, (d, d).
        rows: n adaptation examples.
        corpus_covariance: S_w of one selected example's gradient, (d, d).
        effective_rows: ESS of the weights.
        bias: b, (d,), expected gradient of the selection at the target's optimum.
    """
    return Terms(
        target_variance=float(np.sum(metric * target_covariance)) / rows,
        corpus_variance=float(np.sum(metric * corpus_covariance)) / effective_rows,
        bias=float(bias @ metric @ bias),
    )


def second_moments(gradients: Floats | NDArray[np.float32]) -> Floats:
    """Return G^T G, (d, d) float64, of gradients G (n, d), some thousands of rows at a time."""
    found = np.zeros((gradients.shape[1],) * 2)
    for start in range(0, len(gradients), _AT_ONCE):
        some = gradients[start : start + _AT_ONCE].astype(np.float64)
        found += some.T @ some
    return found


def metric_root(fisher: Floats, damping: float) -> Floats:
    """Return W = (F + lambda)^(-1/2), (d, d): in the coordinates g W, H is about the identity.

    F = mean g g^T is the empirical Fisher matrix, which stands for H up to a factor that alpha* and
    the multiplier do not depend on.

    Args:
        fisher: F, (d, d), see ``second_moments``.
        damping: lambda over the mean eigenvalue of F, > 0: what lies in directions of far less
            curvature than the mean is not counted for more.
    """
    values, vectors = np.linalg.eigh(fisher)
    factors = 1 / np.sqrt(values.clip(min=0) + damping * max(values.mean(), 1e-30))
    return np.asarray((vectors * factors) @ vectors.T)


@dataclass(frozen=True)
class FoldGradients:
    """Gradients at one adapter, beside which a fold of the adaptation documents is held out.

    Args:
        heldout: (n, d) of the fold's examples.
        documents: (n,) which document each belongs to.
        corpus: (m, d) of selected rows, drawn by their weights.
        trained: (t, d) of the other folds' examples; None at a surrogate that was trained on them,
            where their mean is about 0.
    """

    heldout: Floats
    documents: NDArray[np.str_]
    corpus: Floats
    trained: Floats | None = None


@dataclass(frozen=True)
class Estimate:
    """Terms estimated from gradients, with 95% intervals.

    Args:
        terms: V_T, V_w and B, up to a common factor.
        alpha: low and high of alpha*, in [0, 1].
        multiplier: low and high of what mixing is worth at the alpha that is mixed with; below 1
            where it may cost.
    """

    terms: Terms
    alpha: tuple[float, float]
    multiplier: tuple[float, float]


def estimate_terms(
    folds: Sequence[FoldGradients],
    effective_rows: float,
    damping: float,
    seed: int,
    draws: int = 2000,
    more_rows: float = 1.0,
    highest: float = 1.0,
    doubt: float = 0.0,
) -> Estimate:
    """Estimate the terms by cross-fitting: held-out examples are none that were trained on.

    At any adapter phi, with e = phi - phi*, gradients are to first order: of held-out examples H e
    in the mean, of the selection b + H e, and of the examples trained on H e plus a noise z whose
    size is what V_T tells of. In the metric H^-1, over draws of the adaptation set,

        <heldout - trained, selection - trained> = |z|^2 = V_T,   |selection - trained|^2 = V_T + B,

    and V_w = tr(H^-1 S_w) / ESS. So alpha* is the mixture of the two mean gradients that comes
    nearest the held-out one, and a factor that H is known up to cancels in it. Negative estimates
    are 0. Intervals are percentiles of a bootstrap over the held-out documents, of which each draw
    of V_T / (V_w + B) is moved by a factor exp(doubt z), z standard normal: what the theory itself
    is off by.

    Args:
        folds: at least one.
        effective_rows: ESS of the selection's weights.
        damping: of the metric, see ``metric_root``.
        seed: of the bootstrap.
        draws: bootstrap samples.
        more_rows: how many times as many rows will be trained on as the adapters of the folds were:
            V_T goes with 1 / n.
        highest: mixing weight at most, in (0, 1].
        doubt: standard deviation of log V_T / (V_w + B) about the truth, were documents without
            end.
    """
    gradients = np.concatenate([g for fold in folds for g in (fold.corpus, fold.heldout)])
    whitening = metric_root(second_moments(gradients) / len(gradients), damping)
    products, documents, lengths, spreads = [], [], [], []
    heldout: dict[str, str] = {}  # a document that several folds hold out is one all the same
    for number, fold in enumerate(folds):
        corpus = fold.corpus @ whitening
        mean, rows = corpus.mean(axis=0), len(corpus)
        spread = float(np.square(corpus - mean).sum() / max(rows - 1, 1))
        trained = np.zeros(len(mean)) if fold.trained is None else fold.trained.mean(axis=0)
        trained = trained @ whitening
        apart = mean - trained
        products.append((fold.heldout @ whitening - trained) @ apart)
        documents.append([heldout.setdefault(n, f"{number}/{n}") for n in fold.documents])
        lengths.append(float(apart @ apart) - spread / rows)  # less what drawing few rows adds
        spreads.append(spread)
    pull, size = _by_document(np.concatenate(products), np.concatenate(documents))
    length, corpus_variance = float(np.mean(lengths)), float(np.mean(spreads)) / effective_rows

    def terms(drawn: NDArray[np.int64]) -> Terms:
        target = max(float(pull[drawn].sum() / size[drawn].sum()), 0.0)
        return Terms(target / more_rows, corpus_variance, max(length - target, 0.0))

    generator = numpy_generator(seed, "terms")
    best = terms(np.arange(len(pull)))
    mixed = min(best.alpha, highest)
    factors = np.exp(doubt * numpy_generator(seed, "doubt").normal(size=draws))
    found = [
        terms(generator.integers(len(pull), size=len(pull))).moved(factor) for factor in factors
    ]
    low_high = [0.025, 0.975]
    alphas = np.quantile([t.alpha for t in found], low_high)
    multipliers = np.quantile([t.worth(mixed) for t in found], low_high)
    return Estimate(
        terms=best,
        alpha=(float(alphas[0]), float(alphas[1])),
        multiplier=(float(multipliers[0]), float(multipliers[1])),
    )


def _by_document(values: Floats, documents: NDArray[np.str_]) -> tuple[Floats, Floats]:
    """Return each document's sum of values and its number of them, (n_documents,) both."""
    names, codes = np.unique(documents, return_inverse=True)
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    np.add.at(sums, codes, values)
    np.add.at(counts, codes, 1)
    return sums, counts
