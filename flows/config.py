"""The configuration of a run: one YAML file over the stages' own models."""

import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from albat_core import storage
from albat_core.adaptation import SplitConfig
from albat_core.backbones.base import BackboneConfig
from albat_core.corpus import ShardConfig
from albat_core.dataset import DatasetConfig
from albat_core.embedding import EmbeddingConfig
from albat_core.errors import ConfigError
from albat_core.evaluation import EvaluationConfig
from albat_core.finetuning.trainer import FinetuneConfig
from albat_core.index import IndexConfig
from albat_core.mixture import MixtureConfig
from albat_core.retrieval import RetrievalConfig
from albat_core.scoring import ScoringConfig
from albat_core.sources import SourceConfig
from albat_core.stage import Runtime, StageConfig

Baseline = Literal["adaptation_only", "random"]


class RunConfig(StageConfig):
    """Everything that one run is made of."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the run: letters, digits, dots, dashes and underscores."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Root of all random draws; the same seed gives the same result."""
    output: str = "runs"
    """Folder (or `s3://` prefix) for report, adapter and mixture, in a folder of the run's name."""
    backbone: BackboneConfig
    """The pretrained model that is adapted."""
    corpus: tuple[SourceConfig, ...] = Field(min_length=1)
    """The backbone's own pretraining data, or what stands for it: one source or a list."""
    adaptation: tuple[SourceConfig, ...] = Field(min_length=1)
    """The few examples of what the backbone is adapted to: one source or a list."""
    heldout: tuple[SourceConfig, ...] = ()
    """Documents for the evaluation alone; none: `split.test` of the adaptation set."""
    split: SplitConfig = SplitConfig()
    """How the adaptation documents are divided."""
    shards: ShardConfig = ShardConfig()
    """How the corpus is cut up."""
    embedding: EmbeddingConfig = EmbeddingConfig()
    """How embeddings are computed."""
    index: IndexConfig = IndexConfig()
    """How the corpus is searched."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """How many corpus examples are looked at."""
    surrogate: FinetuneConfig = FinetuneConfig()
    """How the surrogate is trained, on the adaptation set alone."""
    scoring: ScoringConfig = ScoringConfig()
    """How candidates are scored."""
    mixture: MixtureConfig = MixtureConfig()
    """How much backbone data is mixed in, and which."""
    dataset: DatasetConfig = DatasetConfig()
    """How the mixture is written."""
    finetune: FinetuneConfig = FinetuneConfig()
    """How adapters are trained on a mixture; every arm alike."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How adapters are compared."""
    baselines: tuple[Baseline, ...] = ("adaptation_only", "random")
    """Arms trained beside ALBAT, to say what it was worth; each costs one fine-tuning."""
    runtime: Runtime = Runtime()
    """Where and with what to compute; changes no result."""

    @field_validator("corpus", "adaptation", "heldout", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, dict | SourceConfig) else value


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
    try:
        text = storage.read_bytes(path).decode()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(
            "expected a YAML file, found none", where=path, remedy="`albat init` writes one"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError("expected UTF-8 text", where=path, remedy="save it as UTF-8") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"expected YAML: {error}", where=path, remedy="mend the line named"
        ) from error
    if not isinstance(values, dict) or node is None:
        raise ConfigError("expected keys and values, got none", where=path)
    if overrides:
        values["runtime"] = (values.get("runtime") or {}) | overrides
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        mistakes = sorted({_explain(node, path, e) for e in error.errors()})
        raise ConfigError(
            f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}:\n"
            + "\n".join(f"  {line}" for _, line in mistakes),
            where=path,
        ) from error
    return _anchored(config, path)


def _explain(node: yaml.Node, path: str, error: Any) -> tuple[int, str]:
    """Return a mistake's line and its description."""
    location = [part for part in error["loc"] if not _is_internal(part)]
    line = _line_of(node, location)
    field = ".".join(map(str, location))
    if error["type"] == "extra_forbidden":
        known = _fields_at(RunConfig, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.4)
        meant = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        text = f"unknown key {field!r}; {meant}"
    elif error["type"] == "missing":
        text = f"{field!r} is missing; {_description(location)}"
    else:
        got = error["input"]
        shown = f", got {got!r}" if isinstance(got, str | int | float | bool | None) else ""
        text = f"{field!r}: {error['msg'][0].lower()}{error['msg'][1:]}{shown}"
    return line, f"line {line}: {text}"


