"""TensorBoard: event files in a folder, which ``tensorboard --logdir`` shows."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from albat_core.errors import ConfigError
from albat_core.store import storage
from albat_core.trackers.base import Picture, Results, Tracker


class TensorBoard(Tracker):
    """A folder of event files for each training; other files are named in it, not copied."""

    name: ClassVar[str] = "tensorboard"
    library: ClassVar[str] = "tensorboard"

    def __init__(self, project: str, run: str, key: str, folder: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        del project  # the folder is its own
        place = Path(folder, self.name, f"{re.sub('[^A-Za-z0-9]+', '-', run).strip('-')}-{key[:8]}")
        self.last = _last_steps(place)
        self._its = SummaryWriter(str(place))

    @classmethod
    def check(cls, folder: str) -> None:
        """See ``Tracker``."""
        if storage.is_remote(folder):
            raise ConfigError(
                "expected a local output, to which event files can be appended",
                where=f"tracking: {cls.name}: {folder}",
                remedy="write to a local folder, or track with mlflow, trackio or wandb",
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See ``Tracker``."""
        for name, value in values.items():
            self._its.add_scalar(name, value, step)
        self._its.flush()  # so that it is seen while the training goes on

    def show(self, pictures: Sequence[Picture], step: int) -> None:
        """See ``Tracker``."""
        for picture in pictures:
            self._its.add_image(picture.name, picture.pixels, step, dataformats="HWC")
            self._its.add_text(picture.name, picture.caption, step)
        self._its.flush()

    def keep(self, results: Results) -> None:
        """See ``Tracker``."""
        self.log(results.figures, 0)
        where = "\n".join(f"- {name}: `{path}`" for name, path in results.files.items())
        for name, text in {**results.texts, "files": where}.items():
            self._its.add_text(name, text, 0)

    def finish(self, *, failed: bool) -> None:
        """See ``Tracker``; event files say nothing of how the work ended."""
        del failed
        self._its.close()


def _last_steps(place: Path) -> dict[str, int]:
    """Return the last step of each curve in a folder's event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not place.is_dir():
        return {}
    events = EventAccumulator(str(place)).Reload()
    return {tag: events.Scalars(tag)[-1].step for tag in events.Tags()["scalars"]}
