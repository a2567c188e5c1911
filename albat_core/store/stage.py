"""What every stage shares: frozen configuration, run-time knobs, and the key of its result."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from albat_core.redaction import without_secrets


def _title(name: str, _field: object) -> str:
    """Return a field's title in forms; a section's would be its class's otherwise."""
    return name.replace("_", " ").capitalize()


_KINDS = {  # of values, as a form names them
    "string": "text",
    "integer": "number",
    "number": "number",
    "array": "list",
    "null": "none",
    "boolean": "yes or no",
}


def _as_form(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Make a schema one that a form shows well: in order, and without types where none are chosen.

    A field that may be none is one that may be left empty: no choice between a type and none.
    """
    fields = schema.get("properties", {})
    first = getattr(model, "asked_first", ())
    for position, name in enumerate([*first, *(name for name in fields if name not in first)]):
        field = fields[name]
        field["position"] = position  # databases do not keep the order
        choices = field.get("anyOf", [])
        given = [choice for choice in choices if choice != {"type": "null"}]
        if len(given) == 1 < len(choices) and field["default"] is None and "type" in given[0]:
            del field["anyOf"], field["default"]
            field |= given[0]
            if "enum" in field:
                field["enum"] = [*field["enum"], None]
            continue
        for choice in choices:
            if kind := _KINDS.get(choice.get("type")):
                choice.setdefault("title", choice.get("const", kind))


@dataclass(frozen=True)
class Settings:
    """What of a configuration changes a stage's result.

    Args:
        shown: every setting by name, for the manifest.
        named: without those at their defaults, for the key: a new setting at its default changes
            none. Where a default changes, ``STAGE_VERSION`` has to.
    """

    shown: Any
    named: Any


def given(**values: Any) -> Settings:
    """Return settings by name, JSON values or settings again; all are part of the key."""
    parts = {n: v if isinstance(v, Settings) else Settings(v, v) for n, v in values.items()}
    return Settings({n: p.shown for n, p in parts.items()}, {n: p.named for n, p in parts.items()})


class StageConfig(BaseModel):
    """Configuration that changes a result; part of the key of what the stage makes."""

    asked_first: ClassVar[tuple[str, ...]] = ()
    """Fields that a form has before the others."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        field_title_generator=_title,
        json_schema_extra=_as_form,
    )

    def settings(self, *, without: Collection[str] = (), **beside: Any) -> Settings:
        """Return the settings as the key of a result has them, without secrets of addresses.

        Args:
            without: fields that do not change the result.
            beside: more that does, see ``given``.
        """
        shown, named = (
            without_secrets(
                self.model_dump(mode="json", exclude=set(without), exclude_defaults=short)
            )
            for short in (False, True)
        )
        more = given(**beside)
        return Settings(shown | more.shown, named | more.named)


class Runtime(BaseModel):
    """Knobs that change where and how fast work is done but not its result."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        field_title_generator=_title,
        json_schema_extra=_as_form,
    )

    root: str = Field(".albat", min_length=1)
    """Where artifacts are kept: a folder or an `s3://bucket/prefix`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; `auto` takes the GPU where there is one."""
    workers: int = Field(2, ge=1, le=256)
    """Shards read or embedded at once; models themselves run one at a time on a device. With dask
    or ray: processes on this machine, each with a copy of the model and its share of the cores."""
    devices: int = Field(1, ge=1, le=64)
    """Devices of this machine that compute at once, each a task of its own: parts of the corpus,
    of the candidates and of gradients, folds and arms. With several, tasks run in as many processes
    (in place of `workers` threads), each with a GPU or, on the CPU, a share of its cores, and a
    copy of the model."""
    runner: Literal["threads", "dask", "ray"] = "threads"
    """Where stages run: in threads of the run's own process, or in processes of a Dask or Ray
    cluster (install `albat[dask]` or `albat[ray]`)."""
    cluster: str = ""
    """Address of that cluster, such as `tcp://host:8786` or `ray://host:10001`; none: one on this
    machine, for this run. Its machines must reach `root`, the inputs and Prefect's server."""
    checkpoint_seconds: float = Field(30.0, gt=0)
    """Seconds between checkpoints of a training run, from which it goes on if interrupted; 20 times
    what one takes to write, where that is more."""
    training_devices: int = Field(1, ge=1, le=64)
    """Devices that one training is spread over, each with its share of every batch: GPUs of one
    machine, or on the CPU processes with a share of its cores. Losses and adapter are the same
    within rounding; where there is dropout its masks are others, as they are on another device."""
    shard_backbone: bool = False
    """Training devices share the frozen backbone: each holds a part of every layer, and gathers a
    layer from the others while it computes it (FSDP). For a training that one device has no room
    for; what only reads the backbone has it whole."""
    gradient_checkpointing: bool = False
    """Compute activations twice rather than keep them: training then needs less memory."""


def canonical_json(value: Any) -> str:
    """Return ``value`` as JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def stage_key(
    stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, Any]
) -> str:
    """Return the content address of a stage's result, 32 hexadecimal digits.

    Args:
        stage: the stage's name.
        version: its ``STAGE_VERSION``; raised when equal inputs would give different output.
        config: everything configured that changes the result, JSON values only.
        inputs: keys of artifacts and fingerprints of files read, by role.
    """
    identity = {"stage": stage, "version": version, "config": config, "inputs": inputs}
    return hashlib.blake2b(canonical_json(identity).encode(), digest_size=16).hexdigest()
