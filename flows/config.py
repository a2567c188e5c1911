"""The configuration of a run as YAML: read with every mistake named, and a starter written."""

import contextlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from albat_core.benchmark.config import CalibrationConfig, EfficacyConfig, Situation
from albat_core.errors import ConfigError
from albat_core.runs.config import RunConfig
from albat_core.store import storage
from flows.mistakes import (
    Place,
    explained,
    misread_numbers,
    model_of,
    new_name,
    one_line,
    orphans,
    repeated_keys,
    written_out,
)
from flows.places import anchored


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
    if "situations" in values:
        raise ConfigError(
            "expected a run, got a benchmark, which has `situations`",
            where=path,
            remedy="`albat bench efficacy` and `albat bench calibration` take it",
        )
    alone = orphans(storage.read_bytes(path).decode())
    mistakes = repeated_keys(node) | misread_numbers(node) | alone
    values = _without_empty(RunConfig, values)
    runtime = values.get("runtime", {})
    if overrides and isinstance(runtime, dict):
        values["runtime"] = runtime | overrides
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        lines = {line for line, _ in alone}
        mistakes |= {at: text for at, text in explained(node, error).items() if at[0] not in lines}
    if mistakes:
        remedy = "mend these lines; `albat init` writes a file with every key and its default"
        raise _mistaken(_by_line(mistakes), path, remedy)
    return anchored(config, path)


def load_efficacy(path: str, overrides: dict[str, Any] | None = None) -> EfficacyConfig:
    """Read a benchmark's configuration: ``run`` holds for all ``situations``, each adds its own.

    Args:
        path: YAML file, local or remote.
        overrides: values of ``runtime`` that replace the file's.

    Raises:
        ConfigError: every mistake in the file.
    """
    node, values = _read(path)
    if not {"run", "situations"} & values.keys():
        raise ConfigError(
            "expected a benchmark, got neither `run` nor `situations`",
            where=path,
            remedy="a run is for `albat check` and `albat run`",
        )
    mistakes = _by_line(repeated_keys(node) | misread_numbers(node))
    shared = _settings(values.pop("run", None), "run", path)
    named = _settings(values.pop("situations", None), "situations", path)
    situations = []
    for name, its in named.items():
        place = f"situations.{name}"
        run = _merged(shared, _settings(its, place, path)) | {"name": name}
        run["runtime"] = _settings(run.get("runtime"), f"{place}.runtime", path) | (overrides or {})
        situations.append({"name": name, "run": _without_empty(RunConfig, run)})
    try:
        config = EfficacyConfig.model_validate(values | {"situations": situations})
    except ValidationError as error:
        said = {".".join(map(str, e["loc"])): new_name(e) or e["msg"] for e in error.errors()}
        cause = [name for name in said if not any(n.startswith(f"{name}.") for n in said)]
        mistakes += [f"{name}: {said[name]}" for name in cause]
    if mistakes:
        remedy = "mend them; `run` and each of `situations` have the keys of a run"
        raise _mistaken(mistakes, path, remedy)
    runs = [each.model_copy(update={"run": anchored(each.run, path)}) for each in config.situations]
    return config.model_copy(update={"situations": tuple(runs)})


def load_calibration(
    paths: Sequence[str],
    settings: dict[str, Any],
    overrides: dict[str, Any] | None = None,
    only: Collection[str] = (),
) -> CalibrationConfig:
    """Return a calibration on runs, or on all situations of benchmarks.

    Args:
        paths: YAML files, local or remote; a benchmark's names ``situations``.
        settings: of the calibration.
        overrides: values of ``runtime`` that replace the files'.
        only: names of the tasks to keep; none: all.

    Raises:
        ConfigError: every mistake in a file; a task has the name of another, or none the name.
    """
    tasks: list[Situation] = []
    for path in paths:
        if "situations" in _read(path)[1]:
            benchmark = load_efficacy(path, overrides)
            tasks += [
                each.model_copy(update={"name": f"{benchmark.name}, {each.name}"})
                for each in benchmark.situations
            ]
        else:
            run = load_config(path, overrides)
            tasks.append(Situation(name=run.name, run=run))
    names = Counter(task.name for task in tasks)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise ConfigError(
            f"expected tasks with names of their own, got {', '.join(repeated)} several times",
            where=", ".join(paths),
            remedy="change `name` of a run or of a benchmark",
        )
    if strangers := [name for name in only if name not in names]:
        raise ConfigError(
            f"expected names of tasks ({'; '.join(names)}), got {'; '.join(strangers)}",
            where="--task",
            remedy="name one of them",
        )
    tasks = [task for task in tasks if not only or task.name in only]
    try:
        return CalibrationConfig.model_validate(settings | {"situations": tasks})
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(said, where="options", remedy="see --help") from error


