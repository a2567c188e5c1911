"""Families of text-to-image pipelines (diffusers): what differs between them, and nothing else."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from albat_core.backbones.base import DiffusionConfig
from albat_core.backbones.folder import PIPELINE_INDEX, refuse_other_kind
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


class Family:
    """Stable Diffusion 1.x and 2.x: a UNet that reads one CLIP text encoder.

    Args:
        pipeline: the loaded diffusers pipeline.
        config: settings of text-to-image backbones.
    """

    pipeline_class: ClassVar[str] = "StableDiffusionPipeline"
    denoiser_name: ClassVar[str] = "unet"
    adaptable_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    attention: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    patch: ClassVar[int] = 1  # latents that the denoiser takes as one, a side

    def __init__(self, pipeline: Any, config: DiffusionConfig) -> None:
        self.pipeline = pipeline
        self.config = config

    @property
    def denoiser(self) -> Any:
        """The module that predicts: a UNet or a transformer."""
        return getattr(self.pipeline, self.denoiser_name)

    @property
    def encoders(self) -> dict[str, Any]:
        """Text encoders that an adapter may be attached to, by component name."""
        return {name: getattr(self.pipeline, name) for name in self.adaptable_encoders}

    @property
    def pooled_module(self) -> torch.nn.Module:
        """The module whose output stands for the picture: the middle of the denoiser."""
        middle: torch.nn.Module = self.denoiser.mid_block
        return middle

    def pooled(self, output: Any) -> torch.Tensor:
        """Return the mean over positions of that module's output, (n, d)."""
        mean: torch.Tensor = output.flatten(2).mean(dim=2)
        return mean

    def encode_text(self, captions: list[str], device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return the text encoders' outputs, each (n, ...), differentiable in their adapters."""
        embedded, _ = self.pipeline.encode_prompt(captions, device, 1, False)
        return (embedded,)

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition
    ) -> torch.Tensor:
        """Return what the denoiser says of noisy latents (n, c, h, w), in the same shape."""
        (text,) = condition.text
        output: torch.Tensor = self.denoiser(
            latents, timestep, encoder_hidden_states=text, return_dict=False
        )[0]
        return output

    @classmethod
    def misfit(cls, folder: Path) -> str | None:
        """Return why the folder's models are not of this family, None where they are."""
        unet = read_config(folder, "unet")
        if unet.get("addition_embed_type") == "text_time":
            return "its UNet takes picture sizes, as SDXL's does"
        width, written = unet.get("cross_attention_dim"), _text_width(folder, "text_encoder")
        if width != written:
            return f"its UNet reads text of width {width}, the text encoder writes {written}"
        return None


