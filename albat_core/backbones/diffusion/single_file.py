"""Text-to-image checkpoints in one file, as folders that ``save_pretrained`` writes."""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from albat_core.backbones.diffusion.families import FAMILIES, find_family
from albat_core.backbones.diffusion.families.base import Family, left_out
from albat_core.backbones.diffusion.loading import parts_without_part
from albat_core.backbones.folder import Converted, converted_folder, open_weights, refuse_pickled
from albat_core.errors import BackboneError

_DENOISER = "model.diffusion_model."  # before a denoiser's names, in files that hold more
_PARTS = {
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g.", "text_encoders.t5xxl."),
    "text_encoder_3": ("text_encoders.t5xxl.",),
}
"""How names begin of what files may lack, such as those of Stable Diffusion 3.5 and Flux."""

_SCALES = ("scale_weight", "weight_scale", "scale_input", "input_scale", "scaled_fp8")
"""How names end of what fp8 weights are scaled by."""


def convert_single_file(
    file: Path,
    folder: Path,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    config: Path | None = None,
) -> Converted:
    """Write a checkpoint with its authors' names, as kohya's scripts and WebUI's, for diffusers.

    Args:
        file: safetensors, of one of the families.
        folder: that is written; it must not be there.
        dtype: of the weights; float32 keeps what the file has.
        config: a pipeline's folder of the same family, which gives descriptions, tokenizers and
            scheduler, and weights of the autoencoder and text encoders that the file lacks. None:
            diffusers takes them from the hub, by the shapes in the file.

    Raises:
        BackboneError: the file or ``config`` cannot be read, or they do not fit together.
        ConfigError: the folder is there.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    refuse_pickled(str(file))
    with converted_folder(file, folder) as draft:
        names, types, about = _tensors(file)
        _refuse_scaled(names, file)
        family = _family_of(names, file) if config is None else _same_family(names, file, config)
        loader = getattr(diffusers, family.pipeline_class)
        given: dict[str, Any] = parts_without_part(loader)
        precision = getattr(torch, dtype)
        diffusers.utils.logging.disable_progress_bar()
        try:
            if config is not None:
                given |= {"config": str(config), "local_files_only": True}
                given |= dict.fromkeys(left_out(config, family))
                given |= _lacking(names, config, family, loader, precision)
            pipeline = loader.from_single_file(str(file), dtype=precision, **given)
        except (
            *(OSError, ValueError, LookupError, RuntimeError, AttributeError),
            *(SafetensorError, SingleFileComponentError),
        ) as error:
            raise _unreadable(file, config, f"{type(error).__name__}: {error}") from error
        pipeline.register_modules(scheduler=_as_trained(pipeline.scheduler, names, about))
        modules = {n: m for n, m in pipeline.components.items() if isinstance(m, torch.nn.Module)}
        for name, module in modules.items():
            if missing := [n for n, p in module.named_parameters() if p.is_meta]:
                raise _unreadable(file, config, f"no weights for {missing[0]} of the {name}")
        pipeline.save_pretrained(draft, safe_serialization=True)
    return Converted(sum(p.numel() for m in modules.values() for p in m.parameters()), types)


def _lacking(
    names: list[str], config: Path, family: type[Family], loader: Any, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the parts of a pipeline that a file lacks, from a folder."""
    index = loader.load_config(str(config))
    parts = {name for name, value in index.items() if isinstance(value, list)}
    lacking = [
        part
        for part in (parts & _PARTS.keys()).difference(left_out(config, family))
        if not any(name.startswith(_PARTS[part]) for name in names)
    ]
    if not lacking:
        return {}
    pipeline = loader.from_pretrained(
        config,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        **dict.fromkeys(parts.difference(lacking)),
    )
    return {part: getattr(pipeline, part) for part in lacking}


def _refuse_scaled(names: list[str], file: Path) -> None:
    """Raise where weights are to be multiplied by others, which diffusers leaves out."""
    if scaled := next((n for n in names if n.endswith(_SCALES)), None):
        raise BackboneError(
            f"expected weights as they are used, found {scaled}, by which others are scaled",
            where=str(file),
            remedy="take the model in 16 bits, or in plain 8 bits",
        )


def _as_trained(scheduler: Any, names: list[str], about: dict[str, str]) -> Any:
    """Return a scheduler that predicts what the file says that its model does."""
    velocity = "v_pred" in names or about.get("modelspec.prediction_type", "").startswith("v")
    told: dict[str, Any] = {"prediction_type": "v_prediction"} if velocity else {}
    if "ztsnr" in names:
        told |= {"rescale_betas_zero_snr": True}
    known = {name: value for name, value in told.items() if name in scheduler.config}
    return type(scheduler).from_config(scheduler.config, **known) if known else scheduler


def _tensors(file: Path) -> tuple[list[str], dict[str, int], dict[str, str]]:
    """Return the names of a file's tensors, how many are of each type, and what it says of them."""
    if file.suffix != ".safetensors":  # by which diffusers tells them from pickled ones
        raise BackboneError(
            f"expected FILE.gguf or FILE.safetensors, got {file.name}",
            where=str(file),
            remedy="name it so if it is one",
        )
    with open_weights(file) as opened:
        names = list(opened.keys())
        kept = [opened.get_slice(name).get_dtype() for name in names]
        about = opened.metadata() or {}
    return names, {kind: kept.count(kind) for kind in sorted(set(kept))}, about


def _is_of(family: type[Family], names: list[str]) -> bool:
    return any(n.removeprefix(_DENOISER).startswith(family.original_prefix) for n in names)


def _family_of(names: list[str], file: Path) -> type[Family]:
    family = next((each for each in FAMILIES.values() if _is_of(each, names)), None)
    if family is None:
        raise BackboneError(
            f"expected a checkpoint of {', '.join(FAMILIES)} with its authors' names, found "
            f"{names[0] if names else 'no tensors'}",
            where=str(file),
            remedy="name a whole model: adapters and single components are none",
        )
    return family


def _same_family(names: list[str], file: Path, config: Path) -> type[Family]:
    family = find_family(config)
    if not _is_of(family, names):
        found = _family_of(names, file)
        raise BackboneError(
            f"expected a checkpoint of {family.pipeline_class}, as {config} is, got one of "
            f"{found.pipeline_class}",
            where=str(file),
            remedy="name a folder of the file's own family",
        )
    return family


def _unreadable(file: Path, config: Path | None, reason: str) -> BackboneError:
    source = "the hub" if config is None else str(config)
    return BackboneError(
        f"expected a checkpoint that diffusers can load with descriptions from {source} "
        f"({reason.strip().splitlines()[0]})",
        where=str(file),
        remedy="name a folder of a pipeline with the same shapes: --config PIPELINE"
        + (", with the weights that the file lacks" if config is not None else ""),
    )
