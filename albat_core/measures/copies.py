"""Copies: rows whose words or colours are the same as another's, or nearly so."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from albat_core.records.words import words_of

Mask = NDArray[np.bool_]
Runs = NDArray[np.uint64]
"""Hashes of a text's distinct runs of words, in their order."""

SAME_COLOURS = 0.04
"""Largest difference of a colour, of its range, of a picture that was saved again."""
COMMON = 10
"""Texts; a run of words in more of them is a template's."""
_RUN = 5  # words: few enough to survive an edit, too many to coincide by chance
_SHORT = 4  # runs, of 8 words; a text with fewer is a copy only where it is all the same
_OWN = 8  # runs, one after another: more than an edit of three words leaves
_OWN_ROW = 6  # of one word; beside a long instruction a question may be as short
_HASHES = 64  # of a MinHash; what it finds is compared exactly, so that it need only find enough
_SLACK = 0.2  # so much less similar may a MinHash find them
_AT_ONCE = 2**22  # hashes sorted
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd; 2^64 divided by the golden ratio


def word_runs(text: str) -> Runs:
    """Return the hashes of a text's runs of five words, or of all its words where they are fewer.

    See ``words_of``: what differs in typography or punctuation alone is the same.
    """
    words = np.array([_hash(word) for word in words_of(text)], dtype=np.uint64)
    count = max(len(words) - _RUN + 1, min(len(words), 1))
    found = np.zeros(count, dtype=np.uint64)
    for offset in range(min(len(words), _RUN)):  # a polynomial, which overflows as it should
        found = (found + words[offset : offset + count]) * _FACTOR
        found ^= found >> np.uint64(29)
    return found[np.sort(np.unique(found, return_index=True)[1])]


@lru_cache(2**18)
def _hash(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest())


def telling_runs(runs: Sequence[Runs], common: int = COMMON, least: int = _OWN) -> list[Runs]:
    """Return the runs that tell whether texts are copies: those of templates are none.

    An instruction that many rows begin with does not make them copies of one another. A text that
    says nothing else, or hardly anything, is told by all that it says.

    Args:
        runs: (n,) of texts, see ``word_runs``.
        common: a run in more texts than this, equal ones counted once, is a template's.
        least: runs in succession that are of no template, of a text that says something else.
    """
    distinct = {blake2b(its.tobytes(), digest_size=16).digest(): its for its in runs}
    frequent = _in_more(list(distinct.values()), common)
    found = []
    for its in runs:
        own = _places(its, frequent) < 0
        found.append(its[own] if _longest(own) >= least and not own.all() else its)
    return found


