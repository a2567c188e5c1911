"""Backbones: opened here, by the one look-up that knows which modality is which."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch

from albat_core.backbones.base import Backbone, BackboneConfig
from albat_core.backbones.folder import backbone_folder, folder_fingerprint
from albat_core.errors import BackboneError
from albat_core.records import Example
from albat_core.stage import Runtime

_FAMILIES = {"language": "albat_core.backbones.language"}
_IN_USE = threading.RLock()  # a model computes for one stage at a time


def resolve_device(runtime: Runtime) -> torch.device:
    """Return the device to compute on.

    Raises:
        BackboneError: ``cuda`` is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if runtime.device == "cuda" and not there:
        raise BackboneError(
            "expected a CUDA device, found none",
            where="runtime.device",
            remedy="set device to auto or cpu, or install a CUDA build of torch",
        )
    return torch.device("cuda" if there and runtime.device != "cpu" else "cpu")


def resolve_dtype(config: BackboneConfig, device: torch.device) -> torch.dtype:
    """Return the precision to compute in."""
    if config.dtype != "auto":
        return torch.float32 if config.dtype == "float32" else torch.bfloat16
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # torch has no public question for this yet
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def backbone_identity(config: BackboneConfig, runtime: Runtime) -> dict[str, str | int]:
    """Return what identifies a backbone in the key of a result that it computes."""
    content = folder_fingerprint(backbone_folder(config), weights=True)
    dtype = str(resolve_dtype(config, resolve_device(runtime))).removeprefix("torch.")
    return {"content": content, "dtype": dtype, "max_length": config.max_length}


def input_fingerprint(config: BackboneConfig) -> str:
    """Return a digest of what decides how rows are cut and encoded."""
    content = folder_fingerprint(backbone_folder(config), weights=False)
    return f"{content}-{config.max_length}"


@lru_cache(maxsize=4)
def open_splitter(config: BackboneConfig) -> Callable[[Example], list[Example]]:
    """Return what cuts rows to the backbone's size; no weights are loaded."""
    splitter: Callable[[Example], list[Example]] = _family(config).load_splitter(config)
    return splitter


@contextmanager
def open_backbone(config: BackboneConfig, runtime: Runtime) -> Iterator[Backbone]:
    """Give the backbone, alone in its use, without an adapter; the last one is kept in memory."""
    with _IN_USE:
        content = folder_fingerprint(backbone_folder(config), weights=True)
        backbone = _load(config, resolve_device(runtime), content)
        try:
            yield backbone
        finally:
            backbone.detach_adapter()


@lru_cache(maxsize=1)
def _load(config: BackboneConfig, device: torch.device, content: str) -> Backbone:
    dtype = resolve_dtype(config, device)
    backbone: Backbone = _family(config).load_backbone(config, device, dtype, content)
    return backbone


def _family(config: BackboneConfig) -> Any:
    return import_module(_FAMILIES[config.kind])


def check_backbone(config: BackboneConfig, runtime: Runtime) -> None:
    """Look at a backbone without loading its weights.

    Raises:
        BackboneError: it is missing or incomplete, or tokenizer and model do not fit together.
    """
    resolve_device(runtime)
    _family(config).check_backbone(config)