def _by_line(mistakes: Mapping[Place, str]) -> list[str]:
    return [f"line {line}: {text}" for (line, _), text in sorted(mistakes.items())]


def _mistaken(mistakes: Sequence[str], path: str, remedy: str) -> ConfigError:
    """Return the error that names every mistake in a file."""
    count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
    return ConfigError("\n  ".join([f"{count}:", *mistakes]), where=path, remedy=remedy)


def _settings(value: Any, place: str, path: str) -> dict[str, Any]:
    """Return a section of settings; none where all of it is commented out.

    Raises:
        ConfigError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{place}: expected keys with values, got {type(value).__name__}",
            where=path,
            remedy="write `run:` with settings for all below it, and `situations:` with a name for "
            "each and below that its own settings",
        )
    return value


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return settings where the second's replace the first's, within sections too."""
    merged = dict(first)
    for name, value in second.items():
        if value is None and isinstance(merged.get(name), dict):
            continue  # a section with everything in it commented out
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
    for name in filter(values.__contains__, RunConfig.model_fields):
        with contextlib.suppress(ValidationError):  # alone, or beside those before it
            RunConfig.model_validate(_LEAST | sound | {name: values[name]})
            sound[name] = values[name]
    unsound = (values.keys() | _LEAST.keys()) - sound.keys()
    return anchored(RunConfig.model_validate(_LEAST | sound), path), unsound


def _read(path: str) -> tuple[yaml.Node, dict[str, Any]]:
    """Return a YAML file as nodes, which know their lines, and as values."""
    text = ""
    try:
        text = storage.read_bytes(path).decode()
        if node := yaml.compose(text, Loader=yaml.SafeLoader):
            written_out(node)
        values = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ConfigError("expected UTF-8 text", where=path, remedy="save it as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = "; ".join(f"line {line}: {why}" for (line, _), why in sorted(orphans(text).items()))
        raise ConfigError(
            f"expected YAML: {error}", where=path, remedy=said or _mending(str(error))
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


def _mending(error: str) -> str:
    """Return what to do about a line that is no YAML."""
    if "'\\t'" in error:
        return "indent the line named with spaces: YAML takes no tabs"
    if "unknown escape character" in error:
        return "write the text in single quotes, in which \\ is a letter like others"
    return "mend the line named"


def _without_empty(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Leave out sections with nothing in them (all commented out): their defaults hold."""
    kept = {}
    for name, value in values.items():
        field = model.model_fields.get(name)
        inner = model_of(field.annotation) if field else None
        if inner is not None and value is None:
            continue
        kept[name] = _without_empty(inner, value) if inner and isinstance(value, dict) else value
    return kept


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


def starter_config(values: Mapping[str, str | float] = _STARTER_VALUES) -> str:
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
        lines.append(f"# {one_line(field.description)}")
        inner = model_of(field.annotation)
        if inner is None:
            lines.append(_entry(name, field.default))
        elif field.default == () and name not in _STARTER_SECTIONS:
            lines.append(f"#{_entry(name, field.default)}")
        else:
            inside = any(each.startswith(f"{name}.") for each in values)
            written = inside or name in _STARTER_SECTIONS
            lines.append(f"{name}:" if written else f"#{name}:")
            lines += _section(inner, field.default, name, "  ", values)
        lines.append("")
    return "\n".join(lines)


def _section(
    model: type[BaseModel], defaults: Any, path: str, indent: str, values: Mapping[str, str | float]
) -> list[str]:
    lines = []
    for name, field in model.model_fields.items():
        lines.append(f"{indent}# {one_line(field.description)}")
        inner, place = model_of(field.annotation), f"{path}.{name}"
        value = getattr(defaults, name, field.default)
        if place in values:
            lines.append(f"{indent}{name}: {json.dumps(values[place])}")
        elif inner is not None and inner.model_fields:
            lines.append(f"{indent}#{name}:")
            lines += _section(inner, value, place, f"{indent}  ", values)
        else:
            lines.append(f"{indent}#{_entry(name, value)}")
    return lines


def _entry(name: str, value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    if isinstance(plain, BaseModel):
        plain = plain.model_dump(mode="json")
    written = yaml.safe_dump([plain], default_flow_style=True, allow_unicode=True, width=1000)
    return f"{name}: {written.strip()[1:-1]}"
