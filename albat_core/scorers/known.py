"""Scores of an earlier selection, kept where the new surrogate ranks its candidates alike."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from albat_core.records.candidates import Candidates
from albat_core.scorers.base import Scores, rank_correlation
from albat_core.seeding import numpy_generator

_SAMPLE = 256  # of the candidates that have a score, on which surrogates are compared
_COLUMNS = ("loss_backbone", "loss_surrogate", "score_error")


def score_what_is_new(
    score: Callable[[Candidates], dict[str, Scores]],
    candidates: Candidates,
    earlier: pa.Table,
    agreement: float,
) -> tuple[dict[str, Scores], dict[str, Any]]:
    """Score candidates that have no score yet, and the others too where it would matter.

    A surrogate that went on from another one moves most advantages alike. A sample of the
    candidates that have a score is scored again: if both surrogates give them the same ranks, the
    rest keep theirs, moved by the sample's mean change; if not, all are scored. Each comparison is
    with the scores as they are kept, so what small changes add up to is found too.

    Args:
        score: by losses, of the new surrogate.
        candidates: that want a score.
        earlier: of ``SCORE_SCHEMA``, by the same scorer with an earlier surrogate.
        agreement: Spearman correlation that counts as the same ranks.

    Returns:
        the columns (n,) by name; and how many rows kept theirs (``kept``), with the correlation
        found (``agreement``), None where there was nothing to compare.
    """
    columns, there = _earlier_columns(earlier, candidates.places)
    old = np.flatnonzero(there)
    shuffled = numpy_generator(0, "sample of known scores").permutation(old)
    sample, rest = np.sort(shuffled[:_SAMPLE]), np.sort(shuffled[_SAMPLE:])

    def look_at(positions: NDArray[np.intp]) -> None:
        if not len(positions):
            return
        for name, found in score(candidates.take(positions)).items():
            columns[name][positions] = found

    before = columns["score"][sample]
    look_at(np.sort(np.concatenate([np.flatnonzero(~there), sample])))
    if not len(sample):
        return columns, {"kept": 0, "agreement": None}
    after = columns["score"][sample]
    reached = rank_correlation(before, after)
    if reached < agreement:
        look_at(rest)
        return columns, {"kept": 0, "agreement": reached}
    change = float((after - before).mean())
    columns["score"][rest] += change
    columns["loss_surrogate"][rest] -= change
    return columns, {"kept": len(rest), "agreement": reached}


def _earlier_columns(
    earlier: pa.Table, places: list[tuple[str, int]]
) -> tuple[dict[str, Scores], NDArray[np.bool_]]:
    """Return earlier columns (n,) at these places of the corpus, and where there are any."""
    names = zip(earlier["shard"].to_pylist(), earlier["row"].to_pylist(), strict=True)
    known = {place: number for number, place in enumerate(names)}
    found = np.array([known.get(place, -1) for place in places], dtype=np.intp)
    there = found >= 0
    columns = {}
    for name in _COLUMNS:
        columns[name] = np.full(len(places), np.nan)
        columns[name][there] = earlier[name].to_numpy()[found[there]]
    # as measured: what is kept was discounted among other rows
    columns["score"] = columns["loss_backbone"] - columns["loss_surrogate"]
    return columns, there
