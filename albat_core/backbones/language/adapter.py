"""LoRA adapters (peft) on language models: attached, refused where they do not fit, taken off."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from albat_core.backbones.adapters import AdapterConfig, peft_config, unmatched
from albat_core.errors import BackboneError


def attached(model: Any, adapter: AdapterConfig, where: str, bits: str | None = None) -> Any:
    """Return the model with a LoRA adapter.

    Args:
        model: of transformers.
        adapter: its settings.
        where: the model's path, for errors.
        bits: of its weights, where they are quantized.

    Raises:
        BackboneError: ``target_modules`` match nothing, what peft does not adapt, or tied weights;
            or its kind does not go with quantized weights.
    """
    if bits == "8bit" and adapter.kind == "dora":  # on a CPU peft loses the scales of the weights
        raise BackboneError(
            "expected an adapter that goes with weights in 8bit, got dora",
            where=where,
            remedy="set adapter.kind to lora or rslora, or quantize to 4bit",
        )
    from peft import get_peft_model
    from peft.utils.error import NoMatchingPeftModuleError

    targets = "all-linear" if adapter.target_modules == "auto" else adapter.target_modules
    try:
        adapted = get_peft_model(model, peft_config(adapter, targets, task_type="CAUSAL_LM"))
    except ValueError as error:
        names = _linear_names(model)
        if isinstance(error, NoMatchingPeftModuleError):
            raise BackboneError(
                f"adapter.target_modules={targets!r} match no layer",
                where=where,
                remedy=f"choose from {', '.join(names)}, or all-linear",
            ) from error
        raise BackboneError(
            f"expected a model that peft adapts in {targets!r} ({error})",
            where=where,
            remedy=f"set adapter.target_modules to others of {', '.join(names)}",
        ) from error
    if absent := unmatched(adapter, adapted.base_model.targeted_module_names):
        names = _linear_names(released(adapted))
        raise BackboneError(
            f"adapter.target_modules: {', '.join(map(repr, absent))} match no layer, others do",
            where=where,
            remedy=f"choose from {', '.join(names)}",
        )
    if tied := _tied_targets(adapted):
        released(adapted)
        raise BackboneError(
            f"expected targets with weights of their own, those of {', '.join(tied)} are tied: "
            "merged, an adapter of one would change the other too",
            where=where,
            remedy="leave out of adapter.target_modules the layers that embed and predict tokens",
        )
    return adapted


def _tied_targets(adapted: Any) -> list[str]:
    """Return the adapted layers whose weights another layer has too."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    uses = Counter(id(p) for _, p in adapted.named_parameters(remove_duplicate=False))
    return [
        name.removeprefix("base_model.model.")
        for name, layer in adapted.named_modules()
        if isinstance(layer, BaseTunerLayer)
        and any(uses[id(p)] > 1 for p in layer.get_base_layer().parameters())
    ]


@contextmanager
def disabled(adapted: Any) -> Iterator[None]:
    """Leave an adapter out while the context lasts."""
    layers = adapted.base_model  # PeftModel's own way looks at each layer first, in every step
    layers.disable_adapter_layers()
    try:
        yield
    finally:
        layers.enable_adapter_layers()


def released(adapted: Any) -> Any:
    """Return the model that an adapter was attached to, as it was."""
    model = adapted.unload()
    # peft leaves its mark on the model, and warns of a second adapter where it finds it
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model


def _linear_names(model: Any) -> list[str]:
    return sorted({n.rpartition(".")[2] for n, m in model.named_modules() if _is_linear(m)})


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)
