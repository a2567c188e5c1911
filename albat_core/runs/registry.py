"""The registry: every finished adapter under its run's name, and aliases that move between them.

Layout below the artifact root::

    registry/<run>/<adapter key>.json    an entry
    registry/<run>@<alias>.json          which adapter an alias means, replaced in one piece

Files are small and written whole, so that a reader on any storage sees an old or a new one.
"""

import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from albat_core.errors import ArtifactError, ConfigError
from albat_core.records.runs import ALBAT
from albat_core.report.content import Interval, Metric
from albat_core.stages.report import read_results
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.sealed import sealed, unsealed, why
from albat_core.store.stage import Runtime, StageConfig

logger = logging.getLogger(__name__)

PRODUCTION = "production"
"""The alias that is meant where none is named."""
_FOLDER = "registry"
_EVALUATED = ("report", "loss", "gain", "multiplier", "metrics")
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Entry(BaseModel):
    """A finished adapter: what made it, and what it was worth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    """Name of the run that made it."""
    adapter: ArtifactRef
    mixture: ArtifactRef
    parent: str | None = None
    """Key of the adapter that it follows: the run's newest when it was made."""
    created: str
    """UTC, ISO 8601."""
    reached: str = ""
    """When a run last came to it, likewise; empty: when it was created."""
    alpha: float
    adaptation_rows: int
    backbone_rows: int
    report: ArtifactRef | None = None
    """None where it was not evaluated."""
    loss: Interval | None = None
    """On the held-out documents."""
    gain: Interval | None = None
    """Over adaptation data only, paired by document."""
    multiplier: Interval | None = None
    """Predicted, where alpha was computed."""
    metrics: tuple[Metric, ...] = ()
    """Of its answers to held-out prompts, higher is better; none where none were configured."""
    config: dict[str, Any]
    """The run's configuration, without what changes no result."""

    @property
    def name(self) -> str:
        """What it is called: run and the beginning of its key."""
        return f"{self.run}/{self.adapter.key[:8]}"

    @property
    def age(self) -> tuple[str, str]:
        """What entries are ordered by: when a run last came to it."""
        return self.reached or self.created, self.adapter.key


