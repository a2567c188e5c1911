"""Rows of a mixture as the backbone takes them, encoded as batches come to need them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from albat_core.backbones.base import Backbone, Encoded
from albat_core.backbones.batches import Each
from albat_core.pictures import mirrored_picture
from albat_core.progress import track
from albat_core.records.examples import Example
from albat_core.training.sampler import MixtureSampler
from albat_core.training.variation import Variation

Draw = tuple[int, bool]
"""A row, and whether its picture is mirrored."""

_AHEAD = 8192  # draws whose rows are read together: each row group once for them
_KEPT = 1 << 25  # units of rows that are kept, at some 5 bytes a token
_UNTOUCHED = 1 << 30  # bytes of what is kept of rows without the adapter
_AT_ONCE = 64  # rows that are read before they are encoded: pictures may be large


class EncodedRows:
    """Rows as the backbone takes them; those that were used are kept while there is room.

    Args:
        backbone: what encodes them.
        rows: in order; those that are never asked for are not encoded.
    """

    def __init__(self, backbone: Backbone, rows: Sequence[Example]) -> None:
        self._backbone = backbone
        self._rows = rows
        self._kept: dict[Draw, Encoded] = {}

    def __getitem__(self, draw: Draw) -> Encoded:
        """Return what was fetched."""
        return self._kept[draw]

    def fetch(self, wanted: Iterable[Draw]) -> None:
        """Encode draws that are not kept yet; others may be let go."""
        needed = set(wanted)
        if sum(e.length for e in self._kept.values()) > _KEPT:
            self._kept = {n: e for n, e in self._kept.items() if n in needed}
        missing = sorted(needed - self._kept.keys())
        for start in range(0, len(missing), _AT_ONCE):
            some = missing[start : start + _AT_ONCE]
            encoded = self._backbone.encode([self._row(draw) for draw in some])
            self._kept |= dict(zip(some, encoded, strict=True))

    def note_untouched(self, each: Each, label: str = "") -> int:
        """Have all rows carry what the untouched backbone makes of them, if there is room.

        Args:
            each: computes batches of them.
            label: names the progress line; none: no line.

        Returns:
            units that were passed over.
        """
        draws = [(n, False) for n in range(len(self._rows))]
        self.fetch(draws[:1])
        if self[draws[0]].untouched is not None:
            return 0
        (first,) = self._backbone.with_untouched([self[draws[0]]])
        if first.untouched is None:
            return 0
        size = first.untouched.nbytes / first.loss_units
        encoded: list[Encoded] = []
        for start in range(0, len(draws), _AHEAD):
            some = draws[start : start + _AHEAD]
            self.fetch(some)
            encoded += [self[draw] for draw in some]
            if size * sum(e.loss_units for e in encoded) > _UNTOUCHED:
                return first.length
            if sum(e.length for e in encoded) > _KEPT:  # some would be let go, and be without it
                return first.length
        with track(label, len(encoded), "rows") as advance:

            def note(positions: list[int]) -> None:
                noted = self._backbone.with_untouched([encoded[n] for n in positions])
                self._kept |= {draws[n]: its for n, its in zip(positions, noted, strict=True)}
                advance(len(positions))

            each([e.length for e in encoded], [e.shape for e in encoded], note)
        return first.length + sum(e.length for e in encoded)

    def _row(self, draw: Draw) -> Example:
        number, mirrored = draw
        row = self._rows[number]
        if not mirrored or row.image is None:
            return row
        return replace(row, image=mirrored_picture(row.image))


class EncodedBatches:
    """Batches of a mixture by step, encoded for many steps ahead.

    Args:
        backbone: what encodes them.
        adaptation: rows of the adaptation set.
        corpus: rows of the backbone's corpus.
        sampler: says which rows a step has.
        steps: of the training, beyond which no row is encoded.
        variation: of pictures.
    """

    def __init__(
        self,
        backbone: Backbone,
        adaptation: Sequence[Example],
        corpus: Sequence[Example],
        sampler: MixtureSampler,
        steps: int,
        variation: Variation = Variation(),  # noqa: B008 - it is frozen
    ) -> None:
        self._backbone = backbone
        self._parts = EncodedRows(backbone, adaptation), EncodedRows(backbone, corpus)
        self._sampler = sampler
        self._steps = steps
        self._variation = variation
        self._fetched = range(0)

    def note_untouched(self, each: Each, steps: int, times: int, label: str = "") -> int:
        """Have adaptation rows carry what is made of them untouched, if steps read them often.

        Args:
            each: see ``EncodedRows.note_untouched``.
            steps: of the training.
            times: how often they must be read, on average, for that to pay.
            label: see ``EncodedRows.note_untouched``.
        """
        own, _ = self._parts
        read, _ = self._sampler.drawn(steps)
        return own.note_untouched(each, label) if read >= times * self._sampler.rows else 0

    def batch(self, step: int) -> tuple[list[Encoded], list[Encoded]]:
        """Return the adaptation rows and the corpus rows of a step, counted from 0.

        Raises:
            InputError: a row of this or of one of the next steps is not as the backbone takes it.
        """
        own, other = self._parts
        if step not in self._fetched:
            ahead = max(_AHEAD // self._sampler.batch_size, 1)
            self._fetched = range(step, min(step + ahead, self._steps))
            drawn = [self._drawn(n) for n in self._fetched]
            own.fetch(n for rows, _ in drawn for n in rows)
            other.fetch(n for _, rows in drawn for n in rows)
        draws = self._drawn(step)
        found = [own[draw] for draw in draws[0]], [other[draw] for draw in draws[1]]
        bare = iter(self._variation.uncaptioned(step, self._sampler.batch_size))
        varied = [
            [self._backbone.without_caption(e) if next(bare) else e for e in part] for part in found
        ]
        return varied[0], varied[1]

    def _drawn(self, step: int) -> tuple[list[Draw], list[Draw]]:
        """Return the adaptation rows and the corpus rows of a step, mirrored or not."""
        own, other = self._sampler.batch(step)
        mirrored = self._variation.mirrored(step, self._sampler.batch_size)
        return (
            list(zip(own, mirrored[: len(own)], strict=True)),
            list(zip(other, mirrored[len(own) :], strict=True)),
        )
