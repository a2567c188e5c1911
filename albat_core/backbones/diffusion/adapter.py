"""LoRA adapters on a text-to-image pipeline (peft), attached, saved and loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from albat_core.backbones.adapters import BY_LAYER, AdapterConfig, peft_config, unmatched
from albat_core.backbones.base import trained_layers
from albat_core.backbones.diffusion.families.base import Family
from albat_core.backbones.diffusion.kohya import Layers, original_module
from albat_core.backbones.folder import unreadable
from albat_core.errors import BackboneError
from albat_core.seeding import derive_seed

WEIGHTS = "pytorch_lora_weights.safetensors"
"""What ``pipe.load_lora_weights(folder)`` of diffusers looks for."""
KOHYA_WEIGHTS = "kohya.safetensors"
"""The same for programs that read kohya's format, such as WebUI and ComfyUI."""

_TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


class PipelineAdapter:
    """The one adapter that a pipeline may have.

    Args:
        family: the pipeline.
        where: names the backbone in errors.
    """

    def __init__(self, family: Family, where: str) -> None:
        self._family = family
        self._where = where
        self._on = True

    def _modules(self) -> dict[str, Any]:
        named = {self._family.denoiser_name: self._family.denoiser, **self._family.encoders}
        return {name: m for name, m in named.items() if getattr(m, "peft_config", None)}

    @property
    def changes_texts(self) -> bool:
        """Whether text encodings depend on the adapter as it is now."""
        return self._on and any(name in self._family.encoders for name in self._modules())

    def attach(self, config: AdapterConfig, seed: int) -> None:
        """Attach a new adapter; B is zero, A is drawn from ``seed``.

        Raises:
            BackboneError: ``target_modules`` match nothing, or what has no name when saved.
        """
        if not config.by_layer:
            raise BackboneError(
                f"expected an adapter that programs for pictures load, got {config!r}",
                where="adapter.kind",
                remedy=f"set it to {' or '.join(sorted(BY_LAYER))}",
            )
        targets = config.target_modules
        chosen = self._family.attention if targets == "auto" else targets
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "adapter of the denoiser"))
            try:
                self._family.denoiser.add_adapter(peft_config(config, chosen))
            except ValueError as error:
                self._family.denoiser._hf_peft_config_loaded = False  # diffusers sets it too early
                raise self._no_target(targets, error) from error
            if absent := unmatched(config, self._adapted()):
                self.detach()
                raise self._no_target(tuple(absent))
            for name, encoder in self._family.encoders.items() if config.text_encoder else ():
                torch.manual_seed(derive_seed(seed, "adapter of", name))
                encoder.add_adapter(peft_config(config, _TEXT_TARGETS))
        self._family.kohya_layers(self._layers(), 1.0)  # refused now, not after the training
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()

    def _adapted(self) -> list[str]:
        """Return the names of the denoiser's layers that the adapter is beside."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        modules = self._family.denoiser.named_modules()
        return [name for name, module in modules if isinstance(module, BaseTunerLayer)]

    def _no_target(self, targets: object, error: ValueError | None = None) -> BackboneError:
        from peft.utils.error import NoMatchingPeftModuleError

        none = error is None or isinstance(error, NoMatchingPeftModuleError)
        found = "no layer" if none else f"what peft does not adapt ({error})"
        names = {
            ".".join(name.split(".")[-2:]) if name[-1].isdigit() else name.rpartition(".")[2]
            for name, module in self._family.denoiser.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        return BackboneError(
            f"adapter.target_modules={targets!r} match {found}",
            where=self._where,
            remedy=f"choose from {', '.join(sorted(names))}, or auto",
        )

    def load(self, folder: Path) -> None:
        """Attach the adapter saved in ``folder``.

        Raises:
            BackboneError: it cannot be loaded.
        """
        try:
            self._family.pipeline.load_lora_weights(
                str(folder),
                weight_name=WEIGHTS,
                adapter_name="default",
                local_files_only=True,
                use_safetensors=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise unreadable("LoRA adapter", folder, error, library="diffusers") from error
        for module in self._modules().values():
            module.requires_grad_(requires_grad=False).eval()
            for name, parameter in module.named_parameters():
                parameter.requires_grad = "lora_" in name
        for parameter in self.parameters().values():
            parameter.data = parameter.data.float()
        saved = load_file(folder / WEIGHTS)  # diffusers rounds to the precision of the backbone
        for component, layers in self._layers().items():
            for name, value in layers.items():
                value.copy_(saved[f"{component}.{name}"])

    def save(self, folder: Path) -> None:
        """Save the adapter for diffusers and in kohya's format.

        Raises:
            BackboneError: none is attached.
        """
        modules = self._modules()
        if not modules:
            raise BackboneError("expected an adapter to save, none is attached", where=self._where)
        metadata = {}
        for name, module in modules.items():
            config = module.peft_config["default"]
            config.base_model_name_or_path = None  # transformers notes the folder on this machine
            if isinstance(config.target_modules, set):  # else each process has another order
                config.target_modules = sorted(config.target_modules)
            metadata[f"{name}_lora_adapter_metadata"] = config.to_dict()
        layers = {
            name: {key: value.cpu().contiguous() for key, value in its.items()}
            for name, its in self._layers().items()
        }
        self._family.pipeline.save_lora_weights(
            folder,
            weight_name=WEIGHTS,
            safe_serialization=True,
            **{f"{name}_lora_layers": its for name, its in layers.items()},
            **metadata,
        )
        its = next(iter(modules.values())).peft_config["default"]
        # kohya's programs divide by the rank, whatever peft does
        scale = its.lora_alpha * (its.r**0.5 if its.use_rslora else 1)
        save_file(
            self._family.kohya_layers(layers, scale), folder / KOHYA_WEIGHTS, {"format": "pt"}
        )

    def _layers(self) -> dict[str, Layers]:
        """Return the adapter's state by component, text encoders' as CLIP's checkpoints name it."""
        from peft import get_peft_model_state_dict

        found = {}
        for component, module in self._modules().items():
            state = get_peft_model_state_dict(module)
            named = original_module if component in self._family.encoders else str
            found[component] = {named(key): value.detach() for key, value in state.items()}
        return found

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return what is trained, by name."""
        return {
            f"{component}.{name}": parameter
            for component, module in self._modules().items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def layers(self) -> dict[str, torch.nn.Module]:
        """Return the layers that hold what is trained, by the names of their weights."""
        found: dict[str, torch.nn.Module] = {}
        for component, module in self._modules().items():
            found |= trained_layers(module, f"{component}.")
        return found

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Let the pipeline compute as if untouched while the context lasts."""
        modules = self._modules().values()
        for module in modules:
            module.disable_adapters()
        self._on = False
        try:
            yield
        finally:
            self._on = True
            for module in modules:
                module.enable_adapters()

    def detach(self) -> None:
        """Give the layers back as they were."""
        if self._modules():
            self._family.pipeline.unload_lora_weights()

    def train(self, on: bool) -> None:
        """Switch dropout on or off."""
        for module in self._modules().values():
            module.train(on)
