"""Adapters beside any model: the kinds there are, and the note of which backbone one is for."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from albat_core.errors import BackboneError
from albat_core.store.stage import StageConfig

NOTE = "albat.json"
_CHANGING = ("pissa", "olora", "loftq", "corda")  # peft's names, some with a number behind


class AdapterConfig(StageConfig):
    """The small network trained beside the frozen backbone."""

    kind: str = "lora"
    """Kind of adapter: `lora` (low-rank, arXiv 2106.09685); `rslora` (its scale is lora_alpha over
    the root of the rank, arXiv 2312.03732); `dora` (magnitudes are learned apart from directions,
    arXiv 2402.09353; for language models, and not for surrogates that gradients are taken at)."""
    rank: int = Field(16, ge=1, le=1024)
    """Rank r of the update B A."""
    lora_alpha: float = Field(32.0, gt=0)
    """Scale of the update: lora_alpha / rank multiplies B A (`rslora`: over its root)."""
    init: Literal["default", "gaussian"] = "default"
    """How the factor A begins, B being zero: `default`, evenly drawn (Kaiming); `gaussian`, with a
    deviation of 1 / rank, as in diffusers' trainings. Such as begin by changing the backbone's own
    weights (`pissa`, `olora`, `loftq`) are refused."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs dropped in training, in [0, 1)."""
    target_modules: str | tuple[str, ...] = "auto"
    """Names of the modules adapted, as `[q_proj, v_proj]`; a regular expression that whole names
    match; `all-linear`; or `auto`: all linear layers of a language model, the attention projections
    of a diffusion model."""
    text_encoder: bool = False
    """Adapt the attention of a diffusion model's text encoders too."""

    @property
    def by_layer(self) -> bool:
        """Whether it is linear layers alone, of which gradients of single examples are known."""
        return self.kind in BY_LAYER

    @field_validator("init", mode="before")
    @classmethod
    def _leaves_the_backbone(cls, value: Any) -> Any:
        if str(value).startswith(_CHANGING):
            raise ValueError(
                f"expected default or gaussian: {value} begins by changing the backbone's own "
                "weights, with which an adapter is compared (penalty, advantage, evaluation) and "
                "on which it is loaded"
            )
        return value

    @field_validator("target_modules")
    @classmethod
    def _one_name(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        # peft takes a text as a pattern of whole names, which a bare name is of none
        return (
            (value,)
            if isinstance(value, str) and value.isidentifier() and value != "auto"
            else value
        )

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ADAPTERS:
            raise ValueError(f"expected one of {', '.join(ADAPTERS)}")
        return value


def lora(adapter: AdapterConfig, **place: Any) -> Any:
    """Return peft's configuration of a low-rank adapter (LoRA, arXiv 2106.09685)."""
    from peft import LoraConfig

    return LoraConfig(
        r=adapter.rank, lora_alpha=adapter.lora_alpha, lora_dropout=adapter.dropout, **place
    )


ADAPTERS: dict[str, Callable[..., Any]] = {
    "lora": lora,
    "rslora": partial(lora, use_rslora=True),
    "dora": partial(lora, use_dora=True),
}
"""What makes peft's configuration of each kind of adapter, by the name that settings have."""

BY_LAYER = {"lora", "rslora"}
"""Kinds that are linear layers alone."""


def unmatched(adapter: AdapterConfig, layers: Iterable[str]) -> list[str]:
    """Return the names among ``target_modules`` that no adapted layer has: peft says nothing.

    Args:
        adapter: its settings.
        layers: that were adapted, by their whole names.
    """
    if isinstance(adapter.target_modules, str):
        return []
    found = [f".{layer}" for layer in layers]
    return [
        name
        for name in adapter.target_modules
        if not any(layer.endswith(f".{name}") for layer in found)
    ]


def peft_config(adapter: AdapterConfig, targets: str | Sequence[str], **task: Any) -> Any:
    """Return peft's configuration of an adapter.

    Args:
        adapter: its kind and shape.
        targets: names of the modules adapted, or a pattern of peft's.
        task: what peft is told of the model beside, such as ``task_type``.
    """
    names = targets if isinstance(targets, str) else list(targets)
    config = ADAPTERS[adapter.kind](adapter, target_modules=names, **task)
    if adapter.init != "default":
        config.init_lora_weights = adapter.init
    return config


def write_note(folder: Path, fingerprint: str) -> None:
    """Note the backbone's fingerprint."""
    (folder / NOTE).write_text(json.dumps({"backbone": fingerprint}), encoding="utf-8")


def refuse_pickled(folder: Path) -> None:
    """Refuse a folder without safetensors, in which peft would read pickled weights.

    Raises:
        BackboneError: it is such a folder.
    """
    name = "adapter_model.safetensors"
    if not (folder / name).is_file():
        others = sorted(path.name for path in folder.glob("adapter_model.*"))
        raise BackboneError(
            f"expected {name}, found {', '.join(others) or 'none'}",
            where=str(folder),
            remedy="save the adapter with safe_serialization=True: pickled weights are never read",
        )


def check_note(folder: Path, fingerprint: str, path: str) -> None:
    """Refuse an adapter that says it was made for another backbone.

    Raises:
        BackboneError: it does.
    """
    note = folder / NOTE
    made_for = (
        json.loads(note.read_text(encoding="utf-8"))["backbone"] if note.is_file() else fingerprint
    )
    if made_for != fingerprint:
        raise BackboneError(
            f"the adapter was made for backbone {made_for[:8]}, this is {fingerprint[:8]}",
            where=str(folder),
            remedy=f"load it on the backbone it was made for, or train one for {path}",
        )
