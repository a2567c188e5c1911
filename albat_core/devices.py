"""The devices that compute, each lent to one piece of work at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from albat_core.errors import BackboneError
from albat_core.progress import waiting
from albat_core.store.stage import Runtime

if TYPE_CHECKING:  # torch takes a second to import, and who only configures does not need it
    import torch

_CHANGED = threading.Condition()
_LENT: dict[str, tuple[int, int]] = {}  # thread that has a device, and how often it asked for it


def resolve_device(runtime: Runtime) -> torch.device:
    """Return the device to compute on.

    Raises:
        BackboneError: ``cuda`` is asked for and there is none.
    """
    import torch

    there = torch.cuda.is_available()
    if runtime.device == "cuda" and not there:
        raise BackboneError(
            "expected a CUDA device, found none",
            where="runtime.device",
            remedy="set device to auto or cpu, or install a CUDA build of torch",
        )
    return torch.device("cuda" if there and runtime.device != "cpu" else "cpu")


def device_names(runtime: Runtime) -> list[str]:
    """Return the names of the devices that may compute at once: every GPU, or the CPU as one."""
    if resolve_device(runtime).type == "cpu":
        return ["cpu"]
    return [f"cuda:{number}" for number in range(gpu_count())]


def gpu_count() -> int:
    """Return how many GPUs this machine has."""
    import torch

    return torch.cuda.device_count()


@contextmanager
def lent_device(runtime: Runtime) -> Iterator[torch.device]:
    """Give a device that no other thread of this process computes on; wait until one is free.

    A thread that has one is given the same again.
    """
    import torch

    names, me = device_names(runtime), threading.get_ident()
    with _CHANGED:
        while not (usable := [n for n in names if _LENT.get(n, (me, 0))[0] == me]):
            with waiting():
                _CHANGED.wait()
        name = max(usable, key=lambda n: n in _LENT)
        _LENT[name] = (me, _LENT.get(name, (me, 0))[1] + 1)
    try:
        yield torch.device(name)
    finally:
        with _CHANGED:
            times = _LENT.pop(name)[1] - 1
            if times:
                _LENT[name] = (me, times)
            _CHANGED.notify_all()


def use_cores(count: int) -> None:
    """Let models of this process compute on so many cores of a CPU."""
    import torch

    torch.set_num_threads(count)
