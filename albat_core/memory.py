"""How much memory a piece of work takes at its peak."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

_EVERY = 0.002  # seconds between looks


@dataclass
class Peak:
    """The most memory that was in use at once.

    Args:
        bytes: of a GPU what torch's tensors took there, of the CPU all that the process had;
            the model itself included.
    """

    bytes: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the peak of the work inside; what was freed before is not counted.

    Args:
        device: that computes.
    """
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        peak = Peak()
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    _give_back()
    process, done = psutil.Process(), threading.Event()
    peak = Peak(process.memory_info().rss)

    def look() -> None:
        while not done.wait(_EVERY):
            peak.bytes = max(peak.bytes, process.memory_info().rss)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield peak
    finally:
        done.set()
        looking.join()


def _give_back() -> None:
    """Give freed memory back to the system, where its allocator (glibc's) can be asked to."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
