"""Importance weights from hashed n-grams: how much likelier a row is among the targets (DSIR)."""

import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise, repeat

import numpy as np
from numpy.typing import NDArray

from albat_core.errors import InputError
from albat_core.records.candidates import Candidates
from albat_core.records.examples import Example, example_text
from albat_core.scorers.base import Scores

_TOKEN = re.compile(r"\w+|[^\w\s]+")  # NLTK's WordPunctTokenizer, as the reference uses
_SMOOTHING = 1e-8  # added to every probability, as the reference does
_HASHES_KEPT = 1 << 18  # some 50 MB; most n-grams of a text have been seen before

Counts = NDArray[np.int64]


@lru_cache(maxsize=_HASHES_KEPT)
def hash_buckets(text_ngram: str, buckets: int = 10_000) -> int:
    """Return the bucket in [0, buckets) of an n-gram, its tokens joined by spaces.

    SHA-256 of the text, as a number, modulo ``buckets``, as in the reference implementation of
    DSIR (github.com/p-lambda/dsir).
    """
    return int.from_bytes(sha256(text_ngram.encode()).digest()) % buckets


def ngram_counts(text: str, buckets: int) -> Counts:
    """Return how many unigrams and bigrams of a text fall into each bucket, (buckets,) int64.

    Tokens are runs of word characters or of punctuation, in lower case.
    """
    tokens = _TOKEN.findall(text.lower())
    ngrams = tokens + [f"{first} {second}" for first, second in pairwise(tokens)]
    found = np.fromiter(map(hash_buckets, ngrams, repeat(buckets)), np.int64, len(ngrams))
    return np.bincount(found, minlength=buckets)


class Ngram:
    """Log importance weight log p_T(x) / p_C(x) of a row x, in nats, any sign (arXiv 2302.03169).

    Both are bags of hashed unigrams and bigrams: p(x) is the product of p(b) over the buckets b
    of the row's n-grams; p_T(b) is a bucket's share of the targets' n-grams, p_C(b) of the
    candidates'; 1e-8 is added to both. It is a total, so a longer row's is larger in size.

    Args:
        targets: examples of the target distribution.
        buckets: of the hash, at least 1.

    Raises:
        InputError: no target has a word.
    """

    passes = 0

    def __init__(self, targets: Sequence[Example], buckets: int = 10_000) -> None:
        self._buckets = buckets
        self._target = self._total(targets)
        if not self._target.any():
            raise InputError(
                "expected words in the adaptation examples to compare n-grams with, got none",
                where="scoring.scorer",
                remedy="give the examples text or captions, or choose another scorer",
            )

    def score(self, candidates: Candidates) -> dict[str, Scores]:
        """Return ``score`` (n,) float64; 0 for a row without words. Reads the rows twice."""
        pool = np.zeros(self._buckets, np.int64)
        for block in candidates.blocks():
            pool += self._total(block)
        ratio = _log_shares(self._target) - _log_shares(pool)  # nats, (buckets,)
        scores = [
            self._counts(example) @ ratio for block in candidates.blocks() for example in block
        ]
        return {"score": np.array(scores, np.float64)}

    def _counts(self, example: Example) -> Counts:
        return ngram_counts(example_text(example), self._buckets)

    def _total(self, examples: Sequence[Example]) -> Counts:
        return sum(map(self._counts, examples), np.zeros(self._buckets, np.int64))


def _log_shares(counts: Counts) -> Scores:
    """Return the smoothed log share of each bucket, nats."""
    logs: Scores = np.log(counts / max(counts.sum(), 1) + _SMOOTHING)
    return logs
