"""The device that computes, and the cores of a CPU."""

import torch

from albat_core.errors import BackboneError
from albat_core.store.stage import Runtime


def resolve_device(runtime: Runtime) -> torch.device:
    """Return the device to compute on.

    Raises:
        BackboneError: ``cuda`` is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if runtime.device == "cuda" and not there:
        raise BackboneError(
            "expected a CUDA device, found none",
            where="runtime.device",
            remedy="set device to auto or cpu, or install a CUDA build of torch",
        )
    return torch.device("cuda" if there and runtime.device != "cpu" else "cpu")


def use_cores(count: int) -> None:
    """Let models of this process compute on so many cores of a CPU."""
    torch.set_num_threads(count)
