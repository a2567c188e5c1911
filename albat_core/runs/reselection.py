"""Selecting again when the adaptation data has changed: what is watched, and what a change changed.

Layout below the artifact root::

    watches/<run>/watch.json    the run whose adaptation data is watched
    watches/<run>/acted.json    the state of the data last acted on, by this or by a run of that
                                name that was not watched, and what came of it

Both are written whole. ``acted.json`` comes last: a selection that did not end is done again.
"""

import hashlib
import logging
from typing import Any

from pydantic import BaseModel, ConfigDict

from albat_core.errors import ArtifactError, ConfigError
from albat_core.records.selections import Selected
from albat_core.redaction import redacted, without_secrets
from albat_core.runs.config import RunConfig
from albat_core.sources.files import find_files
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.sealed import sealed, unsealed, why
from albat_core.store.stage import canonical_json

logger = logging.getLogger(__name__)

_FOLDER = "watches"
_BASIS = {"seed", "backbone", "split", "shards", "surrogate"}
"""What has to be the same for a selection to go on from an earlier one."""


class Acted(BaseModel):
    """A state of the data that was acted on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    """Of the data, see ``data_fingerprint``."""
    basis: str
    """Of the settings that a later selection must share to go on from this one."""
    selected: Selected
    trained: Selected | None
    """The selection that an adapter was last trained on: what the next one is compared with."""


class Watches:
    """The runs whose adaptation data is watched, in one artifact store.

    Args:
        root: of the artifact store.
    """

    def __init__(self, root: str) -> None:
        self._root = storage.join(ArtifactStore(root).root, _FOLDER)

    def add(self, config: RunConfig) -> None:
        """Watch a run's adaptation data from now on, with this configuration.

        Raises:
            ConfigError: see ``refuse_another``.
        """
        self.refuse_another(config)
        storage.write_bytes(self._place(config.name, "watch"), sealed(config))

    def refuse_another(self, config: RunConfig) -> None:
        """Raise where a run of that name is watched that shares no adaptation data with this one.

        Raises:
            ConfigError: there is one, which this would take the place of.
        """
        noted = self._noted(config.name)
        if noted is not None and not _data(noted) & _data(config):
            raise ConfigError(
                f"expected a name of its own, {config.name!r} is watched with other adaptation "
                f"data ({', '.join(sorted(_data(noted)))})",
                where=storage.join(self._root, config.name),
                remedy="give this run another `name`, or end that watch first: "
                "`albat watch CONFIG --stop`",
            )

    def changed(self, config: RunConfig) -> list[str]:
        """Return the sections of a run that are not as it is watched; none where it is not."""
        noted = self._noted(config.name)
        then, now = (_settings(each) for each in (noted or config, config))
        return [name for name in now if now[name] != then[name]]

    def remove(self, name: str) -> bool:
        """Watch a run no longer; return whether it was watched."""
        place = self._place(name, "watch")
        there = storage.exists(place)
        storage.remove(place)
        return there

    def names(self) -> list[str]:
        """Return the names of the runs that are watched, sorted."""
        places = storage.file_sizes(self._root)
        return sorted(p.removesuffix("/watch.json") for p in places if p.endswith("/watch.json"))

    def config(self, name: str) -> RunConfig:
        """Return the configuration with which a run is watched.

        Raises:
            ConfigError: it was noted by a version whose settings had other names, or is damaged.
        """
        place = self._place(name, "watch")
        try:
            return unsealed(RunConfig, storage.read_listed(place))
        except ValueError as error:
            raise ConfigError(
                f"expected the settings of a run as they were noted ({why(error)})",
                where=place,
                remedy="watch the run again: `albat watch CONFIG`",
            ) from error

    def acted(self, name: str) -> Acted | None:
        """Return the state that was last acted on, if any was that can be gone on from."""
        place = self._place(name, "acted")
        try:
            return unsealed(Acted, storage.read_bytes(place))
        except FileNotFoundError:
            return None
        except ValueError as error:
            shown = redacted(place)
            logger.warning("%s cannot be read (%s): %s is selected anew", shown, why(error), name)
            return None

    def set_acted(self, name: str, acted: Acted) -> None:
        """Note that a state was acted on."""
        storage.write_bytes(self._place(name, "acted"), sealed(acted))

    def all_acted(self) -> list[Acted]:
        """Return every state that was acted on, of watched runs and of others.

        Raises:
            ArtifactError: one cannot be read.
        """
        found = []
        for path in storage.file_sizes(self._root):
            if not path.endswith("/acted.json"):
                continue
            try:
                content = storage.read_listed(storage.join(self._root, path))
                found.append(unsealed(Acted, content))
            except ValueError as error:
                raise ArtifactError(
                    f"expected what a run came to ({why(error)})",
                    where=storage.join(self._root, path),
                    remedy="run the run of that name again, or remove the file",
                ) from error
        return found

    def _noted(self, name: str) -> RunConfig | None:
        """Return the configuration with which a run is watched, if it is and that can be read."""
        try:
            return unsealed(RunConfig, storage.read_bytes(self._place(name, "watch")))
        except (FileNotFoundError, ValueError):  # the next look tells of one that is damaged
            return None

    def _place(self, name: str, kind: str) -> str:
        return storage.join(self._root, name, f"{kind}.json")


def _data(config: RunConfig) -> set[str]:
    return {path for source in config.adaptation for path in source.paths}


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return what decides a run's results and where they are put, by section."""
    settings = config.model_dump(mode="json", exclude={"runtime"})
    return settings | {"output": storage.absolute(config.output)}


def note_finished(
    config: RunConfig, state: str, selected: Selected, trained: Selected | None
) -> None:
    """Note what a run came to, watched or not: a later selection of its name goes on from there.

    Where the run is watched with other settings, a later selection has those: that is told.

    Args:
        config: of the run.
        state: of its data when it began, see ``data_fingerprint``.
        selected: what it selected.
        trained: the selection that its adapter was last trained on.
    """
    done = Acted(fingerprint=state, basis=basis(config), selected=selected, trained=trained)
    watches = Watches(config.runtime.root)
    if watches.acted(config.name) != done:
        watches.set_acted(config.name, done)
    if changed := watches.changed(config):
        logger.warning(
            "%s is watched with other settings (%s), and is selected again with those: to have "
            "these, `albat watch CONFIG` again",
            config.name,
            ", ".join(changed),
        )


def data_fingerprint(config: RunConfig) -> str:
    """Return what changes when a file of the adaptation or held-out data is new, changed or gone.

    Local files that changed are read; of remote ones, tags and sizes are listed.

    Raises:
        InputError: a path is missing or holds nothing to read.
    """
    files = [
        [role, file.label, file.names, file.fingerprint]
        for role, sources in (("adaptation", config.adaptation), ("heldout", config.heldout))
        for source in sources
        for file in find_files(source)
    ]
    return hashlib.blake2b(canonical_json(files).encode(), digest_size=16).hexdigest()


def basis(config: RunConfig) -> str:
    """Return what changes with the settings that an earlier selection must share."""
    shared = config.model_dump(mode="json", include=_BASIS, exclude_defaults=True)
    identity = canonical_json(without_secrets(shared))
    return hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
