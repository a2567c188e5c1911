"""Families of text-to-image pipelines (diffusers), one class a file: the table, and the look-up."""

import json
from pathlib import Path

from albat_core.backbones.diffusion.families.base import Family, read_config
from albat_core.backbones.diffusion.families.flux import Flux
from albat_core.backbones.diffusion.families.sdxl import SDXL
from albat_core.backbones.diffusion.families.stable_diffusion import StableDiffusion
from albat_core.backbones.diffusion.families.stable_diffusion_3 import StableDiffusion3
from albat_core.backbones.folder import PIPELINE_INDEX, refuse_other_kind
from albat_core.errors import BackboneError
from albat_core.pictures import PictureConfig

FAMILIES: dict[str, type[Family]] = {
    f.pipeline_class: f for f in (StableDiffusion, SDXL, StableDiffusion3, Flux)
}


def find_family(folder: Path) -> type[Family]:
    """Return the family of a pipeline folder, by its index.

    Raises:
        BackboneError: it is not a pipeline, of no known family, or its models are of another.
    """
    refuse_other_kind(folder, PIPELINE_INDEX, "diffusion")
    try:
        named = json.loads((folder / PIPELINE_INDEX).read_text(encoding="utf-8"))["_class_name"]
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


def _scale(folder: Path) -> int:
    """Return the pixels of a latent's side."""
    return int(2 ** (len(read_config(folder, "vae").get("block_out_channels", [0])) - 1))


def usual_side(family: type[Family], folder: Path) -> int | None:
    """Return the side of pictures that a pipeline draws by default, in pixels; None: untold."""
    side = read_config(folder, family.denoiser_name).get("sample_size")
    return side * _scale(folder) if isinstance(side, int) else None


def refuse_size(family: type[Family], folder: Path, picture: PictureConfig, where: str) -> None:
    """Check that pictures of the configured height and width, or of all buckets, can be encoded.

    Raises:
        BackboneError: a side is no multiple of what the backbone needs, or longer than it takes.
    """
    scale = _scale(folder)
    step, size, buckets = scale * family.patch, picture.size, picture.buckets
    if buckets is not None and buckets % step:
        raise BackboneError(
            f"expected buckets divisible by {step}, got {buckets}",
            where=where,
            remedy="set backbone.diffusion.picture.buckets to a multiple of that",
        )
    if buckets is None and any(side % step for side in size):
        near = tuple(max(round(side / step), 1) * step for side in size)
        raise BackboneError(
            f"expected a height and width divisible by {step}, got {size[0]} x {size[1]}",
            where=where,
            remedy=f"set backbone.diffusion.picture.resolution to [{near[0]}, {near[1]}]",
        )
    most, longest = family.most_latents(folder), max(max(sides) for sides in picture.sizes)
    if most is not None and longest > most * scale:
        raise BackboneError(
            f"expected sides of at most {most * scale} pixels, got {longest}",
            where=where,
            remedy="set backbone.diffusion.picture.resolution to less",
        )
