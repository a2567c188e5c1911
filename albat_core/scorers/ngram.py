"""Importance weights from hashed n-grams: how much likelier a row is among the targets (DSIR)."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise, repeat
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from albat_core.errors import InputError
from albat_core.records.candidates import Candidates
from albat_core.records.examples import Example, example_text
from albat_core.records.splits import TRAIN
from albat_core.scorers.base import Given, Scorer, Scores

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


def tokens_of(text: str) -> list[str]:
    """Return a text's tokens: runs of word characters or of punctuation, in lower case."""
    return _TOKEN.findall(text.lower())


def ngram_counts(text: str, buckets: int) -> Counts:
    """Return how many unigrams and bigrams of a text fall into each bucket, (buckets,) int64."""
    tokens = tokens_of(text)
    ngrams = tokens + [f"{first} {second}" for first, second in pairwise(tokens)]
    found = np.fromiter(map(hash_buckets, ngrams, repeat(buckets)), np.int64, len(ngrams))
    return np.bincount(found, minlength=buckets)


class Ngram(Scorer):
    """Log importance weight log p_T(x) / p_C(x) of a row x, in nats, any sign (arXiv 2302.03169).

    Both are bags of hashed unigrams and bigrams, see ``importance``.
    """

    name: ClassVar[str] = "ngram"
    title: ClassVar[str] = "hashed n-grams (DSIR)"
    says: ClassVar[str] = "log importance weight of a text's words and word pairs, in nats"
    reads: ClassVar[tuple[str, ...]] = (TRAIN,)
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "retrieval": {"pool": "corpus"},
        "selection": {"select": "gumbel", "temperature": 1.0, "weigh": "even"},
    }

    def score(self, candidates: Candidates, given: Given) -> dict[str, Scores]:
        """Return the log importance weight, with the rows trained on as targets."""
        return {"score": importance(candidates, given.rows(TRAIN))}


def importance(candidates: Candidates, targets: Sequence[Example], buckets: int = 10_000) -> Scores:
    """Return log p_T(x) / p_C(x) of each candidate, (n,) nats; 0 for a row without words.

    p(x) is the product of p(b) over the buckets b of the row's n-grams; p_T(b) is a bucket's share
    of the targets' n-grams, p_C(b) of the candidates'; 1e-8 is added to both. It is a total, so a
    longer row's is larger in size. The rows are read twice.

    Args:
        candidates: the pool.
        targets: examples of the target distribution.
        buckets: of the hash, at least 1.

    Raises:
        InputError: no target has a word.
    """

    def counts(example: Example) -> Counts:
        return ngram_counts(example_text(example), buckets)

    def total(examples: Sequence[Example]) -> Counts:
        return sum(map(counts, examples), np.zeros(buckets, np.int64))

    target = total(targets)
    if not target.any():
        raise InputError(
            "expected words in the adaptation examples to compare n-grams with, got none",
            where="scoring.scorer",
            remedy="give the examples text or captions, or choose another scorer",
        )
    pool = sum(map(total, candidates.blocks()), np.zeros(buckets, np.int64))
    ratio = _log_shares(target) - _log_shares(pool)  # nats, (buckets,)
    scores = [counts(example) @ ratio for block in candidates.blocks() for example in block]
    return np.array(scores, np.float64)


def _log_shares(counts: Counts) -> Scores:
    """Return the smoothed log share of each bucket, nats."""
    logs: Scores = np.log(counts / max(counts.sum(), 1) + _SMOOTHING)
    return logs
