"""Backbones: opened here, by the one look-up that knows which modality is which."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

from albat_core.backbones.adapters import BY_LAYER, AdapterConfig
from albat_core.backbones.base import Backbone, Embedder, Precomputed
from albat_core.backbones.batches import free_memory
from albat_core.backbones.config import BackboneConfig, EmbedderConfig
from albat_core.backbones.diffusion.kind import DiffusionKind
from albat_core.backbones.folder import (
    Converted,
    backbone_folder,
    count_weights,
    folder_fingerprint,
    hub_id,
    model_folder,
    quantization_of,
)
from albat_core.backbones.kind import Kind, RowLimit, Splitter
from albat_core.backbones.language.kind import LanguageKind
from albat_core.devices import computes_bfloat16, lent_device, resolve_device
from albat_core.errors import BackboneError, ConfigError
from albat_core.records.examples import Example, rows_beside
from albat_core.store.stage import Runtime, canonical_json

if TYPE_CHECKING:
    import torch

    from albat_core.backbones.vision import VisionEncoder

# peft imports it where it is installed, and on a CPU it asks for more kernels each time
logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)

KINDS: dict[str, Kind] = {"language": LanguageKind(), "diffusion": DiffusionKind()}
"""The kinds of backbone by the name that settings have: the only look-up by modality."""

_LOADED: dict[str, tuple[tuple[object, ...], Backbone]] = {}
"""The last backbone on each device, with what it was loaded by."""


def kind_of(config: BackboneConfig) -> Kind:
    """Return what is known of a backbone's kind."""
    return KINDS[config.kind]


def resolve_dtype(config: BackboneConfig, device: torch.device) -> torch.dtype:
    """Return the precision to compute in."""
    import torch

    if config.dtype != "auto":
        return torch.float32 if config.dtype == "float32" else torch.bfloat16
    return torch.bfloat16 if computes_bfloat16(device) else torch.float32


def _dtype_name(config: BackboneConfig, runtime: Runtime) -> str:
    return str(resolve_dtype(config, resolve_device(runtime))).removeprefix("torch.")


def backbone_identity(config: BackboneConfig, runtime: Runtime) -> dict[str, Any]:
    """Return what identifies a backbone in the key of a result that it computes."""
    return _identity(config, runtime, kind_of(config).identity(config))


def reading_identity(config: BackboneConfig, runtime: Runtime) -> dict[str, Any]:
    """Return what identifies a backbone in the key of a result that no loss is taken for."""
    return _identity(config, runtime, kind_of(config).reading_identity(config))


