"""Copies: rows whose words or colours are the same as another's, or nearly so."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from albat_core.records.words import words_of

Mask = NDArray[np.bool_]
Runs = frozenset[int]
"""Hashes of a text's runs of words."""

SAME_COLOURS = 0.04
"""Largest difference of a colour, of its range, of a picture that was saved again."""
_RUN = 5  # words: few enough to survive an edit, too many to coincide by chance
_SHORT = 4  # runs, of 8 words; a text with fewer is a copy only where it is all the same
_HASHES = 64  # of a MinHash; what it finds is compared exactly, so that it need only find enough
_SLACK = 0.2  # so much less similar may a MinHash find them


def word_runs(text: str) -> Runs:
    """Return the hashes of a text's runs of five words, or of all its words where they are fewer.

    See ``words_of``: what differs in typography or punctuation alone is the same.
    """
    words = words_of(text)
    runs = [words[start : start + _RUN] for start in range(max(len(words) - _RUN + 1, 1))]
    return frozenset(_hash(" ".join(run)) for run in runs if run)


def _hash(run: str) -> int:
    return int.from_bytes(blake2b(run.encode(), digest_size=8).digest())


def copies_of(texts: Sequence[str], originals: Sequence[str], share: float) -> Mask:
    """Tell which texts repeat one of the originals, or are a part of it, or have it as a part.

    A text is a copy where the shorter of both has so large a share of its runs of words in common
    with the longer one.

    Args:
        texts: (n,).
        originals: what is sought; some thousands.
        share: least share, in (0, 1].

    Returns:
        (n,) bool.
    """
    sought = [word_runs(text) for text in originals]
    holders: dict[int, list[int]] = defaultdict(list)
    for number, runs in enumerate(sought):
        for run in runs:
            holders[run].append(number)

    def repeats(runs: Runs) -> bool:
        common = Counter(number for run in runs for number in holders.get(run, ()))
        for number, count in common.items():
            shorter = min(len(runs), len(sought[number]))
            if shorter < _SHORT:
                if runs == sought[number]:
                    return True
            elif count >= share * shorter:
                return True
        return False

    return np.array([repeats(word_runs(text)) for text in texts], dtype=np.bool_)


def said_in(texts: Sequence[str], originals: Sequence[str], share: float) -> Mask:
    """Tell which texts say for the most part what originals say, one or several together.

    What only has an original as a part is none: it may be boilerplate, and the rest is new.

    Args:
        texts: (n,); one without words is none.
        originals: what is sought; some thousands.
        share: least share of a text's runs of words, in (0, 1].

    Returns:
        (n,) bool.
    """
    sought = [word_runs(text) for text in originals]
    known, short = frozenset[int]().union(*sought), {runs for runs in sought if len(runs) < _SHORT}

    def is_said(runs: Runs) -> bool:
        if len(runs) < _SHORT:
            return bool(runs) and runs in short
        return len(runs & known) >= share * len(runs)

    return np.array([is_said(word_runs(text)) for text in texts], dtype=np.bool_)


def repeats_before(texts: Sequence[str], share: float) -> Mask:
    """Tell which texts say for the most part what texts before them say, one or several together.

    A text repeats others where ``share`` or more of its runs of words are in texts before it that
    repeat none. So a page of boilerplate, cut at another place in each document, is kept once.

    Args:
        texts: (n,); one without words repeats none.
        share: least share, in (0, 1].

    Returns:
        (n,) bool.
    """
    seen: set[int] = set()
    short: set[Runs] = set()

    def repeats(runs: Runs) -> bool:
        if len(runs) < _SHORT:
            known = runs in short
            short.add(runs)
            return known and bool(runs)
        if sum(run in seen for run in runs) >= share * len(runs):
            return True
        seen.update(runs)
        return False

    return np.array([repeats(word_runs(text)) for text in texts], dtype=np.bool_)


