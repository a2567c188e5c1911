"""The last layer of a language model, which makes logits, used on chosen tokens alone."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch


class Head:
    """What makes logits of a frozen model's hidden states.

    Args:
        model: a causal language model of transformers, without an adapter.
        precision: the context in which it computes.
    """

    def __init__(self, model: Any, precision: Callable[[], AbstractContextManager[None]]) -> None:
        self._model = model
        self._precision = precision
        self._own = self.layer  # an adapter of it takes its place
        self._is_plain: bool | None = None

    @property
    def layer(self) -> Any:
        """The layer, (m, d) to (m, v); None where the model names none."""
        return self._model.get_output_embeddings()

    @property
    def stands_alone(self) -> bool:
        """Whether it has no adapter, and logits are what it makes of hidden states and no more."""
        if self.layer is None or self.layer is not self._own:
            return False
        if self._is_plain is None:
            self._is_plain = self._tried()
        return self._is_plain

    def logits(self, read: torch.Tensor) -> torch.Tensor:
        """Return the logits, (m, v), of what ``read`` gave."""
        made: torch.Tensor = self.layer(read) if self.stands_alone else read
        return made

    def read(self, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return what logits are made of, at the tokens before those that the mask names.

        These are hidden states, (m, d), where the layer stands alone, or else the logits, (m, v).

        Args:
            model: the model, with its adapter if it has one.
            ids: (n, t) int64.
            mask: (n, t - 1) bool, of all tokens but the first.
        """
        if self.stands_alone:
            return self._hidden(model, ids, mask)
        with self._precision():
            logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
        return logits[:, :-1][mask]

    def _hidden(self, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found = []

        def take(_: torch.nn.Module, read: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            found.append(read[0][:, :-1][mask])
            return (read[0][:, :0], *read[1:])  # of no token are logits made

        hook = self.layer.register_forward_pre_hook(take)
        try:
            with self._precision():
                model(input_ids=ids, use_cache=False)
        finally:
            hook.remove()
        return found[0]

    @torch.inference_mode()
    def _tried(self) -> bool:
        """Compare logits with what the layer makes alone: some models scale or bound them."""
        ids = torch.arange(4, device=self._model.device)[None]
        mask = torch.ones_like(ids, dtype=torch.bool)[:, 1:]
        try:
            with self._precision():
                expected = self._model(input_ids=ids, use_cache=False).logits[:, :-1][mask].float()
                alone = self.layer(self._hidden(self._model, ids, mask)).float()
        except (IndexError, RuntimeError, ValueError):  # it is used in another way
            return False
        return bool((alone - expected).norm() <= 1e-2 * expected.norm())
