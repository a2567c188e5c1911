"""Rows joined into one sequence, of which none sees another: what a model has to be for that."""

from collections.abc import Sequence
from inspect import signature
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from albat_core.errors import BackboneError

_SAME = 1e-3
"""Relative difference that is rounding, where a row is computed at the same place twice."""
_ALIKE = 1e-1
"""The same, where it is computed at another place: in bfloat16 a deep model differs by percents."""


def joined_values(values: Sequence[NDArray[Any]], joined: Sequence[int]) -> list[NDArray[Any]]:
    """Return the values of consecutive rows in one array a sequence.

    Args:
        values: of each row, (t,).
        joined: rows of each sequence, in order.
    """
    places = pairwise(accumulate(joined, initial=0))
    return [np.concatenate(values[start:stop]) for start, stop in places]


def refuse_mixing(model: Any, where: str) -> None:
    """Raise where a model is of a kind whose tokens see other rows of their sequence.

    transformers holds rows apart by their positions, in the attention's mask. A model that takes no
    positions has no such mask (ALiBi: BLOOM, MPT); a state or a convolution has no mask at all.

    Args:
        model: causal language model of transformers, with weights or without.
        where: its path, for errors.

    Raises:
        BackboneError: it is.
    """
    if "position_ids" not in signature(model.forward).parameters:
        raise _refused(model, "it takes no position_ids", where)
    if model._is_stateful:
        raise _refused(model, "it carries a state along the sequence", where)
    if any(isinstance(module, torch.nn.Conv1d) for module in model.modules()):
        raise _refused(model, "its convolutions reach from row to row", where)


def refuse_leaking(model: Any, where: str) -> None:
    """Raise where a row's logits are others behind another row, or behind none.

    Args:
        model: causal language model of transformers with weights, without an adapter.
        where: its path, for errors.

    Raises:
        BackboneError: they are.
    """

    def logits(*rows: range) -> torch.Tensor:
        """Return those of the last row, (t, v)."""
        ids, places = (
            torch.tensor([values], device=model.device)
            for values in (
                [i for row in rows for i in row],
                [n for r in rows for n in range(len(r))],
            )
        )
        whole = model(input_ids=ids, position_ids=places, use_cache=False).logits
        last: torch.Tensor = whole[0, -len(rows[-1]) :].float()
        return last

    row = range(8, 14)
    behind = logits(range(4), row)
    for other, most in ((logits(range(4, 8), row), _SAME), (logits(row), _ALIKE)):
        if not (behind - other).norm() <= most * other.norm():
            raise _refused(model, "its logits of a row change with the row in front", where)


def _refused(model: Any, why: str, where: str) -> BackboneError:
    return BackboneError(
        f"expected a model that holds the rows of one sequence apart, got {type(model).__name__}: "
        f"{why}",
        where=where,
        remedy="leave packing out: rows are then padded, each in a sequence of its own",
    )
