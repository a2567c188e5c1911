"""The group of processes that this one computes in, and what they exchange (Accelerate)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # torch takes a second to import, and who only configures does not need it
    import torch

_PATIENCE = timedelta(days=30)  # whoever started the processes sees that one is gone, and ends all


class PeerLostError(Exception):
    """Another process of the group is gone: it knows why, not this one."""


@dataclass(frozen=True)
class ProcessGroup:
    """Processes that take the same steps, each with its share of a batch; or this one alone.

    Args:
        rank: which of them this is, from 0.
        size: how many there are.
        in_step: whether they share a backbone, and so must pass through it together.
    """

    rank: int = 0
    size: int = 1
    in_step: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this is the one that evaluates and writes."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of all processes' tensors, the same bits in each.

        Raises:
            PeerLostError: another process is gone.
        """
        from accelerate.utils import reduce

        with _peers_there():
            total: torch.Tensor = reduce(tensor, "sum")
        return total

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter], loss: float) -> float:
        """Add up the gradients of all processes, in place, and return the sum of their losses.

        Raises:
            PeerLostError: another process is gone.
        """
        if self.size == 1:
            return loss
        import torch

        there = [parameter.grad is not None for parameter in parameters]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        beside = torch.tensor([loss, *there], dtype=torch.float32, device=parameters[0].device)
        total = self.sum(torch.cat([beside, *(g.flatten().float() for g in gradients)]))
        loss, *anywhere = total[: len(beside)].tolist()
        sums = torch.split(total[len(beside) :], [p.numel() for p in parameters])
        for parameter, its, found in zip(parameters, sums, anywhere, strict=True):
            # where no process has any, Adam is to leave the parameter alone
            parameter.grad = its.view_as(parameter).to(parameter.dtype) if found else None
        return loss

    def most(self, count: int) -> int:
        """Return the highest of all processes' counts.

        Raises:
            PeerLostError: another process is gone.
        """
        import torch
        from accelerate import PartialState
        from accelerate.utils import gather

        with _peers_there():
            counts = gather(torch.tensor([count], device=PartialState().device))
        return int(counts.max())

    def from_main(
        self, compute: Callable[[], NDArray[np.float64]], shape: tuple[int, ...]
    ) -> NDArray[np.float64]:
        """Return what the main process computes, in every process; the others wait.

        Args:
            compute: what is called there alone; in all, where they share a backbone.
            shape: of what it returns.

        Raises:
            PeerLostError: another process is gone.
        """
        if self.size == 1:
            return compute()
        import torch
        from accelerate import PartialState
        from accelerate.utils import broadcast

        values = compute() if self.is_main or self.in_step else np.zeros(shape)
        with _peers_there():
            told = broadcast(torch.from_numpy(values).to(PartialState().device))
        found: NDArray[np.float64] = told.cpu().numpy()
        return found


@contextmanager
def joined(rank: int, size: int, device: str, folder: str) -> Iterator[ProcessGroup]:
    """Join the group of a machine's processes: NCCL between GPUs, gloo between CPUs.

    Args:
        rank: which of them this is, from 0.
        size: how many there are.
        device: that this process computes on, as torch names it.
        folder: where they find each other; new, and empty before.
    """
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "ACCELERATE_TORCH_DEVICE": device,
    }
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nothing is said beyond this machine
    import torch
    from accelerate import PartialState

    on_cpu = device == "cpu"
    if not on_cpu:
        torch.cuda.set_device(device)
    # the backend is Accelerate's choice, but for CPUs, where it would take MPI if there is one
    backend = {"backend": "gloo"} if on_cpu else {}
    state = PartialState(
        cpu=on_cpu,
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
        **backend,
    )
    yield ProcessGroup(state.process_index, state.num_processes)
    state.destroy_process_group()


@contextmanager
def _peers_there() -> Iterator[None]:
    """Tell that another process is gone where an exchange with it fails."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(str(error)) from error
