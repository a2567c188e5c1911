"""What a training changes of the pictures that it draws: left and right, or that they are named."""

from dataclasses import dataclass

from albat_core.seeding import numpy_generator


@dataclass(frozen=True)
class Variation:
    """Says which draws of a step are mirrored or lose their caption; of seed and step alone.

    Args:
        flip: whether every second draw is mirrored, at random.
        caption_dropout: share of draws that lose their caption, in [0, 1].
        seed: of its named generators.
    """

    flip: bool = False
    caption_dropout: float = 0.0
    seed: int = 0

    def mirrored(self, step: int, count: int) -> list[bool]:
        """Return which of a step's draws are mirrored."""
        return self._drawn("flips", 0.5 if self.flip else 0.0, step, count)

    def uncaptioned(self, step: int, count: int) -> list[bool]:
        """Return which of a step's draws have no caption."""
        return self._drawn("caption dropout", self.caption_dropout, step, count)

    def _drawn(self, name: str, share: float, step: int, count: int) -> list[bool]:
        drawn = numpy_generator(self.seed, name, step).random(count) < share
        return [bool(one) for one in drawn]
