"""What differs between families of text-to-image pipelines, and nothing else."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from albat_core.backbones.config import DiffusionConfig
from albat_core.backbones.diffusion.kohya import Layers
from albat_core.backbones.folder import PIPELINE_INDEX
from albat_core.errors import BackboneError


@dataclass(frozen=True)
class Condition:
    """What the denoiser is told of a batch beside the noisy latents.

    Args:
        text: outputs of the text encoders, each (n, ...), in the family's order.
        frames: (n, 6) float32, height and width before resizing, top and left of the crop, height
            and width after it, in pixels.
    """

    text: tuple[torch.Tensor, ...]
    frames: torch.Tensor


class Family(Protocol):
    """A family of pipelines: one class in one file, and a line in the table of ``families``.

    Args:
        pipeline: the loaded diffusers pipeline.
        config: settings of text-to-image backbones.
    """

    pipeline: Any
    config: DiffusionConfig
    pipeline_class: ClassVar[str]
    """Name of the class in diffusers, as a pipeline's index has it."""
    original_prefix: ClassVar[str]
    """How names of tensors begin in its authors' checkpoints, and in no other family's."""
    denoiser_name: ClassVar[str]
    """Component that predicts: a UNet or a transformer."""
    adaptable_encoders: ClassVar[tuple[str, ...]]
    """Text encoders that an adapter may be attached to."""
    tokenizers: ClassVar[tuple[str, ...]]
    """Components that are tokenizers."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Components that a pipeline may have been saved without, all of them together."""
    caption_tokens: ClassVar[int] = 512
    """Tokens of a caption that the pipeline reads at most, whatever its tokenizers take."""
    attention: ClassVar[tuple[str, ...]]
    """Names of the denoiser's layers that are adapted by default."""
    patch: ClassVar[int] = 1
    """Latents that the denoiser takes as one, a side."""

    def __init__(self, pipeline: Any, config: DiffusionConfig) -> None:
        self.pipeline = pipeline
        self.config = config

    @property
    def denoiser(self) -> Any:
        """The module that predicts."""
        return getattr(self.pipeline, self.denoiser_name)

    @property
    def encoders(self) -> dict[str, Any]:
        """Text encoders that an adapter may be attached to, by component name."""
        return {name: getattr(self.pipeline, name) for name in self.adaptable_encoders}

    @property
    def pooled_module(self) -> torch.nn.Module:
        """The module whose output stands for the picture: in the middle of the denoiser."""
        ...

    def pooled(self, output: Any) -> torch.Tensor:
        """Return the mean over positions of that module's output, (n, d)."""
        ...

    def encode_text(self, captions: list[str], device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return the text encoders' outputs, each (n, ...), differentiable in their adapters."""
        ...

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition
    ) -> torch.Tensor:
        """Return what the denoiser says of noisy latents (n, c, h, w), in the same shape."""
        ...

    @classmethod
    def misfit(cls, folder: Path) -> str | None:
        """Return why the folder's models are not of this family, None where they are."""

    @classmethod
    def most_latents(cls, folder: Path) -> int | None:
        """Return how many latents the side of a picture may have, None: any number."""

    @classmethod
    def kohya_layers(cls, components: Mapping[str, Layers], lora_alpha: float) -> Layers:
        """Return an adapter's layers under the names of kohya's sd-scripts.

        Args:
            components: peft's state by component: ``<module>.lora_A.weight`` (r, in) and
                ``<module>.lora_B.weight`` (out, r); text encoders as CLIP's checkpoints have them.
            lora_alpha: B A is multiplied by lora_alpha / r.

        Raises:
            BackboneError: a module has no name that the programs know.
        """
        ...


def left_out(folder: Path, family: type[Family]) -> tuple[str, ...]:
    """Return the components, each of them optional, that a pipeline was saved without."""
    if not family.optional:
        return ()
    index = json.loads((folder / PIPELINE_INDEX).read_text(encoding="utf-8"))
    absent = any(index.get(name) in (None, [None, None]) for name in family.optional)
    return family.optional if absent else ()


def text_width(folder: Path, component: str) -> int:
    """Return the width of what a text encoder writes; T5 calls it otherwise than CLIP."""
    config = read_config(folder, component)
    return int(config.get("d_model") or config.get("hidden_size") or 0)


def caption_limit(pipeline: Any) -> int:
    """Return the tokens that a pipeline's longest text encoder takes, at most 512."""
    longest = [
        tokenizer.model_max_length
        for name in ("tokenizer", "tokenizer_2")
        if (tokenizer := getattr(pipeline, name, None)) is not None
    ]
    return int(min(max(longest), Family.caption_tokens))


def read_config(folder: Path, component: str, name: str = "config.json") -> dict[str, Any]:
    """Return a component's description.

    Args:
        folder: of the pipeline.
        component: its name.
        name: of the file; a scheduler's has another.

    Raises:
        BackboneError: it is missing or not JSON.
    """
    path = folder / component / name
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"expected the pipeline's {component}, found none that can be read "
            f"({type(error).__name__})",
            where=str(path),
            remedy="name the folder that the pipeline's save_pretrained wrote",
        ) from error
    return found