class _Alias(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter: str = Field(pattern="^[0-9a-f]{32}$")
    promoted: str = ""
    """UTC, ISO 8601."""


class Registry:
    """The adapters of one artifact store.

    Args:
        store: where the artifacts are, and the registry beside them.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._root = storage.join(store.root, _FOLDER)

    def register(self, entry: Entry) -> Entry:
        """Add an adapter, or what is now known of it; it keeps its parent and its first date.

        It is the newest of its run then, be it that a run came to it again, or that the machine's
        clock was put back.
        """
        known = self.entries(entry.run)
        come = max([entry.created, *(_just_after(other.age[0]) for other in known[-1:])])
        before = next((e for e in known if e.adapter == entry.adapter), None)
        if before is None:
            parent = entry.parent or (known[-1].adapter.key if known else None)
            entry = entry.model_copy(update={"parent": parent, "created": come})
        else:
            newest = known[-1] == before  # a run that computes nothing changes no file
            kept: dict[str, Any] = {
                "created": before.created,
                "reached": before.reached if newest else come,
                "parent": before.parent,
            }
            if entry.report is None:  # evaluated before: that still holds
                kept |= {n: getattr(before, n) for n in _EVALUATED}
            entry = entry.model_copy(update=kept)
        if entry != before:
            place = storage.join(self._root, entry.run, f"{entry.adapter.key}.json")
            storage.write_bytes(place, sealed(entry))
        return entry

    def entries(self, run: str = "") -> list[Entry]:
        """Return the adapters of a run, or of all, the oldest first; broken entries are noted."""
        found, broken = self.read_entries(run)
        for error in broken:
            logger.warning("%s", error)
        return found

    def read_entries(self, run: str = "") -> tuple[list[Entry], list[ArtifactError]]:
        """Return the adapters of a run, or of all, the oldest first; and what cannot be read."""
        folder = storage.join(self._root, run) if run else self._root
        found: list[Entry] = []
        broken: list[ArtifactError] = []
        for path in storage.file_sizes(folder):
            if not path.endswith(".json") or "@" in path or path.rpartition("/")[2][0] == ".":
                continue
            try:
                entry = unsealed(Entry, storage.read_listed(f"{folder}/{path}"))
                place = f"{entry.run}/{entry.adapter.key}.json"
                if place != (f"{run}/{path}" if run else path):
                    raise ValueError(f"it is one of {place}")
                found.append(entry)
            except ValueError as error:
                broken.append(
                    ArtifactError(
                        f"expected an entry of the registry ({why(error)})",
                        where=f"{folder}/{path}",
                        remedy="remove the file and run the run again, which finds its artifacts",
                    )
                )
        return sorted(found, key=lambda entry: entry.age), broken

    def aliases(self) -> dict[str, str]:
        """Return the adapter's key that each ``run@alias`` means; broken ones are noted."""
        found, broken = self.read_aliases()
        for error in broken.values():
            logger.warning("%s", error)
        return found

    def read_aliases(self) -> tuple[dict[str, str], dict[str, ArtifactError]]:
        """Return the adapter's key that each ``run@alias`` means; and those that mean none."""
        found: dict[str, str] = {}
        broken: dict[str, ArtifactError] = {}
        for path in storage.file_sizes(self._root):
            name = path.removesuffix(".json")
            if "@" not in name or "/" in name or name[0] == ".":
                continue
            try:
                content = unsealed(_Alias, storage.read_listed(f"{self._root}/{path}"))
                found[name] = content.adapter
            except ValueError:
                broken[name] = ArtifactError(
                    "expected an alias with the whole key of an adapter",
                    where=f"{self._root}/{path}",
                    remedy=f"let it mean one again: `albat promote NAME --as "
                    f"{name.partition('@')[2]}`, or remove the file",
                )
        return found, broken

    def find(self, name: str) -> Entry:
        """Return the adapter that a name means.

        Args:
            name: ``run`` (its newest), ``run/key`` (or how the key begins), or ``run@alias``.

        Raises:
            ArtifactError: none or several are meant.
        """
        matching = self.matching(name)
        if len(matching) != 1:
            there = matching or self.entries(name.partition("@")[0].partition("/")[0])[-5:]
            raise ArtifactError(
                f"expected one adapter named {name!r}, found "
                + (", ".join(e.name for e in there) or "none"),
                where=self._root,
                remedy="`albat list` shows all of them; name run/key or run@alias",
            )
        return matching[0]

    def matching(self, name: str) -> list[Entry]:
        """Return the adapters that a name could mean, see ``find``.

        Raises:
            ArtifactError: it is an alias that cannot be read.
        """
        run, _, alias = name.partition("@")
        run, _, start = run.partition("/")
        if not run:
            return []
        entries = self.entries(run)
        if not (start or alias):
            return entries[-1:]
        if alias:
            aliases, broken = self.read_aliases()
            if error := broken.get(f"{run}@{alias}"):
                raise error
            start = aliases.get(f"{run}@{alias}", "none")
        return [e for e in entries if e.adapter.key.startswith(start)]

    def promote(self, name: str, alias: str = PRODUCTION) -> Entry:
        """Let an alias mean an adapter from now on; return the adapter.

        Raises:
            ArtifactError: no adapter has this name, or its files are lost.
            ConfigError: the alias has characters that it may not have.
        """
        if not _ALIAS.fullmatch(alias):
            raise ConfigError(
                f"expected letters, digits, dots, dashes and underscores, got {alias!r}",
                where="alias",
                remedy=f"name it for example {PRODUCTION}",
            )
        entry = self.find(name)
        self._store.folder(entry.adapter)
        content = _Alias(adapter=entry.adapter.key, promoted=now())
        place = storage.join(self._root, f"{entry.run}@{alias}.json")
        storage.write_bytes(place, sealed(content))
        return entry


def now() -> str:
    """Return the time as the registry notes it, to the microsecond: entries are ordered by it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _just_after(time: str) -> str:
    later = datetime.fromisoformat(time) + timedelta(microseconds=1)
    return later.isoformat(timespec="microseconds")


def register_adapter(
    run: str,
    adapter: ArtifactRef,
    mixture: ArtifactRef,
    report: ArtifactRef | None,
    config: StageConfig,
    runtime: Runtime,
) -> Entry:
    """Add a run's adapter to the registry, with what its report says.

    Args:
        run: name of the run.
        adapter: that was trained.
        mixture: what it was trained on.
        report: where it was evaluated.
        config: the run's configuration.
        runtime: where artifacts are kept.
    """
    store = ArtifactStore(runtime.root)
    facts = store.manifest(adapter).facts
    results = read_results(store, report) if report else None
    arm = next(arm for arm in results.arms if arm.name == ALBAT) if results else None
    return Registry(store).register(
        Entry(
            run=run,
            adapter=adapter,
            mixture=mixture,
            created=now(),
            alpha=facts["alpha"],
            adaptation_rows=facts["adaptation_rows"],
            backbone_rows=facts["backbone_rows"],
            report=report,
            loss=arm.loss if arm else None,
            gain=arm.gain if arm else None,
            multiplier=results.multiplier if results else None,
            metrics=arm.metrics if arm else (),
            config=config.settings(without={"runtime", "output", "reselection", "tracking"}).shown,
        )
    )


_PLACES = {"path", "encoder", "dino", "clip"}
"""Settings that name files or models."""


def changed_settings(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, by dotted name, with both values; None where one is not.

    Two spellings of one path are no difference.
    """
    flat = [dict(flattened(each)) for each in (first, second)]
    names = dict.fromkeys([*flat[0], *flat[1]])
    pairs = {name: (flat[0].get(name), flat[1].get(name)) for name in names}
    return {
        name: pair
        for name, pair in pairs.items()
        if pair[0] != pair[1] and _place(name, pair[0]) != _place(name, pair[1])
    }


def _place(name: str, value: Any) -> Any:
    """Return a setting's value, paths as they are called from everywhere."""
    if name.rpartition(".")[2] not in _PLACES or value is None:
        return value
    return [storage.absolute(path) for path in ([value] if isinstance(value, str) else value)]


def flattened(values: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Return nested values side by side, each with its dotted name."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found += flattened(value, f"{above}{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
            found += flattened({str(n): v for n, v in enumerate(value)}, f"{above}{name}.")
        else:
            found.append((f"{above}{name}", value))
    return found
