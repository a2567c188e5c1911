"""Importance weights from hashed n-grams: how much likelier a row is among the targets (DSIR)."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import chain, pairwise
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from albat_core.errors import InputError
from albat_core.records.candidates import Candidates
from albat_core.records.examples import Example, example_text
from albat_core.records.splits import TRAIN
from albat_core.scorers.base import Given, Scorer, Scores
from albat_core.store.scratch import scratch

_TOKEN = re.compile(r"\w+|[^\w\s]+")  # NLTK's WordPunctTokenizer, as the reference uses
_SMOOTHING = 1e-8  # added to every probability, as the reference does
_HASHES_KEPT = 1 << 18  # some 50 MB; most n-grams of a text have been seen before

Counts = NDArray[np.int64]


def hash_buckets(text_ngram: str, buckets: int = 10_000) -> int:
    """Return the bucket in [0, buckets) of an n-gram, its tokens joined by spaces.

    SHA-256 of the text, as a number, modulo ``buckets``, as in the reference implementation of
    DSIR (github.com/p-lambda/dsir).
    """
    return int.from_bytes(sha256(text_ngram.encode()).digest()) % buckets


class _Buckets(dict[str, int]):
    """Buckets of n-grams by their text: of those met, until there are too many to keep."""

    def __init__(self, buckets: int) -> None:
        self._buckets = buckets

    def __missing__(self, ngram: str) -> int:
        if len(self) >= _HASHES_KEPT:
            self.clear()
        found = self[ngram] = hash_buckets(ngram, self._buckets)
        return found


_known_buckets = lru_cache(maxsize=2)(_Buckets)


def text_buckets(text: str, buckets: int) -> list[int]:
    """Return the bucket of each unigram, then of each bigram of a text.

    Tokens are runs of word characters or of punctuation, in lower case.
    """
    tokens = _TOKEN.findall(text.lower())
    ngrams = tokens + [f"{first} {second}" for first, second in pairwise(tokens)]
    return list(map(_known_buckets(buckets).__getitem__, ngrams))


def ngram_counts(text: str, buckets: int) -> Counts:
    """Return how many unigrams and bigrams of a text fall into each bucket, (buckets,) int64."""
    return np.bincount(np.array(text_buckets(text, buckets), np.int64), minlength=buckets)


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


def importance(
    candidates: Candidates,
    targets: Sequence[Example],
    buckets: int = 10_000,
    *,
    per_token: bool = False,
) -> Scores:
    """Return log p_T(x) / p_C(x) of each candidate, (n,) nats; 0 for a row without words.

    p(x) is the product of p(b) over the buckets b of the row's n-grams; p_T(b) is a bucket's share
    of the targets' n-grams, p_C(b) of the candidates'; 1e-8 is added to both. It is a total, so a
    longer row's is larger in size. The rows are read once; their buckets are in a temporary file
    until all are counted.

    Args:
        candidates: the pool.
        targets: examples of the target distribution.
        buckets: of the hash, at least 1.
        per_token: whether the total is divided by the row's tokens.

    Raises:
        InputError: no target has a word.
    """
    target = np.zeros(buckets, np.int64)
    for example in targets:
        target += ngram_counts(example_text(example), buckets)
    if not target.any():
        raise InputError(
            "expected words in the adaptation examples to compare n-grams with, got none",
            where="scoring.scorer",
            remedy="give the examples text or captions, or choose another scorer",
        )
    with scratch(), tempfile.TemporaryFile() as file:
        pool, sizes = _written(file, candidates, buckets)
        ratio = _log_shares(target) - _log_shares(pool)  # nats, (buckets,)
        file.seek(0)
        scores = []
        for counts in sizes:
            found = np.frombuffer(file.read(4 * int(counts.sum())), np.uint32)
            rows = np.repeat(np.arange(len(counts)), counts)
            totals = np.bincount(rows, ratio[found], minlength=len(counts))
            tokens = (counts + 1) // 2  # n of them have 2n - 1 n-grams
            scores.append(totals / np.maximum(tokens, 1) if per_token else totals)
    return np.concatenate([np.zeros(0), *scores])


def _written(file: IO[bytes], candidates: Candidates, buckets: int) -> tuple[Counts, list[Counts]]:
    """Write the bucket of each candidate's n-grams, uint32.

    Returns:
        how many there are in each bucket, (buckets,) int64, and in each row of each block.
    """
    pool, sizes = np.zeros(buckets, np.int64), []
    for texts in candidates.text_blocks():
        rows = [text_buckets(text, buckets) for text in texts]
        found = np.fromiter(chain.from_iterable(rows), np.uint32)
        file.write(found.tobytes())
        pool += np.bincount(found, minlength=buckets)
        sizes.append(np.fromiter(map(len, rows), np.int64, len(rows)))
    return pool, sizes


def _log_shares(counts: Counts) -> Scores:
    """Return the smoothed log share of each bucket, nats."""
    logs: Scores = np.log(counts / max(counts.sum(), 1) + _SMOOTHING)
    return logs
