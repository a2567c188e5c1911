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


def divergence(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return KL(before || after) of each next token's distribution in nats, (m,) float32 >= 0.

    It keeps what a model said before it was trained on (arXiv 1606.09282).

    Args:
        before: logits, (m, v).
        after: likewise.
    """
    said, now = (F.log_softmax(logits.float(), dim=-1) for logits in (before, after))
    return F.kl_div(now, said, reduction="none", log_target=True).sum(dim=-1)


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


def token_losses_and_divergence(
    head: Head, before: torch.Tensor, after: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what ``token_losses`` does, and KL(before || after) in nats; both (m,) float32.

    Args:
        head: makes logits.
        before: hidden states, (m, d); no gradient goes there.
        after: likewise.
        targets: (m,) int64, the tokens that come.
    """

    def both(some: torch.Tensor, place: slice) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            said = head(before[place])
        now = head(some)
        return cross_entropy(now, targets[place]), divergence(said, now)

    each, moved = _by_parts(both, after, head)
    return each, moved


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
