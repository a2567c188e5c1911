"""What a language model says of each next token, from the hidden states that its head reads."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

Head = Callable[[torch.Tensor], torch.Tensor]
"""Logits (m, v) of what they are made of, (m, d): a model's last layer, which is frozen."""
Rows = Callable[[torch.Tensor, slice], tuple[torch.Tensor, ...]]
"""Some numbers (m,) each for hidden states (m, d), which are this slice of all."""

_AT_ONCE = 1 << 23  # logits, 32 MB in float32


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each token in nats, (m,) float32.

    Args:
        logits: (m, v).
        targets: (m,) int64, the tokens that come.
    """
    return F.cross_entropy(logits.float(), targets, reduction="none")


def token_losses(head: Head, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each token in nats, (m,) float32.

    Logits are made of some tokens at a time and not kept for the backward pass.

    Args:
        head: makes logits.
        hidden: (m, d), what it reads of the tokens before.
        targets: (m,) int64, the tokens that come.
    """

    def losses(some: torch.Tensor, place: slice) -> tuple[torch.Tensor]:
        return (cross_entropy(head(some), targets[place]),)

    (each,) = _by_parts(losses, hidden, head)
    return each


def tangents(head: Head, hidden: torch.Tensor) -> torch.Tensor:
    """Return the tangent plane of each token's log-partition function, (m, d + 1) float32.

    Its slope, (m, d), is where the head maps the next token's distribution back to; then comes its
    height where hidden states are zero.

    Args:
        head: makes logits, by an affine map.
        hidden: (m, d), where the planes touch; no gradient goes there.
    """

    def log_partition(some: torch.Tensor, _: slice) -> tuple[torch.Tensor]:
        return (head(some).float().logsumexp(dim=-1),)

    with torch.inference_mode(mode=False):  # gradients are on in it, whatever the caller's mode
        at = hidden.detach().clone().requires_grad_()
        (heights,) = _by_parts(log_partition, at, head)
        (slopes,) = torch.autograd.grad(heights.sum(), at)
    slopes = slopes.float()
    start = heights.detach() - (slopes * hidden.float()).sum(dim=-1)
    return torch.cat([slopes, start[:, None]], dim=-1)


def divergence(
    before: torch.Tensor, after: torch.Tensor, log_partition: torch.Tensor
) -> torch.Tensor:
    """Return KL(before || after) of each next token's distribution in nats, (m,) float32.

    It keeps what a model said before it was trained on (arXiv 1606.09282). Of logits that are
    affine in hidden states it is the Bregman divergence of the log-partition function, its height
    above the tangent plane (Banerjee et al. 2005, JMLR 6, 1705-1749): so it needs no logits. It is
    >= 0 up to rounding, of bfloat16 some tenths of a nat; its gradient is as exact as by logits.

    Args:
        before: tangent planes where hidden states were, (m, d + 1), see ``tangents``.
        after: hidden states, (m, d).
        log_partition: of those, (m,) float32.
    """
    slopes, start = before[:, :-1], before[:, -1]
    return log_partition - (slopes * after.float()).sum(dim=-1) - start


def _by_parts(rows: Rows, hidden: torch.Tensor, head: Head) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        vocabulary = head(hidden[:1]).shape[-1]
    size = max(_AT_ONCE // vocabulary, 1)
    found: tuple[torch.Tensor, ...] = _Parts.apply(hidden, rows, size)  # type: ignore[no-untyped-call]
    return found


class _Parts(torch.autograd.Function):
    """Numbers of rows, each of which depends on its own row alone, computed some at a time.

    The gradient of each number in its row is taken at once, and scaled in the backward pass: what
    lies between, a vocabulary wide, is needed no longer.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, rows: Rows, size: int) -> tuple[torch.Tensor, ...]:
        wanted = ctx.needs_input_grad[0]
        values, gradients = [], []
        for start in range(0, len(hidden), size):
            place = slice(start, start + size)
            some = hidden[place].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                found = rows(some, place)
                sums = [numbers.sum() for numbers in found]
            if wanted:
                gradients.append(
                    [torch.autograd.grad(each, some, retain_graph=True)[0] for each in sums]
                )
            values.append([v.detach() for v in found])
        ctx.save_for_backward(*(torch.cat(each) for each in zip(*gradients, strict=True)))
        return tuple(torch.cat(each) for each in zip(*values, strict=True))

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        total = sum(
            gradient * factor[:, None].to(gradient.dtype)
            for gradient, factor in zip(ctx.saved_tensors, given, strict=True)
        )
        assert isinstance(total, torch.Tensor)
        return total, None, None
