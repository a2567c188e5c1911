"""Trackers: curves and results as each of them keeps them, and runs that none of them can end."""

import json
import logging
import os
import re
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from albat_core import trackers
from albat_core.errors import ConfigError, Interrupted, MissingDependencyError
from albat_core.progress import reporting_to
from albat_core.records.runs import ALBAT, LABELS
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.stages.report import track_run
from albat_core.store.artifacts import ArtifactStore
from albat_core.trackers import TRACKERS, Tracking, check_tracker, followed_by
from albat_core.trackers.base import Picture
from albat_core.trackers.tensorboard import TensorBoard
from albat_core.training.config import learning_rate
from tests.core.trainings import STEPS, StopsAt, Training, same
from tests.waiting import wait_until

PROJECT = "toy"
AGAINST_PINS = {"mlflow", "trackio"}  # refuse versions in constraints.txt, so they are not in `dev`
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp()  # looked at where trackio is imported

Curves = dict[str, list[tuple[int, float]]]
"""Points (step, value) by the curve's name, in order."""


def installed(name: str) -> None:
    if name in AGAINST_PINS:
        pytest.importorskip(name)


def of_mlflow(_folder: Path) -> Curves:
    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name(PROJECT).experiment_id])
    return {
        name: sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }


def of_tensorboard(folder: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = (folder / "tensorboard").iterdir()
    events = EventAccumulator(str(place)).Reload()
    return {
        tag: sorted((p.step, p.value) for p in events.Scalars(tag))
        for tag in events.Tags()["scalars"]
    }


def of_trackio(_folder: Path) -> Curves:
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_run_records(PROJECT)
    found: dict[str, list[tuple[int, float]]] = {}
    for row in SQLiteStorage.get_logs(PROJECT, run["name"]):
        for name, value in row.items():
            if "/" in name:
                found.setdefault(name, []).append((row["step"], value))
    return {name: sorted(points) for name, points in found.items()}


def records(path: Path) -> list[Any]:
    """Return what ``wandb sync`` would send, once its service has written the end."""
    wait_until(lambda: any(record.HasField("exit") for record in written(path)))
    return list(written(path))


def written(path: Path) -> Iterator[Any]:
    """Yield what ``wandb sync`` would send: records in a log as LevelDB has it.

    That is 7 bytes, then blocks of 32 KiB, in which parts have a checksum (4 bytes), a length (2),
    and a type (1: whole; 2, 3, 4: first, middle, last of several).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", content, place + 4)
        if place + 7 + size > len(content):
            return
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""


def of_wandb(folder: Path) -> Curves:
    found: dict[str, set[tuple[int, float]]] = {}
    for path in (folder / "wandb").rglob("*.wandb"):  # of one run: its server joins them
        for record in records(path):
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if "/" in name:
                    point = (record.history.step.num, json.loads(item.value_json))
                    found.setdefault(name, set()).add(point)
    return {name: sorted(points) for name, points in found.items()}


READERS: dict[str, Callable[[Path], Curves]] = {
    "mlflow": of_mlflow,
    "tensorboard": of_tensorboard,
    "trackio": of_trackio,
    "wandb": of_wandb,
}


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every tracker keeps what it is told below a folder of the test's own, without network."""
    monkeypatch.setattr(trackers, "_told", set())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_a_reader_for_each_tracker() -> None:
    assert READERS.keys() == TRACKERS.keys()


@pytest.mark.parametrize("name", READERS)
def test_curves_go_on_where_a_training_was_stopped(
    name: str, training: Training, another: Training, places: Path
) -> None:
    installed(name)
    tracking = Tracking(to=(name,), project=PROJECT, folder=str(places))
    with reporting_to(StopsAt(13)), pytest.raises(Interrupted):
        training.run(tracking=tracking)
    ref = training.run(tracking=tracking)
    assert same(training.weights(ref), another.weights(another.run()))
    for _ in range(2):  # what is found finished adds nothing
        curves = READERS[name](places)
        rates = [(n + 1, pytest.approx(learning_rate(STEPS, n), rel=1e-6)) for n in range(20)]
        assert curves["train/learning_rate"] == rates
        assert [step for step, _ in curves["train/loss"]] == [*range(1, 21)]
        history = training.store.manifest(ref).facts["history"]
        assert curves["validation/loss"] == [
            (look["step"], pytest.approx(look["validation"], rel=1e-6)) for look in history
        ]
        losses = [loss for _, loss in curves["train/loss"]]
        assert curves["train/mean_loss"] == [
            (n, pytest.approx(sum(losses[n - 5 : n]) / 5, rel=1e-5)) for n in (5, 10, 15, 20)
        ]
        assert training.run(tracking=tracking).reused


class Noting(TensorBoard):
    """A tracker that notes how work ended."""

    name = "noting"
    ends: ClassVar[list[bool]] = []

    def finish(self, *, failed: bool) -> None:
        super().finish(failed=failed)
        self.ends.append(failed)


def test_work_that_failed_or_was_stopped_is_not_shown_as_finished(
    training: Training, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, Noting.name, Noting)
    monkeypatch.setattr(Noting, "ends", [])
    tracking = Tracking(to=(Noting.name,), project=PROJECT, folder=str(places))
    with reporting_to(StopsAt(3)), pytest.raises(Interrupted):
        training.run(tracking=tracking)
    training.run(tracking=tracking)
    assert Noting.ends == [True, False]


def test_a_run_that_failed_is_so_at_wandb(places: Path) -> None:
    tracking = Tracking(to=("wandb",), project=PROJECT, folder=str(places))
    with pytest.raises(ValueError, match="broken"), followed_by(tracking, "train", "0" * 32) as its:
        its.log({"train/loss": 1.0}, 1)
        raise ValueError("broken")
    (path,) = (places / "wandb").rglob("*.wandb")
    assert [r.exit.exit_code for r in records(path) if r.HasField("exit")] == [1]


def kept_by_mlflow(folder: Path, project: str) -> tuple[dict[str, float], str, set[str]]:
    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name(project).experiment_id])
    kept = Path(client.download_artifacts(run.info.run_id, "", str(folder)))
    files = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
    return run.data.metrics, (kept / "arms.csv").read_text(), files


