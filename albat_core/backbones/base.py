"""The one seam between modalities: what the stages ask of a backbone."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import Field

from albat_core.records import Example
from albat_core.stage import StageConfig


class BackboneConfig(StageConfig):
    """The pretrained model that is adapted."""

    kind: Literal["language"] = "language"
    """What it models: `language` for a causal language model."""
    path: str = Field(min_length=1)
    """Local folder or hub id of a transformers causal language model, safetensors only."""
    revision: str | None = None
    """Branch, tag or commit on the hub; none for a local folder."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of computing; adapters are kept in float32. `auto`: bfloat16 where the device has
    instructions for it (a GPU, a CPU with AVX-512 BF16 or AMX), else float32."""
    max_length: int = Field(512, ge=8, le=131072)
    """Tokens that an example may have, special tokens included; longer rows are cut up."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code."""


class AdapterConfig(StageConfig):
    """Low-rank adapter (LoRA, arXiv 2106.09685)."""

    rank: int = Field(16, ge=1, le=1024)
    """Rank r of the update B A."""
    lora_alpha: float = Field(32.0, gt=0)
    """Scale of the update: lora_alpha / rank multiplies B A."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs dropped in training, in [0, 1)."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the modules adapted, or `all-linear`."""


@dataclass(frozen=True)
class Encoded:
    """An example as the backbone takes it.

    Args:
        example_id: whose it is.
        inputs: what the backbone reads, by name.
        length: its cost in units (tokens); batches are made of similar lengths.
        loss_units: units that carry loss.
    """

    example_id: str
    inputs: dict[str, Any]
    length: int
    loss_units: int


@dataclass(frozen=True)
class Losses:
    """Losses of a batch: ``total`` (n,) float32 nats summed over ``units`` (n,) int64 >= 1."""

    total: torch.Tensor
    units: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        """Mean loss of each example, (n,) float32, nats per unit."""
        return self.total / self.units


class Backbone(Protocol):
    """A frozen pretrained model to which one adapter may be attached."""

    fingerprint: str
    """Digest of its weights, its configuration and its tokenizer."""
    device: torch.device

    def pieces(self, example: Example) -> list[Example]:
        """Cut an example into ones that the backbone takes at once; none if nothing fits."""

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return the examples as the backbone takes them, in order."""

    def embed(self, batch: Sequence[Encoded]) -> torch.Tensor:
        """Return the backbone's representation of each example, (n, d) float32 on the CPU."""

    def losses(self, batch: Sequence[Encoded]) -> Losses:
        """Return each example's loss, differentiable in the attached adapter."""

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

    def adapter_disabled(self) -> AbstractContextManager[None]:
        """Compute as the untouched backbone while the context lasts."""

    def detach_adapter(self) -> None:
        """Remove the attached adapter, if any."""

    def training(self, on: bool) -> None:
        """Switch dropout on or off."""


@contextmanager
def adapted(backbone: Backbone, adapter: Path | None) -> Iterator[Backbone]:
    """Give the backbone with the adapter of that folder (None: untouched); detach it after."""
    if adapter is not None:
        backbone.load_adapter(adapter)
    try:
        yield backbone
    finally:
        backbone.detach_adapter()


def length_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return positions in batches of similar length, longest first.

    Args:
        lengths: cost of each example in units.
        budget: units a batch may have, padding included; one example is always allowed.
    """
    batches: list[list[int]] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * longest <= budget:
            batches[-1].append(position)
        else:
            batches.append([position])
            longest = lengths[position]
    return batches
