"""What every tracker is: a place outside that shows a training's curves and a run's results."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, str | float | None]
Log = Callable[[Mapping[str, float], int], None]
"""Takes points of curves by name, and the step that they are of; steps do not fall."""

_CURVES = {"validation": "validation/loss", "train": "train/mean_loss"}


def to_nobody(_values: Mapping[str, float], _step: int) -> None:
    """Take points of curves that nobody follows."""


def log_looks(history: Sequence[Mapping[str, float]], log: Log) -> None:
    """Log looks at the validation documents: their loss, and the mean of the steps before it."""
    for look in history:
        measured = {curve: look[name] for name, curve in _CURVES.items() if name in look}
        log(measured, int(look["step"]))


@dataclass(frozen=True)
class Results:
    """What a run came to, as trackers keep it.

    Args:
        figures: numbers by name, such as ``heldout/loss/albat``.
        table: the arms, a row each, all with the same columns.
        texts: Markdown by name, of the table too.
        files: files and folders by name.
    """

    figures: Mapping[str, float] = field(default_factory=dict)
    table: Sequence[Row] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A picture that was drawn while an adapter was trained.

    Args:
        name: the same at each step, such as ``samples/1``.
        caption: what it was drawn of.
        pixels: (height, width, 3) RGB in [0, 255].
    """

    name: str
    caption: str
    pixels: NDArray[np.uint8]


class Tracker(ABC):
    """One run of a tracker, which is begun, or gone on with, where an object is made.

    A project holds all that one run of albat trains, each under a name and a key of its own: what
    has the same key is the same training, gone on with. All calls come from one thread.

    Args:
        project: the name of albat's run.
        run: what is trained, in words.
        key: of the artifact that it makes.
        folder: local folder for those that write files.
    """

    name: ClassVar[str]
    """As settings have it."""
    library: ClassVar[str]
    """The module that it needs."""
    last: dict[str, int]
    """The last step of each curve that was logged before, by whoever began it."""
    before: int = -1
    """The same of a curve that ``last`` does not have, where they are not told apart."""

    @abstractmethod
    def __init__(self, project: str, run: str, key: str, folder: str) -> None: ...

    @classmethod
    def check(cls, folder: str) -> None:
        """Look, without network, whether it could be used.

        Raises:
            ConfigError: it could not.
        """
        del folder

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve; steps do not fall."""

    def show(self, pictures: Sequence[Picture], step: int) -> None:
        """Show pictures of a step; a tracker that has no place for them passes over them."""
        del pictures, step

    @abstractmethod
    def keep(self, results: Results) -> None:
        """Keep what a run came to."""

    @abstractmethod
    def finish(self, *, failed: bool) -> None:
        """Send what is left, and end.

        Args:
            failed: whether the work ended by an error, or was stopped.
        """