def _is_internal(part: str | int) -> bool:
    """Tell whether pydantic put a union's branch into the location."""
    return isinstance(part, str) and (part in ("str", "int") or "[" in part)


def _line_of(node: yaml.Node, location: list[str | int]) -> int:
    line = node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if pair is None:
                continue  # a single source stands where a list is expected: no index to follow
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value)
        ):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


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
            text = (field.description or "").replace("\n", " ")
            model = _model_of(field.annotation) or model
    return text


def _anchored(config: RunConfig, path: str) -> RunConfig:
    """Return the configuration with input paths relative to the file made absolute."""
    if storage.is_remote(path):
        folder = path.rpartition("/")[0]
    else:
        folder = str(Path(path).resolve().parent)

    def anchor(name: str) -> str:
        if storage.is_remote(name) or Path(name).expanduser().is_absolute():
            return name
        return storage.join(folder, name) if storage.is_remote(folder) else str(Path(folder, name))

    def source(one: SourceConfig) -> SourceConfig:
        paths = tuple(anchor(p) for p in one.paths)
        return one.model_copy(update={"path": paths[0] if len(paths) == 1 else paths})

    backbone = config.backbone
    local = anchor(backbone.path)
    if storage.exists(local) or backbone.path.startswith("."):
        backbone = backbone.model_copy(update={"path": local})
    return config.model_copy(
        update={
            "backbone": backbone,
            "corpus": tuple(map(source, config.corpus)),
            "adaptation": tuple(map(source, config.adaptation)),
            "heldout": tuple(map(source, config.heldout)),
        }
    )


_STARTER_VALUES: dict[str, Any] = {
    "backbone.path": "path/to/backbone",
    "corpus.path": "path/to/corpus/*.parquet",
    "adaptation.path": "path/to/adaptation.jsonl",
}
_STARTER_SECTIONS = ("backbone", "corpus", "adaptation", "split", "mixture", "finetune")


def starter_config() -> str:
    """Return a commented YAML file: what must be set, and what most people change first."""
    lines = [
        "# Configuration of an albat run. Commented lines show defaults.",
        "# Input paths are relative to this file; output and runtime.root to where you run albat.",
        "",
    ]
    for name, field in RunConfig.model_fields.items():
        inner = _model_of(field.annotation)
        lines.append(f"# {(field.description or '').replace(chr(10), ' ')}")
        if inner is None:
            lines += [f"{_entry(name, field.default)}", ""]
            continue
        shown = name in _STARTER_SECTIONS
        lines.append(f"{name}:" if shown else f"# {name}:")
        lines += _section(inner, name, "  " if shown else "#   ", 1)
        lines.append("")
    return "\n".join(lines)


def _section(model: type[BaseModel], path: str, indent: str, depth: int) -> list[str]:
    lines = []
    for name, field in model.model_fields.items():
        description = (field.description or "").replace("\n", " ")
        lines.append(f"{indent}# {description}" if indent.isspace() else f"{indent}{description}")
        inner = _model_of(field.annotation)
        value = _STARTER_VALUES.get(f"{path}.{name}")
        if inner is not None and depth < 3:
            lines.append(f"{indent}# {name}:" if indent.isspace() else f"{indent}{name}:")
            deeper = f"{indent}#   " if indent.isspace() else f"{indent}  "
            lines += _section(inner, f"{path}.{name}", deeper, depth + 1)
        elif value is not None:
            lines.append(f"{indent}{_entry(name, value)}")
        else:
            commented = "# " if indent.isspace() else ""
            lines.append(f"{indent}{commented}{_entry(name, field.default)}")
    return lines


def _entry(name: str, value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    written = yaml.safe_dump({name: plain}, default_flow_style=None, allow_unicode=True, width=1000)
    return written.strip()
