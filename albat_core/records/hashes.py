"""Hashes of names: which occur again, and how many differ; beyond a million they are on disk."""

import tempfile
from array import array
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

from albat_core.store.scratch import scratch

_AT_ONCE = 1 << 20  # in memory: 8 MB, some times over while they are sorted
_ALL = 2**64


class Hashes:
    """Numbers in [0, 2**64), of which a fixed number is in memory however many there are.

    They are kept as sorted runs in a temporary file, and merged by ranges of values, which are
    evenly filled, as hashes are.
    """

    def __init__(self) -> None:
        self._waiting = array("Q")
        self._runs = 0
        self._file: IO[bytes] | None = None

    def add(self, number: int) -> None:
        """Take a number, or Python's hash of something, which may be below 0."""
        self._waiting.append(number % _ALL)
        if len(self._waiting) == _AT_ONCE:
            with scratch():
                self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 - gone with this
                self._file.write(np.sort(np.asarray(self._waiting)).data)
                self._file.flush()
            self._waiting, self._runs = array("Q"), self._runs + 1

    def extend(self, numbers: Iterable[int]) -> None:
        """Take several, see ``add``."""
        for number in numbers:
            self.add(number)

    def distinct(self) -> int:
        """Return how many differ."""
        return sum(len(np.unique(some)) for some in self._ranges())

    def repeated(self) -> set[int]:
        """Return those that occur more than once."""
        found: set[int] = set()
        for some in self._ranges():
            found.update(some[1:][some[1:] == some[:-1]].tolist())
        return found

    def _ranges(self) -> Iterator[NDArray[np.uint64]]:
        """Yield all of them, sorted, a range of values at a time."""
        runs = [np.sort(np.asarray(self._waiting))]
        if self._file is not None:
            mapped = np.memmap(self._file, np.uint64, "r", shape=(self._runs, _AT_ONCE))
            runs += list(mapped)
        marks = [n * _ALL // len(runs) for n in range(1, len(runs))]
        inner = [np.searchsorted(run, np.array(marks, np.uint64)).tolist() for run in runs]
        places = [[0, *cuts, len(run)] for cuts, run in zip(inner, runs, strict=True)]
        for n in range(len(runs)):
            yield np.sort(
                np.concatenate(
                    [run[at[n] : at[n + 1]] for run, at in zip(runs, places, strict=True)]
                )
            )
