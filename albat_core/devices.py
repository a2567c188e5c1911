"""The devices that compute, each lent to one piece of work at a time, on the whole machine."""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from albat_core.errors import BackboneError, ConfigError
from albat_core.progress import waiting
from albat_core.store.stage import Runtime

if TYPE_CHECKING:  # torch takes a second to import, and who only configures does not need it
    import torch

_LOOK = 0.2  # seconds between looks for a device that is free
_COMPUTING = threading.RLock()
"""Held by the thread whose model computes: torch's generators are the process's, and so are the
switches of libraries that load models, so threads would disturb each other's draws."""
_LAST = [""]
"""The GPU that this process had last."""
_HELD: list[str] = []
"""The device that this process has, as often as its thread asked for it."""


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


def device_name(runtime: Runtime) -> str:
    """Return the device to compute on as people call it."""
    import torch

    device = resolve_device(runtime)
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    threads = torch.get_num_threads()
    return f"the CPU with {threads} thread{'s' if threads > 1 else ''}"


def computes_bfloat16(device: torch.device) -> bool:
    """Tell whether a device multiplies in bfloat16 itself: one that does not takes far longer."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public question for this yet
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def gpu_count() -> int:
    """Return how many GPUs this machine has."""
    import torch

    return torch.cuda.device_count()


def gpu_names() -> dict[str, str]:
    """Return what identifies each GPU on this machine, by the name that torch has for it."""
    import torch

    return {
        f"cuda:{number}": str(torch.cuda.get_device_properties(number).uuid)
        for number in range(gpu_count())
    }


@contextmanager
def lent_device(runtime: Runtime) -> Iterator[torch.device]:
    """Give a device that nobody else computes on; wait until one is free.

    In a process one thread computes at a time. Processes of one machine (of a cluster, of several
    runs) each take another GPU, by a lock on a file for each. A thread that has a device is given
    the same again.
    """
    import torch

    with waiting():
        _COMPUTING.acquire()
    try:
        if resolve_device(runtime).type == "cpu":
            yield torch.device("cpu")
        elif _HELD:
            yield torch.device(_HELD[0])
        else:
            with _locked(gpu_names()) as (name,):
                _HELD.append(name)
                _LAST[0] = name  # where the last backbone is loaded still
                try:
                    yield torch.device(name)
                finally:
                    _HELD.clear()
    finally:
        _COMPUTING.release()


@contextmanager
def lent_devices(runtime: Runtime) -> Iterator[Sequence[str]]:
    """Give the devices that a training is spread over, see ``lent_device``.

    All at once or none: who has some and waits for more could wait for one who waits for these. On
    a CPU each is the CPU.

    Raises:
        ConfigError: there are not so many.
    """
    check_device_count(runtime)
    with waiting():
        _COMPUTING.acquire()
    try:
        if resolve_device(runtime).type == "cpu":
            yield ["cpu"] * runtime.training_devices
        else:
            with _locked(gpu_names(), runtime.training_devices) as names:
                yield names
    finally:
        _COMPUTING.release()


def check_device_count(runtime: Runtime) -> None:
    """Look whether this machine has as many devices as are asked for.

    Raises:
        ConfigError: it has fewer GPUs.
    """
    for name in ("devices", "training_devices"):
        count = getattr(runtime, name)
        if count > 1 and resolve_device(runtime).type == "cuda" and count > gpu_count():
            raise ConfigError(
                f"expected at most {gpu_count()}, the GPUs that this machine has, got {count}",
                where=f"runtime.{name}",
                remedy="lower it, or let this process see more GPUs (CUDA_VISIBLE_DEVICES)",
            )


def keep_device(name: str) -> None:
    """Compute on this device from now on: it was lent to who started this process.

    Args:
        name: as torch names it.
    """
    if name != "cpu":
        _HELD.append(name)


@contextmanager
def _locked(names: dict[str, str], count: int = 1) -> Iterator[Sequence[str]]:
    """Hold the locks of so many of several GPUs, of the one that was held last where it is free."""
    while True:
        held: list[str] = []
        with ExitStack() as files:
            for name in sorted(names, key=lambda n: (n != _LAST[0], n)):
                place = Path(tempfile.gettempdir(), f"albat-{os.getuid()}-{names[name]}.lock")
                file = files.enter_context(place.open("w", encoding="utf-8"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                held.append(name)
                if len(held) == count:
                    yield held
                    return
        with waiting():
            time.sleep(_LOOK)


def cores_in_use() -> int:
    """Return on how many cores of a CPU models of this process compute."""
    import torch

    return torch.get_num_threads()


def use_cores(count: int) -> None:
    """Let models of this process compute on so many cores of a CPU."""
    import torch

    torch.set_num_threads(count)