def _identity(config: BackboneConfig, runtime: Runtime, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies a backbone's weights and precision, with settings."""
    content = folder_fingerprint(backbone_folder(config), weights=True)
    return {"content": content, "dtype": _dtype_name(config, runtime), **settings}


def input_fingerprint(config: BackboneConfig) -> str:
    """Return a digest of what decides how rows are cut and encoded."""
    content = folder_fingerprint(backbone_folder(config), weights=False)
    return f"{content}-{canonical_json(kind_of(config).input_identity(config))}"


def precomputes(config: BackboneConfig) -> bool:
    """Tell whether inputs of this kind of backbone are worth computing once and keeping."""
    return kind_of(config).precomputes


def loss_unit(config: BackboneConfig) -> str:
    """Return what losses are measured in."""
    return kind_of(config).loss_unit


def writes_answers(config: BackboneConfig) -> bool:
    """Tell whether this kind of backbone answers prompts with texts."""
    return kind_of(config).writes_answers


def adapter_card(config: BackboneConfig, facts: Mapping[str, Any]) -> str:
    """Return the README of an adapter of this backbone.

    Args:
        config: of the backbone.
        facts: what the adapter's manifest says of its training.
    """
    kind = kind_of(config)
    published = hub_id(config.path)  # where there is none, a path would be of this machine alone
    path = published or f"path/to/{PurePath(config.path).name}"
    revision = f", revision={config.revision!r}" if published and config.revision else ""
    base_model = f"base_model: {published}\n" if published else ""
    then = "\nThen trained anew for as many steps, on the validation rows too.\n"
    refit = then if facts["refit"] else ""
    return f"""---
{base_model}library_name: {kind.library}
tags: [lora, albat]
---
# LoRA adapter

Trained by albat on {facts["adaptation_rows"]} adaptation rows{_beside(facts)}; kept at step
{facts["best_step"]} of {facts["steps"]}, validation loss {facts["validation_loss"]:.4f}
({kind.loss_unit}).
{refit}
```python
{kind.loading(config, repr(path) + revision)}
```
"""


def _beside(facts: Mapping[str, Any]) -> str:
    """Return which rows an adapter was trained on beside those of the adaptation set."""
    rows, made = facts["backbone_rows"], facts["generated_rows"]
    others = ", ".join(rows_beside(rows, made, "of the backbone's own corpus"))
    return f", {others} (alpha = {facts['alpha']:.3f})" if others else " alone"


@lru_cache(maxsize=4)
def open_splitter(config: BackboneConfig) -> Splitter:
    """Return what cuts rows to the backbone's size; no weights are loaded."""
    return kind_of(config).splitter(config)


def open_trap(config: BackboneConfig) -> Callable[[Example], str | None]:
    """Return what says how a row will be trained on otherwise than it seems, see ``Kind.trap``."""
    return kind_of(config).trap(config)


def row_limit(config: BackboneConfig) -> RowLimit:
    """Return how much of a row a backbone takes; no weights are loaded."""
    return kind_of(config).limit(config)


@contextmanager
def open_backbone(
    config: BackboneConfig,
    runtime: Runtime,
    known: Precomputed | None = None,
    share: bool = False,
) -> Iterator[Backbone]:
    """Give the backbone, alone in its use, without an adapter; the last one is kept in memory.

    Args:
        config: which backbone.
        runtime: where to compute.
        known: inputs that were computed before.
        share: of its blocks, only this process' part; the others of its group have the rest.
    """
    with lent_device(runtime) as device:
        content = folder_fingerprint(backbone_folder(config), weights=True)
        backbone = _load(config, device, content, runtime.gradient_checkpointing, share)
        backbone.known = known
        try:
            yield backbone
        finally:
            backbone.known = None
            backbone.detach_adapter()


@contextmanager
def open_embedder(
    embedder: EmbedderConfig,
    config: BackboneConfig,
    runtime: Runtime,
    known: Precomputed | None = None,
) -> Iterator[Embedder]:
    """Give what represents examples as vectors: an encoder, or else the backbone or a part of it.

    Args:
        embedder: which.
        config: of the backbone.
        runtime: where to compute.
        known: the backbone's inputs that were computed before.
    """
    kind = kind_of(config)
    if embedder.encoder is None:
        with open_backbone(config, runtime, known) as backbone:
            yield kind.embedder(backbone, embedder)
    else:
        with lent_device(runtime) as device:
            yield kind.load_encoder(embedder.encoder, device, resolve_dtype(config, device))


@contextmanager
def open_encoder(path: str, runtime: Runtime) -> Iterator[VisionEncoder]:
    """Give an image encoder, alone in its use; the last two are kept in memory.

    Args:
        path: folder or hub id.
        runtime: where to compute.
    """
    from albat_core.backbones.vision import load_vision_encoder

    with lent_device(runtime) as device:
        yield load_vision_encoder(path, device)


def embedder_identity(
    embedder: EmbedderConfig, config: BackboneConfig, runtime: Runtime
) -> dict[str, Any]:
    """Return what identifies what embeds, beside its settings, in the key of a result."""
    if embedder.encoder is None:
        return reading_identity(config, runtime)
    dtype = _dtype_name(config, runtime)
    return encoder_identity(embedder.encoder) | kind_of(config).encoder_identity(dtype)


def encoder_identity(path: str) -> dict[str, Any]:
    """Return what identifies an encoder's files in the key of a result that it computes."""
    return {"encoder": folder_fingerprint(model_folder(path), weights=True)}


def _load(
    config: BackboneConfig, device: torch.device, content: str, checkpointing: bool, share: bool
) -> Backbone:
    wanted = (config, content, checkpointing, share)
    loaded, backbone = _LOADED.pop(str(device), (None, None))
    if backbone is None or loaded != wanted:
        backbone = None  # its memory is needed for the next
        dtype = resolve_dtype(config, device)
        backbone = kind_of(config).load(config, device, dtype, content, share)
        if checkpointing:
            backbone.checkpoint_gradients()
    _LOADED[str(device)] = wanted, backbone
    return backbone


def release_backbones() -> None:
    """Let go of the backbones that are kept in memory: other processes need it."""
    _LOADED.clear()
    free_memory()


def check_backbone(config: BackboneConfig, runtime: Runtime) -> None:
    """Look at a backbone without loading its weights.

    Raises:
        BackboneError: it is missing or incomplete, or tokenizer and model do not fit together.
    """
    resolve_device(runtime)
    kind_of(config).check(config)


def weights_of(config: BackboneConfig) -> int:
    """Return about how many weights a backbone has; none is loaded."""
    return count_weights(backbone_folder(config))


def check_embedder(config: BackboneConfig, embedder: EmbedderConfig) -> None:
    """Look whether rows can be represented so, without loading weights.

    Raises:
        BackboneError: the backbone has no such part, or the encoder does not fit its rows.
        MissingDependencyError: what the encoder needs is not installed.
    """
    kind_of(config).check_embedder(config, embedder)


def check_smaller(
    config: BackboneConfig, other: BackboneConfig, rows: Sequence[Example] = ()
) -> None:
    """Look whether a smaller backbone's surrogate may score in place of a backbone's own.

    Args:
        config: of the backbone.
        other: of the smaller one.
        rows: as they are cut for the backbone, which both have to read alike.

    Raises:
        BackboneError: it reads other tokens, or pictures.
    """
    kind_of(config).check_smaller(config, other, rows)


def check_prompts(config: BackboneConfig, prompts: Sequence[str]) -> None:
    """Look whether a backbone takes prompts, without loading its weights.

    Raises:
        InputError: one is too long.
    """
    kind_of(config).check_prompts(config, prompts)


def check_chat(config: BackboneConfig) -> None:
    """Look whether a backbone writes chats of its own, without loading its weights.

    Raises:
        BackboneError: it has no chat template.
    """
    kind_of(config).check_chat(config)


def check_adapter(config: BackboneConfig, adapter: AdapterConfig) -> None:
    """Look whether an adapter finds its layers in a backbone, without loading weights.

    Raises:
        BackboneError: ``target_modules`` match nothing.
    """
    kind_of(config).check_adapter(config, adapter)


def check_sharing(config: BackboneConfig, adapter: AdapterConfig, runtime: Runtime) -> None:
    """Look whether training devices can share a backbone, where they are to.

    Raises:
        BackboneError: its weights cannot be cut in parts, or the adapter needs them whole.
        ConfigError: there is one device.
    """
    if not runtime.shard_backbone:
        return
    if runtime.training_devices == 1:
        raise ConfigError(
            "expected several devices that share the backbone, got runtime.training_devices 1",
            where="runtime.shard_backbone",
            remedy="raise runtime.training_devices, or leave shard_backbone out",
        )
    if config.quantization or quantization_of(backbone_folder(config)):
        raise BackboneError(
            f"expected weights that can be cut in parts, got {config.quantization or 'quantized'} "
            "ones",
            where="runtime.shard_backbone",
            remedy="leave it out, or take the backbone in full precision",
        )
    if not adapter.by_layer:
        raise BackboneError(
            f"expected an adapter that begins without the backbone's weights, got {adapter.kind}",
            where="runtime.shard_backbone",
            remedy=f"leave it out, or set adapter.kind to {' or '.join(sorted(BY_LAYER))}",
        )


def check_packing(config: BackboneConfig) -> None:
    """Look whether a backbone's rows can be joined in a sequence, without loading weights.

    Raises:
        BackboneError: they would see one another, or have no padding to save.
    """
    kind_of(config).check_packing(config)


def convert_file(
    file: Path,
    folder: Path,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    config: Path | None = None,
) -> Converted:
    """Turn a model in one file into a folder that is a backbone.

    Args:
        file: GGUF: a language model; safetensors: one for pictures.
        folder: that is written; it must not be there.
        dtype: of the weights.
        config: see ``convert_single_file``; GGUF describes itself.

    Raises:
        BackboneError: the file or ``config`` cannot be read.
        ConfigError: the folder is there, or GGUF is given a ``config``.
    """
    if file.suffix.lower() != ".gguf":
        from albat_core.backbones.diffusion.single_file import convert_single_file

        return convert_single_file(file, folder, dtype, config)
    if config is not None:
        raise ConfigError(
            f"expected a GGUF file alone, which describes itself, got {config} too",
            where=str(file),
            remedy="leave --config out",
        )
    from albat_core.backbones.language.gguf import convert_gguf

    return convert_gguf(file, folder, dtype)
