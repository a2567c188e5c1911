"""A model of which each process of a group holds a part (FSDP, arXiv 2304.11277)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from albat_core.errors import BackboneError

if TYPE_CHECKING:  # torch takes a second to import, and who only configures does not need it
    import torch


def sharded(model: Any, device: torch.device, where: str) -> Any:
    """Freeze a model, and leave this process its part of its blocks, on its device.

    A block is whole while it is computed. So all processes must pass through the model equally
    often, forwards and backwards. What is in no block, each of them holds whole.

    Args:
        model: of transformers or diffusers, on the CPU, which names its blocks.
        device: of this process.
        where: names the model in errors.

    Raises:
        BackboneError: it names no blocks.
    """
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    names = set(model._no_split_modules or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    if not blocks:
        raise BackboneError(
            f"expected a model that names its blocks (_no_split_modules), {type(model).__name__} "
            "names none",
            where=where,
            remedy="leave runtime.shard_backbone out",
        )
    model.requires_grad_(requires_grad=False)
    mesh = init_device_mesh(device.type, (get_world_size(),))
    for block in reversed(blocks):  # those within others come first
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    model.to(device)
    for block in blocks:  # memory claimed first in inference mode would be of no use in training
        assert isinstance(block, FSDPModule)
        block.unshard()
        block.reshard()
    return model
