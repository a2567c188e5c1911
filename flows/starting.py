"""What one begins from: a demo, the least that a run needs, and a schema for editors."""

import json
import typing
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from albat_core.errors import ConfigError
from albat_core.runs.config import RunConfig
from albat_core.sources.config import SourceConfig
from flows.config import starter_config

SCHEMA = "albat.schema.json"
"""Beside a configuration that was written: what its editor checks it by."""

_LEAST = """\
# The least that a run needs. All else has a default: `albat init` writes every key. Paths of inputs
# are relative to this file.
name: run
backbone:
  path: path/to/backbone # a transformers causal language model: folder or hub id
  max_length: 512
corpus: # what it was pretrained on, or what stands for it
  path: path/to/corpus/*.parquet
adaptation: # your few examples
  path: path/to/adaptation.jsonl
"""
_LEAST_PICTURES = """\
# The least that a run on pictures needs. All else has a default: `albat init --image` writes
# every key. Paths of inputs are relative to this file.
name: run
backbone:
  kind: diffusion
  path: path/to/pipeline # a diffusers pipeline: folder or hub id
  diffusion:
    picture:
      resolution: 512
corpus: # what it was pretrained on, or what stands for it: pictures with captions
  path: path/to/corpus/*.tar
adaptation: # your few pictures; captions from .txt beside them, metadata.jsonl or a template
  path: path/to/pictures/
surrogate: &training
  learning_rate: 0.0001 # the default suits small language models
finetune: *training
"""
_PICTURES: dict[str, str | float] = {
    "backbone.kind": "diffusion",
    "backbone.path": "path/to/pipeline",
    "corpus.path": "path/to/corpus/*.tar",
    "adaptation.path": "path/to/pictures/",
    "surrogate.learning_rate": 0.0001,
    "finetune.learning_rate": 0.0001,
}

_EXAMPLES = Path(__file__).parent.parent / "examples"
"""In a clone; the distribution albat-demo installs them as a package."""


def demo_config(kind: str) -> str:
    """Return the path of a demo's configuration, whose inputs lie beside it.

    Args:
        kind: ``text`` or ``image``.

    Raises:
        ConfigError: this is no clone, and albat-demo is not installed.
    """
    installed = find_spec("albat_demo")
    folders = (installed and installed.submodule_search_locations) or ()
    for folder in (_EXAMPLES, *map(Path, folders)):
        if (config := folder / kind / "demo.yaml").is_file():
            return str(config)
    raise ConfigError(
        "expected the demo's data, which is a distribution of its own, found none",
        where="albat_demo",
        remedy="pip install 'albat[demo]', or run the demo from a clone of the repository",
    )


def write_starter(path: Path, *, minimal: bool, image: bool) -> None:
    """Write a configuration to start from, and the schema that its first line names beside it.

    Args:
        path: of the configuration.
        minimal: only what must be set, rather than every key with its default.
        image: for pictures rather than texts.

    Raises:
        ConfigError: the file is there already, or cannot be written.
    """
    if minimal:
        text = _LEAST_PICTURES if image else _LEAST
    else:
        text = starter_config(_PICTURES) if image else starter_config()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(f"# yaml-language-server: $schema={SCHEMA}\n{text}")
        path.with_name(SCHEMA).write_text(json.dumps(schema(), indent=1) + "\n", "utf-8")
    except FileExistsError as error:
        raise ConfigError(
            "the file is there already", where=str(path), remedy="name another"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"expected a place that can be written ({error.strerror})",
            where=str(path),
            remedy="name a file in a folder that is there",
        ) from error


def schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration as ``load_config`` reads it.

    It takes what the form's does not: an empty section, one source rather than a list, and null
    where a setting may be none.
    """
    made = RunConfig.model_json_schema()
    places = {"RunConfig": made} | made["$defs"]
    for model in _models(RunConfig):
        if model.__name__ not in places:  # a setting with a schema of its own
            continue
        fields = places[model.__name__]["properties"]
        for name, field in model.model_fields.items():
            inner = list(_models_in(field.annotation))
            others: list[dict[str, Any]] = []
            if SourceConfig in inner:
                others += [{"$ref": "#/$defs/SourceConfig"}, {"type": "string"}]
            if inner or type(None) in typing.get_args(field.annotation):
                others.append({"type": "null"})
            if others:
                said = {k: v for k, v in fields[name].items() if k in ("description", "default")}
                fields[name] = said | {"anyOf": [fields[name], *others]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | made


def _models(model: type[BaseModel]) -> set[type[BaseModel]]:
    """Return a model and all that its fields hold."""
    found, waiting = {model}, [model]
    while waiting:
        for field in waiting.pop().model_fields.values():
            new = set(_models_in(field.annotation)) - found
            found |= new
            waiting += new
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models_in(part)
