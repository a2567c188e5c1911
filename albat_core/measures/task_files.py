"""Tasks of lm-evaluation-harness in YAML files of one's own, read without the code they name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from albat_core.errors import ConfigError
from albat_core.store import storage
from albat_core.store.digests import known_digest


class _Code(str):
    """The name of a Python function, which is not imported."""


class _Loader(yaml.SafeLoader):
    """Reads names of functions as such."""


_Loader.add_constructor("!function", lambda _, node: _Code(node.value))


def is_file(name: str) -> bool:
    """Tell whether a task is named by its file, not by lm-eval's own name."""
    return name.endswith((".yaml", ".yml"))


@dataclass(frozen=True)
class TaskFile:
    """What a file of one task says.

    Args:
        settings: over those of the files that it includes.
        read: it, and those files.
    """

    settings: Mapping[str, Any]
    read: tuple[Path, ...]

    @property
    def code(self) -> list[str]:
        """The Python functions that it names."""
        return [each for each in _leaves(self.settings) if isinstance(each, _Code)]

    def digests(self) -> list[str]:
        """Return the SHA-256 of each file of this machine that the task is made of.

        Those are the files read, Python files beside them where they name code, and local data.
        Data elsewhere may change unseen, as may modules that such code imports.

        Raises:
            ConfigError: data that is named is not there.
        """
        beside = {code for file in self.read for code in file.parent.glob("*.py")}
        files = [*self.read, *(sorted(beside) if self.code else ())]
        return [known_digest(name) for name in (*map(str, files), *self._data())]

    def _data(self) -> list[str]:
        """Return the files of this machine that rows are read from, as `datasets` finds them."""
        path = str(self.settings.get("dataset_path", ""))
        its = self.settings.get("dataset_kwargs") or {}
        here = Path(path).is_dir()
        if "/" in path and not here:  # of the Hub, as are then files that are named
            return []
        named = [path] if here else _leaves([its.get("data_files", []), its.get("data_dir", [])])
        found: list[str] = []
        for each in (str(each) for each in named if not storage.is_remote(str(each))):
            if not (there := storage.list_files(each)):
                raise ConfigError(
                    f"expected the task's data, found no {each}",
                    where=str(self.read[0]),
                    remedy="name it with its whole path: others are looked for where albat is run",
                )
            found += there
        return found


def read_task_file(name: str) -> TaskFile:
    """Return what a task's file says.

    Raises:
        ConfigError: it cannot be read, or does not describe one task.
    """
    read: list[Path] = []
    try:
        settings = _included(Path(name), read)
        if not isinstance(settings.get("task"), str) or "group" in settings:
            raise ValueError("it has no key `task` with a name, or is of a group")
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"expected a YAML file of one task of lm-eval ({error})",
            where=name,
            remedy="check the path and the file; of a group, name each task's own",
        ) from error
    return TaskFile(settings, tuple(read))


def _included(path: Path, read: list[Path]) -> dict[str, Any]:
    """Return a file's settings over those of the files that it includes, which are noted."""
    if path in read:
        raise ValueError(f"{path} is included twice")
    read.append(path)
    own = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a safe one
    if not isinstance(own, dict):
        raise ValueError(f"{path} has no keys")
    included = own.pop("include", [])
    settings: dict[str, Any] = {}
    for each in included if isinstance(included, list) else [included]:
        settings |= _included(path.parent / each, read)
    return settings | own


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what lists and mappings in a value hold in the end."""
    if isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(each)
    else:
        yield value
