"""Texts as vectors: the hidden states of a language model, or of its first layers, pooled."""

from collections.abc import Sequence
from typing import Any

import torch

from albat_core.errors import BackboneError


class _Reached(Exception):  # noqa: N818 - it is no error
    """Carries hidden states out of a forward pass that need not go on."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden


def hidden_states(model: Any, ids: torch.Tensor, layers: int | None = None) -> torch.Tensor:
    """Return the hidden states after so many layers, (n, t, d): transformers' ``hidden_states``.

    After all layers that is behind the final norm; after fewer, no later one is computed.

    Args:
        model: causal language model of transformers.
        ids: token ids, (n, t).
        layers: >= 1; None: all.

    Raises:
        BackboneError: the model has fewer layers, or they give something else.
    """
    decoder = _decoder(model)
    if layers is None or layers == len(found := decoder_layers(model, layers)):
        whole: torch.Tensor = decoder(input_ids=ids, use_cache=False).last_hidden_state
        return whole

    def stop(_layer: torch.nn.Module, _inputs: Any, output: Any) -> None:
        raise _Reached(output[0] if isinstance(output, tuple) else output)

    hook = found[layers - 1].register_forward_hook(stop)
    try:
        decoder(input_ids=ids, use_cache=False)
    except _Reached as reached:
        if reached.hidden.shape[:2] == ids.shape:
            return reached.hidden
    finally:
        hook.remove()
    raise BackboneError(
        f"expected layers that are computed one after another, (rows, tokens, values) each; those "
        f"of {type(model).__name__} are not",
        where=f"embedding.layers: {layers}",
        remedy="leave embedding.layers out; embedding.tokens and embedding.encoder save time too",
    )


def _decoder(model: Any) -> Any:
    """Return a causal language model without its head."""
    if model.base_model is not model:
        return model.base_model
    return model.model  # text models cut out of larger ones (Llama 4, Mllama) name another


def decoder_layers(model: Any, least: int = 1) -> torch.nn.ModuleList:
    """Return a model's decoder layers: of its lists of modules the one that has most weights.

    Args:
        model: causal language model of transformers, with weights or without.
        least: layers that there have to be.

    Raises:
        BackboneError: there are fewer.
    """
    lists = [m for m in _decoder(model).modules() if isinstance(m, torch.nn.ModuleList)]
    found = max(lists, key=_weights, default=torch.nn.ModuleList())
    if len(found) < least:
        raise BackboneError(
            f"expected a model of at least {least} layers, this one has {len(found)}",
            where=f"embedding.layers: {least}",
            remedy=f"set embedding.layers to {len(found)} or less, or leave it out for all",
        )
    return found


def _weights(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def position_weighted_mean(hidden: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Return e = sum_i i h_i / sum_i i over tokens i = 1..length (RDS+, arXiv 2503.01807).

    Args:
        hidden: states of tokens, (n, t, d), padded on the right.
        lengths: tokens of each row, n of them.

    Returns:
        (n, d) float32.
    """
    position = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    inside = position <= torch.tensor(lengths, device=hidden.device)[:, None]
    weights = (position * inside).to(torch.float32)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return torch.einsum("nt,ntd->nd", weights, hidden.to(torch.float32))
