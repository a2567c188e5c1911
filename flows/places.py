"""Where the files of a configuration are: paths as they are written, made absolute."""

import os
import re
from pathlib import Path

from albat_core.errors import ConfigError
from albat_core.measures.task_files import is_file
from albat_core.runs.config import RunConfig
from albat_core.sources.config import SourceConfig
from albat_core.sources.vectors import VectorSource
from albat_core.store import storage
from albat_core.store.patterns import escape, is_pattern

_VARIABLE = re.compile(r"\$([A-Za-z_]\w*|\{[A-Za-z_]\w*\})")
"""What a shell takes as a variable; a name may have $ without being one."""


def anchored(config: RunConfig, path: str) -> RunConfig:
    """Return the configuration with input paths relative to the file made absolute."""
    if storage.is_remote(path):
        folder = path.rpartition("/")[0]
    else:
        folder = str(Path(storage.absolute(path)).parent)

    def anchor(name: str, below: str = folder) -> str:
        if "://" in name or Path(os.path.expanduser(name)).is_absolute():  # noqa: PTH111 - raises not
            return name
        return _remote(below, name) if storage.is_remote(path) else str(Path(below, name))

    def files(name: str, *, hub: bool) -> str:
        """Anchor files; what is a glob's in the folder's own name is not meant as one."""
        name = os.path.expandvars(name)
        there = anchor(name)
        if there == name or not is_pattern(name) or storage.exists(there):
            return name if hub and not storage.exists(there) else there
        return anchor(name, escape(folder))

    def source(one: SourceConfig) -> SourceConfig:
        paths = tuple(files(p, hub=one.on_hub) for p in one.paths)
        root = anchor(os.path.expandvars(one.image_root)) if one.image_root else None
        path = paths[0] if len(paths) == 1 else paths
        return one.model_copy(update={"path": path, "image_root": root})

    def vectors(one: VectorSource) -> VectorSource:
        given = (one.ids,) if isinstance(one.ids, str) else one.ids
        where, ids = (tuple(files(p, hub=False) for p in its) for its in (one.paths, given))
        return one.model_copy(update={"path": where, "ids": ids})

    def model(name: str | None) -> str | None:
        """Anchor a model that is there; else it is the hub's."""
        if name is None:
            return None
        name = os.path.expandvars(name)
        local = anchor(name)
        return local if storage.exists(local) or name.startswith(".") else name

    encoders = {n: model(getattr(config.samples, n)) for n in ("dino", "clip")}
    given = config.embedding.vectors
    elsewhere = {n: vectors(getattr(given, n)) for n in ("corpus", "adaptation")}
    embedding = {
        "encoder": model(config.embedding.encoder),
        "vectors": given.model_copy(update=elsewhere),
    }
    tasks = tuple(
        anchor(os.path.expandvars(name)) if is_file(name) else name
        for name in config.evaluation.tasks
    )
    smaller = config.scoring.smaller
    smaller = smaller.model_copy(update={"path": model(smaller.path)})
    return config.model_copy(
        update={
            "output": _expanded(config.output, path),
            "runtime": config.runtime.model_copy(
                update={"root": _expanded(config.runtime.root, path)}
            ),
            "backbone": config.backbone.model_copy(update={"path": model(config.backbone.path)}),
            "embedding": config.embedding.model_copy(update=embedding),
            "scoring": config.scoring.model_copy(update={"smaller": smaller}),
            "evaluation": config.evaluation.model_copy(update={"tasks": tasks}),
            "samples": config.samples.model_copy(update=encoders),
        }
        | {n: tuple(map(source, getattr(config, n))) for n in ("corpus", "adaptation", "heldout")}
    )


def _remote(folder: str, name: str) -> str:
    """Return what is called so from a remote folder: to storage . and .. are names like others."""
    scheme, _, inner = folder.partition("://")
    parts = inner.split("/")
    for part in name.rstrip("/").split("/"):
        if part == "..":
            parts = parts[: max(len(parts) - 1, 1)]  # nothing is above a bucket
        elif part != ".":
            parts.append(part)
    return f"{scheme}://{'/'.join(parts)}"


def _expanded(name: str, path: str) -> str:
    """Return where to write, the environment's variables in their places as in a shell.

    Raises:
        ConfigError: one of them is not set.
    """
    if unset := [v for v in _VARIABLE.findall(name) if v.strip("{}") not in os.environ]:
        raise ConfigError(
            f"expected variables that are set, got ${unset[0]} in {name!r}",
            where=path,
            remedy="set it where albat is run, or write the path out",
        )
    return os.path.expandvars(name)


def placed(config: RunConfig) -> RunConfig:
    """Return the configuration with its outputs' places absolute, for a run in another folder."""
    runtime = config.runtime.model_copy(update={"root": storage.absolute(config.runtime.root)})
    return config.model_copy(update={"output": storage.absolute(config.output), "runtime": runtime})
