"""A language model of which a part embeds: its first layers, or the first tokens of a row."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from albat_core.backbones.base import Encoded
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.records.examples import Example


class PartialEmbedder:
    """A language model whose first layers embed the first tokens, see the ``Embedder`` protocol.

    Args:
        backbone: without an adapter.
        layers: after which computing stops; None: all.
        tokens: of a row that are looked at; None: all.
    """

    def __init__(self, backbone: LanguageBackbone, layers: int | None, tokens: int | None) -> None:
        self._backbone = backbone
        self._layers = layers
        self._tokens = tokens

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return each example's first tokens; its length is theirs."""
        return [self._cut(encoded) for encoded in self._backbone.encode(examples)]

    def _cut(self, encoded: Encoded) -> Encoded:
        inputs = {name: values[: self._tokens] for name, values in encoded.inputs.items()}
        return replace(
            encoded,
            inputs=inputs,
            length=len(inputs["input_ids"]),
            loss_units=int(inputs["loss_mask"].sum()),
        )

    def embed(self, batch: Sequence[Encoded]) -> torch.Tensor:
        """Return what ``LanguageBackbone.embed`` gives, after the first layers.

        Raises:
            BackboneError: the model has fewer.
        """
        return self._backbone.embed(batch, self._layers)
