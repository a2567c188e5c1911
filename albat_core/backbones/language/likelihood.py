"""What a language model's logits say of each next token."""

import torch
import torch.nn.functional as F

from albat_core.backbones.base import Losses


def token_losses(logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> Losses:
    """Return the negative log-likelihood of each token in nats.

    Args:
        logits: (n, t, v).
        targets: (n, t) int64, the tokens that come.
        mask: (n, t) bool, those that carry loss.
    """
    each = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return Losses(each=each.view(mask.shape), mask=mask)


def token_divergence(before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor) -> Losses:
    """Return KL(before || after) of each next token's distribution in nats, >= 0.

    It keeps what a model said before it was trained on (arXiv 1606.09282). Tokens that carry no
    loss get 0.

    Args:
        before: logits, (m, v), of the tokens that carry loss alone.
        after: logits, (n, t, v), of all.
        mask: (n, t) bool, the m tokens that carry loss.
    """
    said, now = (F.log_softmax(logits.float(), dim=-1) for logits in (before, after[mask]))
    divergence = F.kl_div(now, said, reduction="none", log_target=True).sum(dim=-1)
    each = torch.zeros_like(mask, dtype=torch.float32).masked_scatter(mask, divergence)
    return Losses(each=each, mask=mask)