def kept_by_tensorboard(folder: Path, _project: str) -> tuple[dict[str, float], str, set[str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = (folder / "tensorboard").iterdir()
    events = EventAccumulator(str(place)).Reload()
    figures = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    texts = {
        tag.partition("/")[0]: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
    }
    named = {Path(line.split("`")[1]) for line in texts["files"].splitlines()}
    below = {f"adapter/{file.name}" for path in named if path.is_dir() for file in path.iterdir()}
    assert "`continues`" in texts["mixture"]
    return figures, texts["arms"], {path.name for path in named} | below


def kept_by_trackio(_folder: Path, project: str) -> tuple[dict[str, float], str, set[str]]:
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_run_records(project)
    (row,) = SQLiteStorage.get_logs(project, run["name"])
    figures = {name: value for name, value in row.items() if "/" in name}
    files = {
        f"adapter/{file['path']}" if artifact["name"] == "adapter" else file["path"]
        for artifact in SQLiteStorage.list_artifacts(project)
        for file in SQLiteStorage.get_artifact_manifest(project, artifact["name"], "latest")[
            "manifest"
        ]
    }
    return figures, row["arms"]["_value"], files


def kept_by_wandb(folder: Path, _project: str) -> tuple[dict[str, float], str, set[str]]:
    (path,) = (folder / "wandb").rglob("*.wandb")
    figures, files = {}, set()
    for record in records(path):
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            if "/" in name:
                figures[name] = json.loads(item.value_json)
        for entry in record.artifact.manifest.contents:
            one = record.artifact.name
            files.add(f"adapter/{entry.path}" if one == "adapter" else entry.path)
    (table,) = (folder / "wandb").rglob("arms*.table.json")
    return figures, table.read_text(), files


KEPT = {
    "mlflow": kept_by_mlflow,
    "tensorboard": kept_by_tensorboard,
    "trackio": kept_by_trackio,
    "wandb": kept_by_wandb,
}


@pytest.mark.parametrize("name", KEPT)
def test_results_are_kept(
    name: str, chain: Chain, store: ArtifactStore, places: Path, caplog: pytest.LogCaptureFixture
) -> None:
    installed(name)
    project = "results"
    tracking = Tracking(to=(name,), project=project, folder=str(places))
    track_run(chain.artifacts, chain.report, tracking, chain.config.runtime)
    assert not [each for each in caplog.records if each.name.startswith("albat_core")]
    if name != "wandb":  # whose runs without network are joined by its server
        track_run(chain.artifacts, chain.report, tracking, chain.config.runtime)  # adds nothing
    figures, table, files = KEPT[name](places, project)
    loss = store.manifest(chain.arms.evaluation(ALBAT)).facts["loss"]
    assert figures["heldout/loss/albat"] == pytest.approx(loss, rel=1e-6)
    assert LABELS[ALBAT] in table
    assert "gain over adaptation only" in table
    assert {"report.html", "adapter/adapter_model.safetensors"} <= files


def test_tracking_changes_no_key(chain: Chain, run_config: RunConfig, places: Path) -> None:
    _ = chain.report
    changed = {"tracking": ("tensorboard",), "output": str(places)}
    tracked = Chain(run_config.model_copy(update=changed))
    assert tracked.report == chain.report
    assert tracked.report.reused
    tracked.track()
    folders = {path.name.rpartition("-")[0] for path in (places / "toy" / "tensorboard").iterdir()}
    assert {"surrogate", "ALBAT-best-step", "results"} <= folders


def test_a_tracker_that_fails_is_told_once_and_ends_no_run(
    training: Training, another: Training, places: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = places / "x?token=secret"
    file.write_text("where there should be a folder")
    tracking = Tracking(to=("tensorboard",), project=PROJECT, folder=str(file))
    refs = [training.run(tracking=tracking), training.run(seed=1, tracking=tracking)]
    assert same(training.weights(refs[0]), another.weights(another.run()))
    (told,) = [each for each in caplog.records if each.name == "albat_core.trackers"]
    assert told.levelno == logging.WARNING
    assert "tracking by tensorboard failed" in told.getMessage()
    assert "secret" not in told.getMessage()


class Silent(TensorBoard):
    """A tracker whose server takes what it is sent, and never answers."""

    name = "silent"

    def log(self, values: Mapping[str, float], step: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname()[:2]).recv(1)


def test_a_tracker_that_does_not_answer_is_not_waited_for(
    training: Training,
    another: Training,
    places: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(trackers, "_PATIENCE", 0.1)
    monkeypatch.setitem(TRACKERS, Silent.name, Silent)
    tracking = Tracking(to=(Silent.name,), project=PROJECT, folder=str(places))
    ref = training.run(tracking=tracking)
    assert same(training.weights(ref), another.weights(another.run()))
    assert "no answer after" in caplog.text


def test_what_a_tracker_lacks_is_told_before_the_run(
    monkeypatch: pytest.MonkeyPatch, places: Path
) -> None:
    for name in TRACKERS.keys() - AGAINST_PINS:
        check_tracker(name, str(places))
    with pytest.raises(ConfigError, match="local output"):
        check_tracker("tensorboard", "s3://bucket/runs")
    monkeypatch.setattr(TRACKERS["mlflow"], "library", "no_such_library")
    with pytest.raises(MissingDependencyError) as raised:
        check_tracker("mlflow", str(places))
    assert "albat[tracking]" in raised.value.remedy


def images_of_mlflow(_folder: Path) -> list[int]:
    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name(PROJECT).experiment_id])
    files = client.list_artifacts(run.info.run_id, "images")
    return sorted(int(re.findall(r"step%(\d+)", f.path)[0]) for f in files if "png" in f.path)


def images_of_tensorboard(folder: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = (folder / "tensorboard").iterdir()
    events = EventAccumulator(str(place)).Reload()
    assert [(i.height, i.width) for i in events.Images("samples/1")] == [(8, 12)] * 2
    return [image.step for image in events.Images("samples/1")]


def images_of_trackio(_folder: Path) -> list[int]:
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_run_records(PROJECT)
    rows = SQLiteStorage.get_logs(PROJECT, run["name"])
    return [row["step"] for row in rows if "samples/1" in row]


def images_of_wandb(folder: Path) -> list[int]:
    return sorted(int(p.name.split("_")[1]) for p in folder.rglob("media/images/samples/1_*.png"))


IMAGES = {
    "mlflow": images_of_mlflow,
    "tensorboard": images_of_tensorboard,
    "trackio": images_of_trackio,
    "wandb": images_of_wandb,
}


@pytest.mark.parametrize("name", TRACKERS)
def test_pictures_are_shown_by_step(name: str, places: Path) -> None:
    installed(name)
    pixels = np.zeros((8, 12, 3), np.uint8)
    tracking = Tracking(to=(name,), project=PROJECT, folder=str(places))
    with followed_by(tracking, "train", "0" * 32) as followed:
        for step in (5, 10):
            followed.log({"train/loss": 1.0}, step)
            pixels = pixels + 100
            followed.show([Picture("samples/1", "a dog", pixels)], step)
    assert IMAGES[name](places) == [5, 10]
