"""Weights & Biases: its server, or files for ``wandb sync`` where ``WANDB_MODE`` is offline."""

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from albat_core.errors import ConfigError
from albat_core.store import storage
from albat_core.trackers.base import Picture, Results, Tracker


class WeightsAndBiases(Tracker):
    """A project for each run of albat, in it a run for each training.

    The steps that it has already, it passes over by itself. Its files are in the run's output, or
    where ``WANDB_DIR`` says.
    """

    name: ClassVar[str] = "wandb"
    library: ClassVar[str] = "wandb"

    def __init__(self, project: str, run: str, key: str, folder: str) -> None:
        import wandb

        self.check(folder)
        self.last = {}
        place = os.environ.get("WANDB_DIR")
        if not place and not storage.is_remote(folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
            place = folder
        self._its = wandb.init(
            project=project,
            id=key,
            name=run,
            dir=place,
            resume="allow",
            reinit="create_new",  # others go on beside it
            settings=wandb.Settings(silent=True, console="off"),
        )

    @classmethod
    def check(cls, folder: str) -> None:
        """See ``Tracker``."""
        import wandb

        del folder
        online = wandb.setup().settings.mode not in ("offline", "disabled")
        if online and not wandb.login(prompt=False):  # it would ask at the terminal, and wait
            raise ConfigError(
                "expected a key of Weights & Biases, got none",
                where=f"tracking: {cls.name}",
                remedy="run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline",
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See ``Tracker``."""
        self._its.log(dict(values), step=step)

    def show(self, pictures: Sequence[Picture], step: int) -> None:
        """See ``Tracker``."""
        import wandb

        shown = {its.name: wandb.Image(its.pixels, caption=its.caption) for its in pictures}
        self._its.log(shown, step=step)

    def keep(self, results: Results) -> None:
        """See ``Tracker``."""
        import wandb

        shown: dict[str, object] = dict(results.figures)
        for name, text in results.texts.items():
            shown[name] = wandb.Html(f"<pre>{html.escape(text)}</pre>")
        if results.table:
            columns = list(results.table[0])
            rows = [[row[name] for name in columns] for row in results.table]
            shown["arms"] = wandb.Table(columns=columns, data=rows)
        self._its.log(shown)
        for name, path in results.files.items():
            self._its.log_artifact(str(path), name=name, type=name)

    def finish(self, *, failed: bool) -> None:
        """See ``Tracker``."""
        self._its.finish(exit_code=int(failed))
