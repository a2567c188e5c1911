"""trackio: a dashboard of Hugging Face's, on this machine (``trackio show``) or in a Space."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from albat_core.trackers.base import Picture, Results, Tracker


class Trackio(Tracker):
    """A project for each run of albat, in it a run for each training."""

    name: ClassVar[str] = "trackio"
    library: ClassVar[str] = "trackio"

    def __init__(self, project: str, run: str, key: str, folder: str) -> None:
        import trackio

        del folder
        self._its = trackio.init(
            project,
            name=f"{run} {key[:8]}",
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        self.last, self.before = {}, self._its._next_step - 1  # of a run that it goes on with

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See ``Tracker``."""
        self._its.log(dict(values), step=step)

    def show(self, pictures: Sequence[Picture], step: int) -> None:
        """See ``Tracker``."""
        import trackio

        shown = {its.name: trackio.Image(its.pixels, caption=its.caption) for its in pictures}
        self._its.log(shown, step=step)

    def keep(self, results: Results) -> None:
        """See ``Tracker``."""
        import trackio

        shown = {name: trackio.Markdown(text) for name, text in results.texts.items()}
        self._its.log({**results.figures, **shown}, step=0)
        for name, path in results.files.items():
            self._its.log_artifact(path, name=name, type=name)

    def finish(self, *, failed: bool) -> None:
        """See ``Tracker``; it has no word for work that failed."""
        del failed
        self._its.finish()
