"""What is known of a kind of backbone before one is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.base import Backbone, Embedder
from albat_core.backbones.config import BackboneConfig, EmbedderConfig
from albat_core.records.examples import Example

if TYPE_CHECKING:  # torch takes a second to import, and who only configures does not need it
    import torch


@dataclass(frozen=True)
class RowLimit:
    """How much of a row a backbone takes.

    Args:
        amount: in words, with its unit and what sets it.
        remedy: what to do about a row that is longer.
    """

    amount: str
    remedy: str


class Splitter(Protocol):
    """Cuts rows to a backbone's size; no weights are loaded."""

    def fitting(self, examples: Sequence[Example]) -> list[bool]:
        """Tell which rows are sure to stay as they are; ``pieces`` says it of the others.

        Many are looked at together, which is faster than one after the other.
        """
        ...

    def pieces(self, example: Example) -> list[Example]:
        """Cut a row into ones that the backbone takes at once; none if nothing fits.

        Raises:
            InputError: it cannot be used.
        """
        ...


class Kind(Protocol):
    """A kind of backbone: what is known of all of them, and of one before its weights are loaded.

    One class in one file, which imports no torch, and a line in the table of ``backbones``.
    """

    precomputes: ClassVar[bool]
    """Whether ``Backbone.precompute`` gives inputs that are worth keeping."""
    loss_unit: ClassVar[str]
    """What losses are measured in."""
    library: ClassVar[str]
    """What loads its adapters, as the hub names libraries."""
    needs_prompts: ClassVar[bool]
    """Whether what it makes without a prompt is of no use."""
    writes_answers: ClassVar[bool]
    """Whether it answers prompts with texts, which metrics can compare with others."""
    draws_pictures: ClassVar[bool]
    """Whether rows are pictures with captions: a training may mirror them, or drop a caption."""
    told_by_words: ClassVar[bool]
    """Whether the words of rows tell which repeat one another; captions of pictures do not."""
    usual_penalty: ClassVar[float]
    """Weight at which holding an adapter to the backbone's outputs was found to help."""
    highest_alpha: ClassVar[float]
    """Mixing weight above which trainings of usual length were found not to get far enough."""

    def identity(self, config: BackboneConfig) -> dict[str, Any]:
        """Return the settings that change what the backbone computes."""
        ...

    def reading_identity(self, config: BackboneConfig) -> dict[str, Any]:
        """Return the settings that change costly inputs, embeddings and what is made of prompts."""
        return self.identity(config)

    def input_identity(self, config: BackboneConfig) -> dict[str, Any]:
        """Return the settings that change how rows are cut and encoded."""
        ...

    def ill_suited(self, config: BackboneConfig) -> str | None:
        """Return what is told of settings that the backbone takes, but was not trained by."""
        del config
        return None

    def loading(self, config: BackboneConfig, name: str) -> str:
        """Return the Python lines that load an adapter, for its card.

        Args:
            config: of the backbone.
            name: the arguments that name the backbone in them.
        """
        ...

    def splitter(self, config: BackboneConfig) -> Splitter:
        """Return what cuts rows to the backbone's size; no weights are loaded."""
        ...

    def limit(self, config: BackboneConfig) -> RowLimit:
        """Return how much of a row is taken; no weights are loaded."""
        ...

    def trap(self, config: BackboneConfig) -> Callable[[Example], str | None]:
        """Return what says how a row will be trained on otherwise than it seems; None: it is not.

        No weights are loaded.
        """
        ...

    def load(
        self,
        config: BackboneConfig,
        device: torch.device,
        dtype: torch.dtype,
        fingerprint: str,
        share: bool = False,
    ) -> Backbone:
        """Load a backbone.

        Args:
            config: which.
            device: that computes.
            dtype: of its weights.
            fingerprint: of its files.
            share: of its blocks, only this process' part, see ``sharded``.

        Raises:
            BackboneError: the folder holds none, or it is incomplete.
        """
        ...

    def check(self, config: BackboneConfig) -> None:
        """Look at a backbone's description alone.

        Raises:
            BackboneError: its parts do not fit together, or not the configuration.
        """

    def check_embedder(self, config: BackboneConfig, embedder: EmbedderConfig) -> None:
        """Look whether rows can be represented so; no weights are loaded.

        Raises:
            BackboneError: the backbone has no such part, or the encoder does not fit its rows.
            MissingDependencyError: what the encoder needs is not installed.
        """

    def embedder(self, backbone: Backbone, embedder: EmbedderConfig) -> Embedder:
        """Return a loaded backbone, or the part of it that embeds; see ``check_embedder``."""
        ...

    def load_encoder(self, path: str, device: torch.device, dtype: torch.dtype) -> Embedder:
        """Return the encoder that represents this kind's rows in place of a backbone.

        Raises:
            BackboneError: there is none, or it does not fit its rows.
            MissingDependencyError: what it needs is not installed.
        """
        ...

    def encoder_identity(self, dtype: str) -> dict[str, Any]:
        """Return what changes the result of such an encoder, beside its files."""
        ...

    def check_smaller(
        self, config: BackboneConfig, other: BackboneConfig, rows: Sequence[Example]
    ) -> None:
        """Look whether a smaller backbone's surrogate may score in place of this one's.

        It may where it reads the same tokens, of rows as they are cut for this one; no weights are
        loaded.

        Raises:
            BackboneError: it does not, or none can for backbones of this kind.
        """

    def check_prompts(self, config: BackboneConfig, prompts: Sequence[str]) -> None:
        """Look whether the backbone takes prompts.

        Raises:
            InputError: one is too long.
        """

    def check_chat(self, config: BackboneConfig) -> None:
        """Look whether the backbone writes chats of its own.

        Raises:
            BackboneError: it has no chat template.
        """

    def check_adapter(self, config: BackboneConfig, adapter: AdapterConfig) -> None:
        """Look whether an adapter finds its layers; no weights are loaded.

        Raises:
            BackboneError: ``target_modules`` match nothing.
        """

    def check_packing(self, config: BackboneConfig) -> None:
        """Look whether rows can be joined in a sequence, none of which sees another.

        No weights are loaded: what a description does not show is found when rows are first joined.

        Raises:
            BackboneError: they cannot.
        """
