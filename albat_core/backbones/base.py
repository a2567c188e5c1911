"""The one seam between modalities: what the stages ask of a backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.config import SamplingConfig
from albat_core.records.examples import Example

if TYPE_CHECKING:  # torch takes a second to import, and who only configures does not need it
    import torch


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as the backbone takes it.

    Args:
        example_id: whose it is.
        inputs: what the backbone reads, by name.
        length: its cost in units (tokens); batches are made of similar lengths.
        loss_units: units that carry loss.
        shape: what it has in common with those it is computed at once with; of pictures, of their
            latents.
        untouched: what ``with_untouched`` added, on the CPU; None: nothing.
    """

    example_id: str
    inputs: dict[str, Any]
    length: int
    loss_units: int
    shape: tuple[int, ...] = ()
    untouched: torch.Tensor | None = None


@dataclass(frozen=True)
class Question:
    """A row's prompt as a language model is trained with it, and the answer that it has.

    Args:
        ids: tokens in front of the first of the answer, one or more.
        prompt: what they say, without special tokens.
        reference: the answer, without white space around it.
        lead: what is written in front of what the answer says: the prompt's last characters where
            they share a token with it, what a chat template begins an answer with.
        end: special token that ends an answer beside the model's own; None: no other.
        stop: text that ends an answer where a chat template has no token for it, else "".
        most: tokens of the answer where it is only a beginning, to which as many are compared;
            None: it is whole.
    """

    ids: list[int]
    prompt: str
    reference: str
    lead: str = ""
    end: int | None = None
    stop: str = ""
    most: int | None = None


@dataclass(frozen=True)
class Answer:
    """What was written to a prompt.

    Args:
        text: without special tokens and white space around it.
        ended: whether it came to its end, or was cut at the most tokens.
    """

    text: str
    ended: bool


@dataclass(frozen=True)
class FixedNoise:
    """Noise that is the same for every example and every model, so that losses can be compared.

    Args:
        levels: noise levels that a loss is the mean of, evenly spread.
        replicate: which of several independent sets of noise.
    """

    levels: int = 8
    replicate: int = 0


@dataclass(frozen=True)
class DrawnNoise:
    """Noise that was drawn for each example of a batch.

    Args:
        levels: (n,) float32 in (0, 1), on the CPU.
        noise: n of (c, h, w) float32, on the CPU.
    """

    levels: torch.Tensor
    noise: Sequence[torch.Tensor]

    def take(self, places: Sequence[int] | slice) -> DrawnNoise:
        """Return that of some of the examples."""
        which = range(len(self.noise))[places] if isinstance(places, slice) else places
        return DrawnNoise(self.levels[places], [self.noise[place] for place in which])


def join_noise(drawn: Sequence[DrawnNoise]) -> DrawnNoise | None:
    """Return the noise of several batches, one after the other; None of none."""
    import torch

    if not drawn:
        return None
    levels = torch.cat([one.levels for one in drawn])
    return DrawnNoise(levels, [noise for one in drawn for noise in one.noise])


@dataclass(frozen=True)
class Losses:
    """Losses of a batch by unit: a token, or a noise level.

    Args:
        each: (n, u) float32, loss of each unit; what is masked counts for nothing.
        mask: (n, u) bool, units that carry loss, at least one in a row.
    """

    each: torch.Tensor
    mask: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """Loss of each example summed over its units, (n,) float32."""
        return (self.each * self.mask).sum(dim=1)

    @property
    def units(self) -> torch.Tensor:
        """Units of each example, (n,) int64 >= 1."""
        return self.mask.sum(dim=1)

    @property
    def mean(self) -> torch.Tensor:
        """Mean loss of each example, (n,) float32, per unit."""
        return self.total / self.units

    def first(self, count: int) -> Losses:
        """Return the losses of each example's first ``count`` >= 1 units alone."""
        return Losses(self.each, self.mask & (self.mask.cumsum(dim=1) <= count))


class Embedder(Protocol):
    """What represents examples as vectors."""

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return the examples as it takes them, in order."""

    def embed(self, batch: Sequence[Encoded]) -> torch.Tensor:
        """Return the representation of each example, (n, d) float32 on the CPU."""


class Precomputed(Protocol):
    """Costly inputs of examples that were computed before."""

    def find(self, example: Example) -> dict[str, NDArray[Any]] | None:
        """Return an example's inputs by name, None where they are not known."""


