"""How long a piece of work takes, and how much memory at its peak."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

_EVERY = 0.002  # seconds between looks


@dataclass
class Usage:
    """What a piece of work took.

    Args:
        bytes: the most that was in use at once; of a GPU what torch's tensors took there, of the
            CPU all that the process had; the model itself included.
        seconds: until the device was done.
    """

    bytes: int = 0
    seconds: float = 0.0


@contextmanager
def measured(device: torch.device) -> Iterator[Usage]:
    """Measure the work inside; memory that was freed before is not counted.

    Args:
        device: that computes.
    """
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        usage, began = Usage(), time.perf_counter()
        yield usage
        torch.cuda.synchronize(device)
        usage.seconds = time.perf_counter() - began
        usage.bytes = torch.cuda.max_memory_allocated(device)
        return
    _give_back()
    process, done = psutil.Process(), threading.Event()
    usage = Usage(process.memory_info().rss)

    def look() -> None:
        while not done.wait(_EVERY):
            usage.bytes = max(usage.bytes, process.memory_info().rss)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    began = time.perf_counter()
    try:
        yield usage
    finally:
        usage.seconds = time.perf_counter() - began
        done.set()
        looking.join()


def _give_back() -> None:
    """Give freed memory back to the system, where its allocator (glibc's) can be asked to."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
