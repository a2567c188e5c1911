"""MLflow: a server, a database or a folder, as ``MLFLOW_TRACKING_URI`` names it."""

import csv
import io
import threading
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

from albat_core.trackers.base import Picture, Results, Tracker

_KEY = "albat.key"
_STARTING = threading.Lock()  # trainings side by side would each make the experiment


class Mlflow(Tracker):
    """An experiment for each run of albat, in it a run for each training."""

    name: ClassVar[str] = "mlflow"
    library: ClassVar[str] = "mlflow"

    def __init__(self, project: str, run: str, key: str, folder: str) -> None:
        from mlflow import MlflowClient

        del folder
        self._client = MlflowClient()
        with _STARTING:
            experiment = self._client.get_experiment_by_name(project)
            place = experiment.experiment_id if experiment else None
            place = place or self._client.create_experiment(project)
            found = self._client.search_runs([place], f"tags.`{_KEY}` = '{key}'")
            its = (
                found[0]
                if found
                else self._client.create_run(place, tags={_KEY: key}, run_name=run)
            )
        self._run = its.info.run_id
        self.last = {
            name: max(point.step for point in self._client.get_metric_history(self._run, name))
            for name in its.data.metrics
        }

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See ``Tracker``."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)  # milliseconds
        points = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=points)

    def show(self, pictures: Sequence[Picture], step: int) -> None:
        """See ``Tracker``."""
        for picture in pictures:
            self._client.log_image(self._run, picture.pixels, key=picture.name, step=step)

    def keep(self, results: Results) -> None:
        """See ``Tracker``."""
        self.log(results.figures, 0)
        if results.table:
            table = io.StringIO()
            writer = csv.DictWriter(table, list(results.table[0]))
            writer.writeheader()
            writer.writerows(results.table)
            self._client.log_text(self._run, table.getvalue(), "arms.csv")
        for name, text in results.texts.items():
            self._client.log_text(self._run, text, f"{name}.md")
        for name, path in results.files.items():
            if path.is_dir():
                self._client.log_artifacts(self._run, str(path), name)
            else:
                self._client.log_artifact(self._run, str(path))

    def finish(self, *, failed: bool) -> None:
        """See ``Tracker``."""
        self._client.set_terminated(self._run, status="FAILED" if failed else "FINISHED")