class Backbone(Embedder, Protocol):
    """A frozen pretrained model to which one adapter may be attached."""

    fingerprint: str
    """Digest of its weights, its configuration and its tokenizer."""
    device: torch.device
    noisy: bool
    """Whether losses depend on noise, and so on how many levels of it they are the mean of."""
    known: Precomputed | None
    """Where ``encode`` looks for what ``precompute`` gave."""

    def pieces(self, example: Example) -> list[Example]:
        """Cut an example into ones that the backbone takes at once; none if nothing fits."""

    def precompute(self, examples: Sequence[Example]) -> dict[str, NDArray[Any]]:
        """Return the inputs that are worth keeping, (n, ...) by name; empty where none are."""

    def without_caption(self, encoded: Encoded) -> Encoded:
        """Return a picture as one that has no caption.

        Raises:
            BackboneError: it makes no pictures.
        """

    def draw_noise(self, batch: Sequence[Encoded]) -> DrawnNoise | None:
        """Draw the noise of training from torch's generator of the CPU, one level an example.

        None where the backbone adds none.
        """

    def losses(
        self,
        batch: Sequence[Encoded],
        fixed: FixedNoise | DrawnNoise | None = None,
        joined: Sequence[int] | None = None,
    ) -> Losses:
        """Return each example's losses, differentiable in the attached adapter.

        Args:
            batch: examples as ``encode`` gave them.
            fixed: noise to be used, by backbones that add some; None: as ``draw_noise`` draws it.
            joined: how many consecutive examples each sequence has that is computed, in place of
                padding; none sees another, and the losses are the same. None: one each.

        Raises:
            BackboneError: examples are joined, and the backbone does not hold them apart.
        """

    def with_untouched(self, batch: Sequence[Encoded]) -> list[Encoded]:
        """Return examples that carry what they are passed through the untouched backbone for.

        As they are, where that is different each time; see ``losses_with_divergence``.
        """

    def losses_with_divergence(
        self,
        batch: Sequence[Encoded],
        fixed: FixedNoise | DrawnNoise | None = None,
        joined: Sequence[int] | None = None,
        held: Sequence[bool] | None = None,
    ) -> tuple[Losses, Losses]:
        """Return each example's losses, and how far the adapter moves the outputs behind them.

        The divergence is >= 0, but for rounding, by the same units: KL(backbone || adapted) of a
        token, or the squared difference of both predictions at a noise level, weighted as the loss.
        One pass with the adapter, one without, unless all those held are ``with_untouched``: that
        one has no dropout and carries no gradient.

        Args:
            batch: examples as ``encode`` gave them.
            fixed: noise to be used in both passes, see ``losses``.
            joined: see ``losses``.
            held: which examples are compared, one at least; None: all. That of others is 0.

        Raises:
            BackboneError: see ``losses``.
        """

    def generate(
        self,
        prompts: Sequence[str],
        config: SamplingConfig,
        seed: int,
        sizes: Sequence[tuple[int, int]] = (),
    ) -> list[Example]:
        """Return an example for each prompt, made by the backbone with its adapter.

        Each has a seed of its own, derived from ``seed`` and its place.

        Args:
            prompts: of any number.
            config: how they are made.
            seed: of all of them.
            sizes: height and width of each picture; none: as the backbone is configured.
        """

    def opening(self) -> Question:
        """Return what a chat begins with: what is asked when a user's first words are wanted.

        Raises:
            BackboneError: it writes no chats.
        """

    def questions(self, examples: Sequence[Example]) -> list[Question]:
        """Return rows that have prompt and answer as what is asked and what was expected.

        Raises:
            BackboneError: it writes no answers.
        """

    def answer(
        self, questions: Sequence[Question], config: SamplingConfig, seeds: Sequence[int]
    ) -> list[Answer]:
        """Return what the backbone writes to each question with its adapter, all at once.

        Args:
            questions: as ``questions`` gave them.
            config: tokens written at most, and the temperature; 0: the likeliest each time.
            seeds: of each one's draws.

        Raises:
            BackboneError: it writes no answers.
        """

    def as_transformers(self) -> AbstractContextManager[tuple[Any, Any]]:
        """Give the model with its adapter, and the tokenizer, to what takes those of transformers.

        They compute in the backbone's precision while the context lasts.

        Raises:
            BackboneError: it writes no answers.
        """

    def attach_adapter(self, config: AdapterConfig, seed: int) -> None:
        """Attach a new adapter whose effect is nil until it is trained.

        Raises:
            BackboneError: ``target_modules`` match nothing.
        """

    def load_adapter(self, folder: Path) -> None:
        """Attach the adapter saved in ``folder``.

        Raises:
            BackboneError: it was made for another backbone.
        """

    def save_adapter(self, folder: Path) -> None:
        """Save the attached adapter in the ecosystem's own format."""

    def adapter_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the attached adapter's trainable parameters by name."""

    def adapter_layers(self) -> dict[str, torch.nn.Module]:
        """Return the layers whose weights those are, by the same names; none has a bias."""

    def adapter_disabled(self) -> AbstractContextManager[None]:
        """Compute as the untouched backbone while the context lasts."""

    def detach_adapter(self) -> None:
        """Remove the attached adapter, if any."""

    def training(self, on: bool) -> None:
        """Switch dropout on or off."""

    def checkpoint_gradients(self) -> None:
        """Compute activations again in the backward pass rather than keep them: less memory."""


def trained_layers(module: torch.nn.Module, prefix: str = "") -> dict[str, torch.nn.Module]:
    """Return the layers of a module whose weight is trained, by the weight's name."""
    import torch

    return {
        f"{prefix}{name}.weight": layer
        for name, layer in module.named_modules()
        if isinstance(w := getattr(layer, "weight", None), torch.nn.Parameter) and w.requires_grad
    }


@contextmanager
def as_untouched(backbone: Backbone, module: torch.nn.Module) -> Iterator[None]:
    """Compute as the untouched backbone, without dropout or gradients, while the context lasts.

    Args:
        backbone: with or without an adapter.
        module: whose mode is the backbone's: training or not.
    """
    import torch

    mode = module.training
    backbone.training(False)
    try:
        with backbone.adapter_disabled(), torch.no_grad():
            yield
    finally:
        backbone.training(mode)


@contextmanager
def adapted(backbone: Backbone, adapter: Path | None) -> Iterator[Backbone]:
    """Give the backbone with the adapter of that folder (None: untouched); detach it after."""
    if adapter is not None:
        backbone.load_adapter(adapter)
    try:
        yield backbone
    finally:
        backbone.detach_adapter()


def forward_units(backbone: Backbone, encoded: Sequence[Encoded], noise: FixedNoise) -> int:
    """Return the units that a forward pass over examples computes, at all noise levels."""
    return sum(e.length for e in encoded) * (noise.levels if backbone.noisy else 1)
