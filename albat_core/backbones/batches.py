"""Examples in batches that a device has room for."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from albat_core.errors import BackboneError

if TYPE_CHECKING:
    from albat_core.backbones.base import Encoded

Shape = tuple[int, ...]
Each = Callable[[Sequence[int], Sequence[Shape], Callable[[list[int]], object]], object]
"""Has a function take positions of examples of these lengths and shapes, until it had all."""

logger = logging.getLogger(__name__)

_CPU_SAYS = "can't allocate memory"  # torch's allocator, in a RuntimeError


def length_batches(
    lengths: Sequence[int], budget: int, shapes: Sequence[Shape] = ()
) -> list[list[int]]:
    """Return positions in batches of similar length and one shape, longest first.

    Args:
        lengths: cost of each example in units.
        budget: units a batch may have, padding included; one example is always allowed.
        shapes: what examples computed at once have in common; none: all may be.
    """
    batches: list[list[int]] = []
    longest = 0
    shape: Shape = ()
    its: Sequence[Shape] = shapes or [()] * len(lengths)
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], its[i], i)):
        fits = batches and (len(batches[-1]) + 1) * longest <= budget
        if fits and its[position] == shape:
            batches[-1].append(position)
        else:
            batches.append([position])
            longest, shape = lengths[position], its[position]
    return batches


def packed(lengths: Sequence[int]) -> list[list[int]]:
    """Return positions in sequences that are no longer than the longest example.

    Best fit decreasing: longest first, each where the least room is left that is enough, else in a
    sequence of its own (arXiv 2404.10830). Attention then sees no more pairs than with padding.

    Args:
        lengths: cost of each example in units.
    """
    sequences: list[list[int]] = []
    room: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [n for n, left in enumerate(room) if left >= lengths[position]]
        if fitting:
            best = min(fitting, key=room.__getitem__)
            sequences[best].append(position)
            room[best] -= lengths[position]
        else:
            sequences.append([position])
            room.append(max(lengths) - lengths[position])
    return sequences


def encoded_batches(encoded: Sequence[Encoded], budget: int) -> list[list[int]]:
    """Return positions of examples in batches, see ``length_batches``."""
    return length_batches([e.length for e in encoded], budget, [e.shape for e in encoded])


def each_batch(
    lengths: Sequence[int],
    budget: int,
    compute: Callable[[list[int]], object],
    shapes: Sequence[Shape] = (),
    limit: str = "batch_tokens",
) -> int:
    """Compute all batches of similar length; where there is no room for one, smaller ones.

    Args:
        lengths: cost of each example in units.
        budget: units a batch may have, padding included.
        compute: takes the positions of a batch; it is called again with fewer where memory ends.
        shapes: see ``length_batches``.
        limit: what the log calls the budget.

    Returns:
        the budget that was enough.

    Raises:
        BackboneError: there is no room for a single example.
    """
    its: Sequence[Shape] = shapes or [()] * len(lengths)
    waiting = length_batches(lengths, budget, its)[::-1]
    while waiting:
        positions = waiting.pop()
        if has_room(compute, positions, [lengths[n] for n in positions]):
            continue
        budget = max(lengths[n] for n in positions) * (len(positions) // 2)
        logger.warning("out of memory: on with %s %s", limit, f"{budget:,}")
        rest = [*positions, *(n for batch in reversed(waiting) for n in batch)]
        smaller = length_batches([lengths[n] for n in rest], budget, [its[n] for n in rest])
        waiting = [[rest[n] for n in batch] for batch in smaller][::-1]
    return budget


def each_in_step(
    lengths: Sequence[int],
    budget: int,
    compute: Callable[[list[int]], object],
    shapes: Sequence[Shape],
    idle: Callable[[], object],
    most: Callable[[int], int],
) -> None:
    """Compute all batches of similar length as often as others do, who share a backbone.

    Args:
        lengths: cost of each example in units.
        budget: units a batch may have, padding included.
        compute: takes the positions of a batch.
        shapes: see ``length_batches``.
        idle: is called in place of it, once there is nothing more to compute.
        most: takes how many batches there are here, and returns how many at most anywhere.

    Raises:
        BackboneError: there is no room for a batch. None is made smaller, as others would wait.
    """
    batches = length_batches(lengths, budget, shapes)
    passes = most(len(batches))  # before anyone passes through the backbone
    for positions in batches:
        if not has_room(compute, positions, [lengths[n] for n in positions]):
            raise BackboneError(
                f"expected room for {len(positions)} examples of {lengths[positions[0]]:,} units "
                "or less, the memory is full",
                where="batch_tokens",
                remedy="lower this training's batch_tokens (surrogate or finetune): devices that "
                "share a backbone do not try smaller batches by themselves",
            )
    for _ in range(passes - len(batches)):
        idle()


def each_encoded(
    encoded: Sequence[Encoded], budget: int, compute: Callable[[list[int]], object]
) -> int:
    """Compute examples in batches, see ``each_batch``."""
    return each_batch([e.length for e in encoded], budget, compute, [e.shape for e in encoded])


def each_of_one_size(
    sizes: Sequence[Shape], most: int, compute: Callable[[list[int]], object]
) -> int:
    """Compute pictures of one size together, see ``each_batch``.

    Args:
        sizes: heights and widths.
        most: pictures that are computed at once, >= 1.
        compute: takes positions of pictures of one size.

    Returns:
        the pictures at once that there was room for.
    """
    return each_batch([1] * len(sizes), most, compute, sizes, limit="pictures at once:")


def has_room(
    compute: Callable[[list[int]], object], positions: list[int], lengths: Sequence[int]
) -> bool:
    """Compute a batch; return False where memory ended, of which nothing is left then.

    Args:
        compute: takes the positions.
        positions: of the batch.
        lengths: of its examples, in units.

    Raises:
        BackboneError: it is a single example.
    """
    try:
        compute(positions)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        if len(positions) == 1:
            size = f" of {lengths[0]:,} units" if lengths[0] > 1 else ""
            raise BackboneError(
                f"expected room for one example{size}, the memory is full",
                where="backbone",
                remedy="free the device (other processes may use it), lower backbone.max_length or "
                "the resolution, set backbone.dtype to bfloat16, or take a larger device",
            ) from error
    else:
        return True
    free_memory()  # outside: the error holds what fills the memory
    return False


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error is for want of memory, of a device or of this machine."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or _CPU_SAYS in str(error)


def free_memory() -> None:
    """Give back memory of what is no longer held."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