def _in_more(runs: Sequence[Runs], count: int) -> Runs:
    """Return the runs that more than ``count`` texts have, ascending."""
    parts = -(-sum(map(len, runs)) // _AT_ONCE)
    found = [np.zeros(0, np.uint64)]
    for part in range(parts):  # sorted by part, so that they are not held twice
        its = runs if parts == 1 else [r[r % np.uint64(parts) == part] for r in runs]
        values, counts = np.unique(np.concatenate(its), return_counts=True)
        found.append(values[counts > count])
    return np.sort(np.concatenate(found))


def _places(runs: Runs, among: Runs) -> NDArray[np.int64]:
    """Return where runs are among ascending ones, -1 where they are not."""
    if not len(among):
        return np.full(len(runs), -1)
    places = np.minimum(np.searchsorted(among, runs), len(among) - 1)
    return np.where(among[places] == runs, places, -1)


def _longest(mask: Mask) -> int:
    """Return how many values one after another are true at most."""
    ends = np.flatnonzero(~np.concatenate([[False], mask, [False]]))
    return int(np.diff(ends).max()) - 1


def copies_of(texts: Sequence[Runs], originals: Sequence[Runs], share: float) -> Mask:
    """Tell which texts repeat one of the originals, or are a part of it, or have it as a part.

    A text is a copy where the shorter of both has so large a share of its runs of words in common
    with the longer one.

    Args:
        texts: (n,) runs.
        originals: what is sought; some thousands.
        share: least share, in (0, 1].

    Returns:
        (n,) bool.
    """
    holders: dict[int, list[int]] = defaultdict(list)
    for number, runs in enumerate(originals):
        for run in runs.tolist():
            holders[run].append(number)

    def repeats(runs: Runs) -> bool:
        common = Counter(number for run in runs.tolist() for number in holders.get(run, ()))
        for number, count in common.items():
            shorter = min(len(runs), len(originals[number]))
            if shorter < _SHORT:
                if np.array_equal(runs, originals[number]):
                    return True
            elif count >= share * shorter:
                return True
        return False

    return np.array([repeats(runs) for runs in texts], dtype=np.bool_)


def said_in(texts: Sequence[Runs], originals: Sequence[Runs], share: float) -> Mask:
    """Tell which texts say for the most part what originals say, one or several together.

    What only has an original as a part is none: it may be boilerplate, and the rest is new.

    Args:
        texts: (n,) runs; one without words is none.
        originals: what is sought; some thousands.
        share: least share of a text's runs of words, in (0, 1].

    Returns:
        (n,) bool.
    """
    known = np.unique(np.concatenate([np.zeros(0, np.uint64), *originals]))
    short = {runs.tobytes() for runs in originals if len(runs) < _SHORT}

    def is_said(runs: Runs) -> bool:
        if len(runs) < _SHORT:
            return len(runs) > 0 and runs.tobytes() in short
        return bool((_places(runs, known) >= 0).sum() >= share * len(runs))

    return np.array([is_said(runs) for runs in texts], dtype=np.bool_)


def repeats_before(texts: Sequence[Runs], share: float) -> Mask:
    """Tell which texts say for the most part what texts before them say, one or several together.

    A text repeats others where ``share`` or more of its runs of words are in texts before it that
    repeat none. So a page of boilerplate, cut at another place in each document, is kept once.

    Args:
        texts: (n,) runs; one without words repeats none.
        share: least share, in (0, 1].

    Returns:
        (n,) bool.
    """
    several = _in_more(texts, 1)  # the others are said once
    seen = np.zeros(len(several), dtype=np.bool_)
    short: set[bytes] = set()

    def repeats(runs: Runs) -> bool:
        if len(runs) < _SHORT:
            known = runs.tobytes() in short
            short.add(runs.tobytes())
            return known and len(runs) > 0
        places = _places(runs, several)
        places = places[places >= 0]
        if seen[places].sum() >= share * len(runs):
            return True
        seen[places] = True
        return False

    return np.array([repeats(runs) for runs in texts], dtype=np.bool_)


def first_copies(texts: Sequence[Runs], share: float) -> NDArray[np.int64]:
    """Return for each text the first one that it nearly repeats, itself where there is none.

    Two texts nearly repeat each other where their runs of words have a Jaccard similarity of
    ``share`` or more. Pairs are found by MinHash (Broder 1997; LSH of datasketch) and then compared
    exactly. A text without words repeats none.

    Args:
        texts: (n,) runs.
        share: least similarity, in (0, 1].

    Returns:
        (n,) int64, each at most its own place; of a first one its own place.
    """
    from datasketch import MinHash, MinHashLSH

    found = np.arange(len(texts))
    near = MinHashLSH(threshold=max(share - _SLACK, 0.1), num_perm=_HASHES)
    exact: dict[bytes, int] = {}
    for place, runs in enumerate(texts):
        if not len(runs):
            continue
        if (same := exact.setdefault(runs.tobytes(), place)) != place:
            found[place] = found[same]
            continue
        if len(runs) < _SHORT:
            continue
        sketch = MinHash(num_perm=_HASHES, seed=1, hashfunc=_low_bits)
        sketch.update_batch(runs.tolist())
        others = (int(other) for other in near.query(sketch))
        first = next((o for o in sorted(others) if _jaccard(runs, texts[o]) >= share), None)
        if first is None:
            near.insert(place, sketch)
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
    runs = telling_runs([word_runs(text) for text in texts], least=_OWN_ROW)
    first = first_copies(runs, share)
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
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
