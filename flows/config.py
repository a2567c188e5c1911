"""The configuration of a run as YAML: read with every mistake named, and a starter written."""

import contextlib
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from albat_core.benchmark.config import EfficacyConfig
from albat_core.errors import ConfigError
from albat_core.runs.config import RENAMED, RunConfig
from albat_core.sources.config import SourceConfig
from albat_core.store import storage


def load_config(path: str, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a run's configuration.

    Paths of inputs are relative to the file's folder; ``output`` and ``runtime.root`` to where
    the command is run.

    Args:
        path: YAML file, local or remote.
        overrides: values of ``runtime`` that replace the file's.

    Raises:
        ConfigError: every mistake in the file, each with its line.
    """
    node, values = _read(path)
    mistakes = _repeated_keys(node)
    values = _without_empty(RunConfig, values)
    runtime = values.get("runtime", {})
    if overrides and isinstance(runtime, dict):
        values["runtime"] = runtime | overrides
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        mistakes |= _explained(node, error)
    if mistakes:
        raise ConfigError(
            f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}:\n"
            + "\n".join(f"  line {line}: {text}" for (line, _), text in sorted(mistakes.items())),
            where=path,
            remedy="mend these lines; `albat init` writes a file with every key and its default",
        )
    return _anchored(config, path)


def load_efficacy(path: str, overrides: dict[str, Any] | None = None) -> EfficacyConfig:
    """Read a benchmark's configuration: ``run`` holds for all ``situations``, each adds its own.

    Args:
        path: YAML file, local or remote.
        overrides: values of ``runtime`` that replace the file's.

    Raises:
        ConfigError: every mistake in the file.
    """
    values = _read(path)[1]
    shared = values.pop("run", None) or {}
    situations = []
    for name, its in (values.pop("situations", None) or {}).items():
        run = _merged(shared, its or {}) | {"name": name}
        run["runtime"] = run.get("runtime", {}) | (overrides or {})
        situations.append({"name": name, "run": run})
    try:
        config = EfficacyConfig.model_validate(values | {"situations": situations})
    except ValidationError as error:
        raise ConfigError(
            f"{error.error_count()} mistakes:\n"
            + "\n".join(f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()),
            where=path,
            remedy="mend them; `run` and each of `situations` have the keys of a run",
        ) from error
    anchored = [
        each.model_copy(update={"run": _anchored(each.run, path)}) for each in config.situations
    ]
    return config.model_copy(update={"situations": tuple(anchored)})


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return settings where the second's replace the first's, within sections too."""
    merged = dict(first)
    for name, value in second.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


_LEAST = {name: {"path": "none"} for name in ("backbone", "corpus", "adaptation")}


def load_sound_part(
    path: str, overrides: dict[str, Any] | None = None
) -> tuple[RunConfig, set[str]]:
    """Read the sections of a configuration that hold no mistake.

    Returns:
        the configuration, and the names of its sections that stand for ones with mistakes.

    Raises:
        ConfigError: the file is no YAML of keys and values.
    """
    values = _without_empty(RunConfig, _read(path)[1])
    runtime = values.get("runtime", {})
    if overrides and isinstance(runtime, dict):
        values["runtime"] = runtime | overrides
    sound: dict[str, Any] = {}
    for name in values.keys() & RunConfig.model_fields.keys():
        with contextlib.suppress(ValidationError):
            RunConfig.model_validate(_LEAST | {name: values[name]})
            sound[name] = values[name]
    unsound = (values.keys() | _LEAST.keys()) - sound.keys()
    return _anchored(RunConfig.model_validate(_LEAST | sound), path), unsound


def _read(path: str) -> tuple[yaml.Node, dict[str, Any]]:
    """Return a YAML file as nodes, which know their lines, and as values."""
    try:
        text = storage.read_bytes(path).decode()
        node, values = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ConfigError("expected UTF-8 text", where=path, remedy="save it as UTF-8") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"expected YAML: {error}", where=path, remedy="mend the line named"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"expected a YAML file ({error.strerror or type(error).__name__})",
            where=path,
            remedy="check the path; `albat init` writes a file to start from",
        ) from error
    if not isinstance(values, dict) or node is None:
        raise ConfigError(
            "expected keys and values, got none",
            where=path,
            remedy="`albat init` writes a file to start from",
        )
    return node, values


