"""The last layer of a language model, which makes logits, used on chosen tokens alone."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

_BOUNDS = ("final_logit_softcapping", "logits_soft_cap")
"""Settings of models that bound their logits, which the small ones that are tried do not show."""


@dataclass(frozen=True)
class TokenRows:
    """Tokens as a model reads them, padded on the right.

    Args:
        ids: (n, t) int64.
        learned: (n, t), not 0 where predicting a token is part of the loss; nowhere a row begins.
        positions: (n, t) int64, from 0 on for each of the rows that are joined in one, by which
            transformers' masks hold them apart; None: none are joined.
    """

    ids: torch.Tensor
    learned: torch.Tensor
    positions: torch.Tensor | None = None

    @property
    def mask(self) -> torch.Tensor:
        """Which tokens but the first carry loss, (n, t - 1) bool; m of them do."""
        return self.learned[:, 1:].to(torch.bool)

    @property
    def targets(self) -> torch.Tensor:
        """The tokens that carry loss, (m,) int64."""
        return self.ids[:, 1:][self.mask]

    def through(self, model: Any) -> Any:
        """Return what a model of transformers gives for them."""
        places = {} if self.positions is None else {"position_ids": self.positions}
        return model(input_ids=self.ids, use_cache=False, **places)


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
        """Whether it is an affine map without an adapter, and logits are what it makes alone."""
        if self.layer is not self._own or not isinstance(self.layer, torch.nn.Linear):
            return False
        dtype = self.layer.weight.dtype
        if not dtype.is_floating_point or dtype.itemsize < 2:  # quantized, maybe with a scale apart
            return False
        if self._is_plain is None:
            text = self._model.config.get_text_config()
            bound = any(getattr(text, name, None) for name in _BOUNDS)
            self._is_plain = not bound and self._tried()
        return self._is_plain

    def logits(self, read: torch.Tensor) -> torch.Tensor:
        """Return the logits, (m, v), of what ``read`` gave."""
        made: torch.Tensor = self.layer(read) if self.stands_alone else read
        return made

    def logit(self, read: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logit of one token each, (m,) float32, of what ``read`` gave.

        Args:
            read: (m, d) or (m, v).
            tokens: (m,) int64.
        """
        if not self.stands_alone:
            return read.gather(1, tokens[:, None])[:, 0].float()
        layer = self.layer
        made: torch.Tensor = (read.float() * layer.weight[tokens].float()).sum(dim=-1)
        return made if layer.bias is None else made + layer.bias[tokens].float()

    def read(self, model: Any, rows: TokenRows) -> torch.Tensor:
        """Return what logits are made of, at the tokens before those that carry loss.

        These are hidden states, (m, d), where the layer stands alone, or else the logits, (m, v).

        Args:
            model: the model, with its adapter if it has one.
            rows: what it reads.
        """
        if self.stands_alone:
            return self._hidden(model, rows)
        with self._precision():
            logits: torch.Tensor = rows.through(model).logits
        return logits[:, :-1][rows.mask]

    def _hidden(self, model: Any, rows: TokenRows) -> torch.Tensor:
        found = []

        def take(_: torch.nn.Module, read: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            found.append(read[0][:, :-1][rows.mask])
            return (read[0][:, :0], *read[1:])  # of no token are logits made

        hook = self.layer.register_forward_pre_hook(take)
        try:
            with self._precision():
                rows.through(model)
        finally:
            hook.remove()
        return found[0]

    @torch.inference_mode()
    def _tried(self) -> bool:
        """Compare logits with what the layer makes alone: some models scale or bound them."""
        ids = torch.arange(4, device=self._model.device)[None]
        rows = TokenRows(ids, torch.ones_like(ids))
        mode = self._model.training
        self._model.eval()  # both must be of the same: an adapter's dropout is drawn each time
        try:
            with self._precision():
                expected = rows.through(self._model).logits[:, :-1][rows.mask].float()
                alone = self.layer(self._hidden(self._model, rows)).float()
        except (IndexError, RuntimeError, ValueError):  # it is used in another way
            return False
        finally:
            self._model.train(mode)
        return bool((alone - expected).norm() <= 1e-2 * expected.norm())
