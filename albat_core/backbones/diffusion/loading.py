"""Text-to-image pipelines loaded from their folders by diffusers."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError

from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.diffusion.families import find_family
from albat_core.backbones.diffusion.families.base import Family, left_out, read_config
from albat_core.backbones.diffusion.noise import open_schedule
from albat_core.backbones.folder import backbone_folder, unreadable
from albat_core.processes.sharding import sharded

_VARIANT = re.compile(r"\.(fp16|bf16)(?:-\d+-of-\d+)?\.safetensors$")
_ABSENT = ("safety_checker", "feature_extractor", "image_encoder")  # no part in training


def load_pipeline(
    config: BackboneConfig, device: torch.device, weights: torch.dtype, share: bool = False
) -> Family:
    """Load a whole pipeline, frozen.

    Args:
        config: of the backbone.
        device: where its models go.
        weights: precision that they are kept in, but for the autoencoder's.
        share: of the denoiser's blocks, only this process' part, see ``sharded``.

    Raises:
        BackboneError: it is of no known family, cannot be read, or names no blocks to share.
    """
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    folder = backbone_folder(config)
    family = find_family(folder)
    loader = getattr(diffusers, family.pipeline_class)
    try:
        pipeline = loader.from_pretrained(
            folder,
            dtype={"default": weights, "vae": torch.float32},  # SDXL's overflows in half
            use_safetensors=True,
            local_files_only=True,
            variant=variant_of(folder),
            **parts_without_part(loader),
            **dict.fromkeys(left_out(folder, family)),
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise unreadable("pipeline", folder, error, library="diffusers") from error
    if share:
        sharded(getattr(pipeline, family.denoiser_name), device, str(folder))
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval().requires_grad_(requires_grad=False)
    return family(pipeline, config.diffusion)


def check_schedule(config: BackboneConfig) -> None:
    """Check that noise levels and targets are known of a pipeline's scheduler.

    Raises:
        BackboneError: they are not, or the scheduler cannot be read.
    """
    folder = backbone_folder(config)
    scheduler = _described(folder, "scheduler", "scheduler_config.json")
    open_schedule(scheduler, config.diffusion.snr_gamma, str(folder / "scheduler"))


def _described(folder: Path, component: str, name: str = "config.json") -> Any:
    """Return a component as its description has it, without weights."""
    import diffusers

    described = read_config(folder, component, name)
    try:
        return getattr(diffusers, described["_class_name"]).from_config(described)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise unreadable(component, folder, error, library="diffusers") from error


def variant_of(folder: Path) -> str | None:
    """Return what all weights of a component have in their files' names, None where none does."""
    for part in {path.parent for path in folder.glob("*/*.safetensors")}:
        kinds = {_VARIANT.search(path.name) for path in part.glob("*.safetensors")}
        if None not in kinds:
            return next(found[1] for found in kinds if found)
    return None


def parts_without_part(loader: Any) -> dict[str, None]:
    """Return what a pipeline's class is given so that it loads nothing that training leaves out."""
    parts: dict[str, None] = {n: None for n in _ABSENT if n in loader._optional_components}
    return parts | {"requires_safety_checker": None} if "safety_checker" in parts else parts


def load_hollow(config: BackboneConfig) -> Family:
    """Return a pipeline that is its denoiser alone, with shapes but no weights.

    Raises:
        BackboneError: it is of no known family, or its description cannot be read.
    """
    folder = backbone_folder(config)
    family = find_family(folder)
    with torch.device("meta"):
        denoiser = _described(folder, family.denoiser_name)
    parts = dict.fromkeys(family.adaptable_encoders) | {family.denoiser_name: denoiser}
    return family(SimpleNamespace(**parts), config.diffusion)