Place = tuple[int, str]
"""Line and name of a field."""


def _repeated_keys(node: yaml.Node, above: str = "") -> dict[Place, str]:
    """Return what is said twice: YAML would silently take the last."""
    found: dict[Place, str] = {}
    if isinstance(node, yaml.SequenceNode):
        for number, inner in enumerate(node.value):
            found |= _repeated_keys(inner, f"{above}{number}.")
    elif isinstance(node, yaml.MappingNode):
        lines: dict[Any, int] = {}
        for key, inner in node.value:
            name, line = f"{above}{key.value}", key.start_mark.line + 1
            if key.value in lines:
                found[line, name] = f"{name!r} is there already, in line {lines[key.value]}"
            lines[key.value] = line
            found |= _repeated_keys(inner, f"{name}.")
    return found


def _without_empty(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Leave out sections with nothing in them (all commented out): their defaults hold."""
    kept = {}
    for name, value in values.items():
        field = model.model_fields.get(name)
        inner = _model_of(field.annotation) if field else None
        if inner is not None and value is None:
            continue
        kept[name] = _without_empty(inner, value) if inner and isinstance(value, dict) else value
    return kept


def _explained(node: yaml.Node, error: ValidationError) -> dict[Place, str]:
    """Return what pydantic found, without what follows from other mistakes.

    Of a union it tells of every branch, and of a list without a good item that it is too short.
    """
    found: dict[Place, str] = {}
    for each in error.errors():
        place, text = _explain(node, each)
        found.setdefault(place, text)
    names = [name for _, name in found]
    return {
        (line, name): text
        for (line, name), text in found.items()
        if not any(other.startswith(f"{name}.") for other in names)
    }


def _explain(node: yaml.Node, error: Any) -> tuple[Place, str]:
    """Return where a mistake is and its description."""
    line, location = _located(node, error["loc"])
    field = ".".join(map(str, location))
    if error["type"] == "extra_forbidden":
        known = _fields_at(RunConfig, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.4)
        meant = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        text = f"unknown key {field!r}; {meant}"
        if field in RENAMED:
            text = f"{field!r} is now {RENAMED[field]!r}"
    elif error["type"] == "missing":
        text = f"{field!r} is missing; {_description(location)}"
    else:
        got, said = error["input"], error["msg"].removeprefix("Value error, ")
        shown = f", got {got!r}" if isinstance(got, str | int | float | bool | None) else ""
        text = f"{field!r}: {said[0].lower()}{said[1:]}{shown}"
    return (line, field), text


def _located(node: yaml.Node, location: Sequence[str | int]) -> tuple[int, list[str | int]]:
    """Return the line of a place and its path in the file.

    What pydantic put between is left out: a union's branch, the index of a single source.
    """
    line = node.start_mark.line + 1
    written: list[str | int] = []
    for place, part in enumerate(location):
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if pair is None:
                if part in _fields_at(RunConfig, written):
                    return line, [*written, *location[place:]]  # it is missing
                continue
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value)
        ):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            continue
        written.append(part)
    return line, written


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field holds, alone or in a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (tuple, types.UnionType, typing.Union):
        found = (_model_of(a) for a in typing.get_args(annotation))
        return next((m for m in found if m is not None), None)
    return None


def _fields_at(model: type[BaseModel], location: list[str | int]) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part))
        inner = _model_of(field.annotation) if field else None
        model = inner or model
    return list(model.model_fields)


def _description(location: list[str | int]) -> str:
    model: type[BaseModel] = RunConfig
    text = ""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is not None:
            text = _one_line(field.description)
            model = _model_of(field.annotation) or model
    return text


def _anchored(config: RunConfig, path: str) -> RunConfig:
    """Return the configuration with input paths relative to the file made absolute."""
    if storage.is_remote(path):
        folder = path.rpartition("/")[0]
    else:
        folder = str(Path(path).resolve().parent)

    def anchor(name: str) -> str:
        if "://" in name or Path(name).expanduser().is_absolute():
            return name
        return storage.join(folder, name) if storage.is_remote(folder) else str(Path(folder, name))

    def source(one: SourceConfig) -> SourceConfig:
        paths = tuple(anchor(p) for p in one.paths)
        return one.model_copy(update={"path": paths[0] if len(paths) == 1 else paths})

    def model(name: str | None) -> str | None:
        """Anchor a model that is there; else it is the hub's."""
        if name is None:
            return None
        local = anchor(name)
        return local if storage.exists(local) or name.startswith(".") else name

    encoders = {n: model(getattr(config.samples, n)) for n in ("dino", "clip")}
    encoder = {"encoder": model(config.embedding.encoder)}
    return config.model_copy(
        update={
            "backbone": config.backbone.model_copy(update={"path": model(config.backbone.path)}),
            "embedding": config.embedding.model_copy(update=encoder),
            "samples": config.samples.model_copy(update=encoders),
            "corpus": tuple(map(source, config.corpus)),
            "adaptation": tuple(map(source, config.adaptation)),
            "heldout": tuple(map(source, config.heldout)),
        }
    )


def placed(config: RunConfig) -> RunConfig:
    """Return the configuration with its outputs' places absolute, for a run in another folder."""
    runtime = config.runtime.model_copy(update={"root": storage.absolute(config.runtime.root)})
    return config.model_copy(update={"output": storage.absolute(config.output), "runtime": runtime})


_STARTER_VALUES = {
    "backbone.path": "path/to/backbone",
    "corpus.path": "path/to/corpus/*.parquet",
    "adaptation.path": "path/to/adaptation.jsonl",
}
_STARTER_SECTIONS = (
    "backbone",
    "corpus",
    "adaptation",
    "split",
    "selection",
    "mixture",
    "finetune",
)


def starter_config(values: Mapping[str, str] = _STARTER_VALUES) -> str:
    """Return a commented YAML file: what must be set, and every default.

    Args:
        values: what is set, by dotted name.
    """
    lines = [
        "# Configuration of an albat run. Lines like #name: value show defaults: take the # away",
        "# to change one. Input paths are relative to this file; output and runtime.root to where",
        "# you run albat.",
        "",
    ]
    for name, field in RunConfig.model_fields.items():
        lines.append(f"# {_one_line(field.description)}")
        inner = _model_of(field.annotation)
        if inner is None:
            lines.append(_entry(name, field.default))
        elif field.default == () and name not in _STARTER_SECTIONS:
            lines.append(f"#{_entry(name, field.default)}")
        else:
            lines.append(f"{name}:" if name in _STARTER_SECTIONS else f"#{name}:")
            lines += _section(inner, field.default, name, "  ", values)
        lines.append("")
    return "\n".join(lines)


def _section(
    model: type[BaseModel], defaults: Any, path: str, indent: str, values: Mapping[str, str]
) -> list[str]:
    lines = []
    for name, field in model.model_fields.items():
        lines.append(f"{indent}# {_one_line(field.description)}")
        inner, place = _model_of(field.annotation), f"{path}.{name}"
        value = getattr(defaults, name, field.default)
        if place in values:
            lines.append(f'{indent}{name}: "{values[place]}"')
        elif inner is not None:
            lines.append(f"{indent}#{name}:")
            lines += _section(inner, value, place, f"{indent}  ", values)
        else:
            lines.append(f"{indent}#{_entry(name, value)}")
    return lines


def _one_line(description: str | None) -> str:
    return (description or "").replace("\n", " ")


def _entry(name: str, value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    written = yaml.safe_dump([plain], default_flow_style=True, allow_unicode=True, width=1000)
    return f"{name}: {written.strip()[1:-1]}"