class SDXL(Family):
    """Stable Diffusion XL: two text encoders, and the sizes of picture and crop."""

    pipeline_class = "StableDiffusionXLPipeline"
    adaptable_encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")

    def encode_text(self, captions: list[str], device: torch.device) -> tuple[torch.Tensor, ...]:
        """See ``Family``: hidden states of both encoders, pooled output of the second."""
        embedded, _, pooled, _ = self.pipeline.encode_prompt(
            captions, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return embedded, pooled

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition
    ) -> torch.Tensor:
        """See ``Family``."""
        text, pooled = condition.text
        added = {"text_embeds": pooled, "time_ids": condition.frames.to(pooled.dtype)}
        output: torch.Tensor = self.denoiser(
            latents,
            timestep,
            encoder_hidden_states=text,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return output

    @classmethod
    def misfit(cls, folder: Path) -> str | None:
        """See ``Family``."""
        unet = read_config(folder, "unet")
        if unet.get("addition_embed_type") != "text_time":
            return "its UNet takes no picture sizes, as Stable Diffusion 1.x and 2.x"
        written = sum(_text_width(folder, name) for name in ("text_encoder", "text_encoder_2"))
        width = unet.get("cross_attention_dim")
        if width != written:
            return f"its UNet reads text of width {width}, the text encoders write {written}"
        return None


class Flux(Family):
    """Flux: a transformer on packed latents that matches flows; CLIP pooled and T5 tokens."""

    pipeline_class = "FluxPipeline"
    denoiser_name = "transformer"
    adaptable_encoders = ("text_encoder",)
    tokenizers = ("tokenizer", "tokenizer_2")
    attention = (*Family.attention, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    patch = 2

    @property
    def pooled_module(self) -> torch.nn.Module:
        """See ``Family``: the middle one of the blocks that read text and picture apart."""
        blocks = self.denoiser.transformer_blocks
        middle: torch.nn.Module = blocks[len(blocks) // 2]
        return middle

    def pooled(self, output: Any) -> torch.Tensor:
        """See ``Family``; the block gives text and picture, both (n, tokens, d)."""
        _, picture = output
        mean: torch.Tensor = picture.mean(dim=1)
        return mean

    def encode_text(self, captions: list[str], device: torch.device) -> tuple[torch.Tensor, ...]:
        """See ``Family``: T5's hidden states, CLIP's pooled output."""
        embedded, pooled, _ = self.pipeline.encode_prompt(
            captions, None, device=device, max_sequence_length=caption_limit(self.pipeline)
        )
        return embedded, pooled

    def predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition
    ) -> torch.Tensor:
        """See ``Family``; latents are packed two by two for the transformer, and unpacked."""
        text, pooled = condition.text
        n, c, h, w = latents.shape
        packed = latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
        packed = packed.reshape(n, h * w // 4, c * 4)
        guided = bool(self.denoiser.config.guidance_embeds)
        guidance = torch.full((n,), self.config.guidance, device=latents.device)
        output = self.denoiser(
            hidden_states=packed,
            timestep=timestep / self.pipeline.scheduler.config.num_train_timesteps,
            guidance=guidance if guided else None,
            pooled_projections=pooled,
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=latents.device),
            img_ids=_positions(h // 2, w // 2, latents.device),
            return_dict=False,
        )[0]
        unpacked = output.view(n, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
        whole: torch.Tensor = unpacked.reshape(n, c, h, w)
        return whole

    @classmethod
    def misfit(cls, folder: Path) -> str | None:
        """See ``Family``."""
        config = read_config(folder, "transformer")
        channels = 4 * read_config(folder, "vae").get("latent_channels", 0)
        if config.get("in_channels") != channels:
            return f"its transformer reads {config.get('in_channels')} channels, not {channels}"
        written = _text_width(folder, "text_encoder_2")
        if config.get("joint_attention_dim") != written:
            return (
                f"its transformer reads text of width {config.get('joint_attention_dim')}, "
                f"the text encoder writes {written}"
            )
        return None


FAMILIES: dict[str, type[Family]] = {f.pipeline_class: f for f in (Family, SDXL, Flux)}


def _positions(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return (0, row, column) of every packed latent, (height * width, 3)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).view(-1, 3).to(device)


def _text_width(folder: Path, component: str) -> int:
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
    return int(min(max(longest), 512))


def read_config(folder: Path, component: str) -> dict[str, Any]:
    """Return a component's description.

    Raises:
        BackboneError: it is missing or not JSON.
    """
    path = folder / component / "config.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"expected the pipeline's {component}, found none that can be read "
            f"({type(error).__name__})",
            where=str(path),
            remedy="name the folder that the pipeline's save_pretrained wrote",
        ) from error
    return found


def find_family(folder: Path) -> type[Family]:
    """Return the family of a pipeline folder, by its index.

    Raises:
        BackboneError: it is not a pipeline, of no known family, or its models are of another.
    """
    refuse_other_kind(folder, PIPELINE_INDEX, "diffusion")
    try:
        named = json.loads((folder / PIPELINE_INDEX).read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(
            f"expected a {PIPELINE_INDEX} that names a pipeline ({type(error).__name__})",
            where=str(folder),
            remedy="name the folder that the pipeline's save_pretrained wrote",
        ) from error
    family = FAMILIES.get(named)
    if family is None:
        raise BackboneError(
            f"expected one of {', '.join(FAMILIES)}, got {named}",
            where=str(folder / PIPELINE_INDEX),
            remedy="use a backbone of one of these families",
        )
    if (why := family.misfit(folder)) is not None:
        others = [name for name, other in FAMILIES.items() if _fits(other, folder)]
        raise BackboneError(
            f"the folder says {named}, but {why}",
            where=str(folder / PIPELINE_INDEX),
            remedy=f"its models fit {others[0]}: set _class_name to that"
            if others
            else "the folder mixes models of several pipelines: save it again",
        )
    return family


def _fits(family: type[Family], folder: Path) -> bool:
    try:
        return family.misfit(folder) is None
    except BackboneError:
        return False


def refuse_indivisible(
    family: type[Family], folder: Path, size: tuple[int, int], where: str
) -> None:
    """Check that pictures of that height and width can be encoded.

    Raises:
        BackboneError: a side is no multiple of what the backbone needs.
    """
    scale = 2 ** (len(read_config(folder, "vae").get("block_out_channels", [0])) - 1)
    step = scale * family.patch
    if any(side % step for side in size):
        near = tuple(max(round(side / step), 1) * step for side in size)
        raise BackboneError(
            f"expected a height and width divisible by {step}, got {size[0]} x {size[1]}",
            where=where,
            remedy=f"set backbone.diffusion.picture.resolution to [{near[0]}, {near[1]}]",
        )
