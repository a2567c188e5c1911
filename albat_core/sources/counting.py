"""How many rows sources have, from the heads of a few of their files."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

from albat_core.errors import InputError
from albat_core.records.examples import Example, example_text
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import InputFile, amount_of, find_problems
from albat_core.sources.filters import judge
from albat_core.sources.rows import placed_rows

_FILES = 8  # of a source, evenly spread
_HEAD = 200  # rows of a file
_MOST = 5000  # rows of a file whose reader says late how far it is
_PICTURES = 16  # of a file

Split = Callable[[Example], list[Example]]


@dataclass
class Extent:
    """Rows as they are cut: some of them, and how many there are.

    Args:
        sample: from the heads of files.
        count: of all, estimated; exact where every file was read to its end.
        seconds: that reading and cutting all of them will take.
    """

    sample: list[Example] = field(default_factory=list)
    count: float = 0.0
    seconds: float = 0.0


def extent_of(sources: Sequence[SourceConfig], split: Split) -> Extent:
    """Return how many rows sources have once they are cut.

    Args:
        sources: whose files are read alike.
        split: cuts a row.
    """
    found = Extent()
    for source in sources:
        files, _ = find_problems(source)
        some = files[:: -(-len(files) // _FILES)] if files else []
        times = len(files) / len(some) * source.share if some else 0.0
        for file in some:
            _add(found, file, split, times)
    return found


def _add(found: Extent, file: InputFile, split: Split, times: float) -> None:
    """Add what a file stands for: so many files like it."""
    config, began = file.config, time.perf_counter()
    left_out_for = judge(config.filters)
    read = letters = rows = 0
    pieces: list[Example] = []
    head = _PICTURES if config.image_column else _HEAD

    def advance(amount: int) -> None:
        nonlocal read
        read += amount

    before, whole = 0, True
    for placed in placed_rows(file, advance):
        if rows >= head and (read > before or rows >= _MOST):
            whole = False  # what was read is told between rows, of some formats for many at once
            break
        before = read
        rows += 1
        if placed.lacks(config) or left_out_for(example_text(placed.example)):
            continue
        with suppress(InputError):  # the run skips a damaged picture, or tells of it
            example = placed.whole()
            letters += len(example_text(example).encode()) + len(example.image or b"")
            pieces += split(example)
    share = 1.0 if whole else max(amount_of(file)[0] / max(read or letters, 1), 1.0)
    found.sample += pieces
    found.count += len(pieces) * share * times
    found.seconds += (time.perf_counter() - began) * share * times


def spread(rows: Sequence[Example], count: int) -> list[Example]:
    """Return so many rows evenly spread over all, again from the first where there are fewer.

    Args:
        rows: at least one.
        count: >= 1.
    """
    if len(rows) >= count:
        return [rows[place * len(rows) // count] for place in range(count)]
    return list(chain(*[rows] * -(-count // len(rows))))[:count]
