"""Devices are lent to one thread each."""

import threading

import pytest

from albat_core import devices
from albat_core.devices import lent_device
from albat_core.progress import waited_seconds
from albat_core.store.stage import Runtime
from tests.waiting import PATIENCE

ANY = Runtime(device="cpu")


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "device_names", lambda _runtime: ["cuda:0", "cuda:1"])


def test_as_many_compute_at_once_as_there_are_devices(two: None) -> None:
    together, given = threading.Barrier(2), []
    free, held = threading.Event(), threading.Event()

    def use() -> None:
        with lent_device(ANY) as device:
            given.append(str(device))
            together.wait(PATIENCE)  # both are in here at once, or this fails
            held.set()
            assert free.wait(PATIENCE)

    def come_third() -> None:
        with lent_device(ANY) as device:
            given.append(str(device))
            waited.append(waited_seconds())

    waited: list[float] = []
    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert held.wait(PATIENCE)
    third = threading.Thread(target=come_third)
    third.start()
    third.join(0.2)
    assert sorted(given) == ["cuda:0", "cuda:1"]
    assert third.is_alive()
    free.set()
    for thread in (*threads, third):
        thread.join(PATIENCE)
    assert len(given) == 3
    assert waited[0] > 0  # which is no work of its own


def test_a_thread_that_has_a_device_is_given_it_again(two: None) -> None:
    with lent_device(ANY) as first, lent_device(ANY) as second:
        assert first == second
        assert len(devices._LENT) == 1
    assert not devices._LENT


def test_the_cpu_is_one_device() -> None:
    assert devices.device_names(ANY) == ["cpu"]
