"""Devices are lent: in a process to one thread at a time, on a machine to one process each."""

import fcntl
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from albat_core import devices
from albat_core.devices import check_device_count, lent_device, lent_devices
from albat_core.errors import ConfigError
from albat_core.progress import waited_seconds
from albat_core.store.stage import Runtime
from tests.waiting import PATIENCE, wait_until

ANY, CPU = Runtime(), Runtime(device="cpu")
GPUS = {"cuda:0": "gpu-one", "cuda:1": "gpu-two"}


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "gpu_names", lambda: GPUS)
    monkeypatch.setattr(devices, "gpu_count", lambda: len(GPUS))
    monkeypatch.setattr(devices, "resolve_device", lambda _runtime: torch.device("cuda"))
    monkeypatch.setattr(devices, "_LAST", [""])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@contextmanager
def taken(name: str) -> Iterator[None]:
    """Hold a GPU as another process does."""
    place = Path(tempfile.gettempdir(), f"albat-{os.getuid()}-{GPUS[name]}.lock")
    with place.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def test_a_process_takes_a_gpu_that_no_other_has(two: None) -> None:
    with taken("cuda:0"), lent_device(ANY) as device:
        assert str(device) == "cuda:1"
    with lent_device(ANY) as device:  # where its backbone is loaded still
        assert str(device) == "cuda:1"
    with taken("cuda:1"), lent_device(ANY) as device:
        assert str(device) == "cuda:0"


def test_who_finds_none_free_waits(two: None) -> None:
    given: list[tuple[str, float]] = []

    def come() -> None:
        with lent_device(ANY) as device:
            given.append((str(device), waited_seconds()))

    late = threading.Thread(target=come)
    with taken("cuda:0"):
        with taken("cuda:1"):
            late.start()
            late.join(0.5)
            assert not given
        wait_until(lambda: len(given) == 1)
    late.join(PATIENCE)
    assert given[0][0] == "cuda:1"
    assert given[0][1] > 0  # which is no work of its own


@pytest.mark.parametrize("runtime", [CPU, ANY], ids=["cpu", "gpu"])
def test_threads_of_a_process_compute_one_at_a_time(
    two: None, monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    if runtime is CPU:
        monkeypatch.setattr(devices, "resolve_device", lambda _runtime: torch.device("cpu"))
    inside, most = [0], []
    lock = threading.Lock()

    def use() -> None:
        with lent_device(runtime):
            with lock:
                inside[0] += 1
                most.append(inside[0])
            threading.Event().wait(0.02)
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert most == [1] * 6


def test_a_training_is_lent_several_devices_or_none(two: None) -> None:
    both = Runtime(training_devices=2)

    def come() -> None:
        with lent_devices(both) as names:
            given.extend(names)

    given: list[str] = []
    late = threading.Thread(target=come)
    with taken("cuda:0"):
        late.start()
        late.join(0.5)
        assert not given
        with taken("cuda:1"):  # which it did not keep while it waited for the other
            assert not given
    wait_until(lambda: len(given) == 2)
    late.join(PATIENCE)
    assert sorted(given) == [*GPUS]
    for name in GPUS:
        with lent_devices(both), pytest.raises(BlockingIOError), taken(name):
            pass


@pytest.mark.parametrize("name", ["devices", "training_devices"])
def test_more_devices_than_there_are_is_told(
    two: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    check_device_count(Runtime(**{name: 2}))
    with pytest.raises(ConfigError, match=r"at most 2, .* got 3") as caught:
        check_device_count(Runtime(**{name: 3}))
    assert caught.value.where == f"runtime.{name}"
    monkeypatch.setattr(devices, "resolve_device", lambda _runtime: torch.device("cpu"))
    check_device_count(Runtime(**{name: 3}))


def test_a_thread_that_has_a_device_is_given_it_again(two: None) -> None:
    with lent_device(ANY) as first, lent_device(ANY) as second:
        assert first == second
    with pytest.raises(ValueError, match="broken"), lent_device(ANY):
        raise ValueError("broken")
    with lent_device(ANY) as again:  # was given back
        assert again == first