def first_copies(texts: Sequence[str], share: float) -> NDArray[np.int64]:
    """Return for each text the first one that it nearly repeats, itself where there is none.

    Two texts nearly repeat each other where their runs of words have a Jaccard similarity of
    ``share`` or more. Pairs are found by MinHash (Broder 1997; LSH of datasketch) and then compared
    exactly. A text without words repeats none.

    Args:
        texts: (n,).
        share: least similarity, in (0, 1].

    Returns:
        (n,) int64, each at most its own place; of a first one its own place.
    """
    from datasketch import MinHash, MinHashLSH

    found = np.arange(len(texts))
    near = MinHashLSH(threshold=max(share - _SLACK, 0.1), num_perm=_HASHES)
    exact: dict[Runs, int] = {}
    firsts: dict[int, Runs] = {}
    for place, text in enumerate(texts):
        runs = word_runs(text)
        if not runs:
            continue
        if (same := exact.setdefault(runs, place)) != place:
            found[place] = found[same]
            continue
        if len(runs) < _SHORT:
            continue
        sketch = MinHash(num_perm=_HASHES, seed=1, hashfunc=_low_bits)
        sketch.update_batch(list(runs))
        others = (int(other) for other in near.query(sketch))
        first = next((o for o in sorted(others) if _jaccard(runs, firsts[o]) >= share), None)
        if first is None:
            near.insert(place, sketch)
            firsts[place] = runs
        else:
            found[place] = first
    return found


def first_pictures(colours: NDArray[np.uint8], difference: float) -> NDArray[np.int64]:
    """Return for each picture the first one that it nearly repeats, itself where there is none.

    Two pictures nearly repeat each other where no colour of any field differs by more than
    ``difference``: the largest one tells, since what sets a drawing apart may be small, while
    saving it again changes all of it a little. What repeats a copy alone is none, so that a row of
    small changes does not join its ends. All pairs are compared (k-d tree), never held at once.

    Args:
        colours: (n, d) as ``pictures.picture_colours`` gives them.
        difference: most of a colour's range, in [0, 1].

    Returns:
        (n,) int64, each at most its own place; of a first one its own place.
    """
    from scipy.spatial import KDTree

    found = np.arange(len(colours))
    tree = KDTree(colours)
    for place in range(len(colours)):
        if found[place] == place:
            near = np.array(tree.query_ball_point(colours[place], 255 * difference, p=np.inf))
            later = near[near > place]
            found[later[found[later] == later]] = place
    return found


def pictures_of(
    colours: NDArray[np.uint8], originals: NDArray[np.uint8], difference: float
) -> Mask:
    """Tell which pictures nearly repeat one of the originals, see ``first_pictures``.

    Args:
        colours: (n, d) as ``pictures.picture_colours`` gives them.
        originals: (m, d) of what is sought, m >= 1.
        difference: most of a colour's range, in [0, 1].

    Returns:
        (n,) bool.
    """
    from scipy.spatial import KDTree

    nearest, _ = KDTree(originals).query(colours, p=np.inf)
    return np.asarray(nearest <= 255 * difference)


def same_documents(documents: Sequence[str], texts: Sequence[str], share: float) -> dict[str, str]:
    """Return for each document the first one that it is the same as, itself where there is none.

    Documents are the same where half of the shorter one's words or more are in rows that nearly
    repeat rows of the other: a row of boilerplate alone does not make them so.

    Args:
        documents: (n,) that each row is a part of.
        texts: (n,) of the rows.
        share: least similarity of rows, see ``first_copies``.
    """
    first = first_copies(texts, share)
    sizes = [len(words_of(text)) for text in texts]
    words: Counter[str] = Counter()
    for document, size in zip(documents, sizes, strict=True):
        words[document] += size
    common: Counter[tuple[str, str]] = Counter()
    for place, other in enumerate(first.tolist()):
        if documents[other] != documents[place]:
            common[documents[place], documents[other]] += sizes[place]
    found = {document: document for document in words}

    def root(document: str) -> str:
        while found[document] != document:
            document = found[document]
        return document

    order = {document: number for number, document in enumerate(words)}
    for (one, other), size in common.items():
        if size > 0 and 2 * size >= min(words[one], words[other]):
            early, late = sorted((root(one), root(other)), key=order.__getitem__)
            found[late] = early
    return {document: root(document) for document in found}


def _low_bits(run: int) -> int:
    """Return 32 bits of a hash: what a MinHash takes."""
    return run & 0xFFFFFFFF


def _jaccard(one: Runs, other: Runs) -> float:
    return len(one & other) / len(one | other)
