"""What can go: results that no finished run needs, and what interrupted work left behind.

Needed are the adapters of the registry (or the last of each run) with their reports, those that an
alias means, the last selection of each run, watched or not, tables of benchmarks, and all that
these were made from, as their manifests say. What is young may be of a run under way, as may any
artifact while one holds a claim: neither goes.
"""

import math
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from albat_core.benchmark import calibration, table
from albat_core.errors import AlbatError
from albat_core.records.adapters import STAGE as ADAPTER
from albat_core.records.ids import STAGE as IDS
from albat_core.runs.registry import Entry, Registry
from albat_core.runs.reselection import Watches
from albat_core.store import storage
from albat_core.store.artifacts import CLAIMS, ArtifactRef, ArtifactStore
from albat_core.store.claims import claimed, may_be_held
from albat_core.store.drafts import PREFIX, is_left
from albat_core.store.manifests import MANIFEST, Manifest
from albat_core.store.rolls import ROLLS
from albat_core.store.sealed import unsealed
from albat_core.store.storage import FileState, file_states

DAY = 86400.0
"""Seconds."""
_TABLES = (calibration.STAGE, table.STAGE)
_WRITTEN = (CLAIMS, ROLLS, "checkpoints", "latest", "registry", "watches")  # folders of small files
_TELLING = {"registry": "entry", "latest": "hint"}  # folders whose files tell of an artifact
_OTHERS = (*_WRITTEN, "drafts")  # than stages
_KEY = re.compile(r"[0-9a-f]{32}")
_NAMED = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_ATTEMPT = re.compile(r"[0-9a-f]{8}")
_UNFINISHED = re.compile(r"\.(.+\.)?[0-9a-f]{8}(\.part)?")

Files = Mapping[str, FileState]


@dataclass(frozen=True)
class Keeping:
    """What stays though nothing needs it.

    Args:
        younger: what has changed within so many seconds.
        last: adapters of each run, the newest ones; None: all.
        copies: copies of remote artifacts that were used within so many seconds.
    """

    younger: float = DAY
    last: int | None = None
    copies: float = 30 * DAY


@dataclass(frozen=True)
class Unneeded:
    """Something that can go.

    Args:
        kind: what it is, in a word or two.
        place: a file or a folder.
        bytes: that its files have.
        ref: the artifact that it is, or tells of.
    """

    kind: str
    place: str
    bytes: int
    ref: ArtifactRef | None = None


class Pruning:
    """What can go below one root, and beside it on this machine.

    Args:
        store: of the root.
        keeping: what stays all the same.
    """

    def __init__(self, store: ArtifactStore, keeping: Keeping) -> None:
        self._store = store
        self._keeping = keeping
        self._now = time.time()
        self._held: set[str] = set()
        self.notes: list[str] = []
        """What could not be looked at, or is left alone for now."""

    def find(self) -> list[Unneeded]:
        """Return what can go; nothing is changed.

        Raises:
            ArtifactError: a record of what is needed cannot be read.
        """
        files = {p: s for p, s in file_states(self._store.root).items() if "/" in p}
        folders: dict[ArtifactRef, dict[str, FileState]] = defaultdict(dict)
        for path, state in files.items():
            stage, key, inner = (*path.split("/", 2), "", "")[:3]
            if inner and stage not in _OTHERS and _KEY.fullmatch(key):
                folders[ArtifactRef(stage=stage, key=key)][inner] = state
        self._held = set(self._claims_held())
        manifests = {ref: self._manifest(ref) for ref, its in folders.items() if MANIFEST in its}
        gone = self._artifacts(folders, manifests)
        # what tells of an artifact goes before it: nothing would find it later
        found = list(self._records({ref.key: ref for ref in gone}, files))
        found += [
            Unneeded("artifact", self._uri(str(ref)), _bytes(folders[ref].values()), ref)
            for ref in sorted(gone, key=str)
        ]
        for ref, its in folders.items():
            if ref not in gone:
                found += self._attempts(ref, its, manifests.get(ref))
        found += [*self._left_files(files), *self._checkpoints(files)]
        return [*found, *self._drafts(), *self._copies()]

    def remove(self, unneeded: Iterable[Unneeded]) -> Iterator[Unneeded]:
        """Remove what was found, and yield each that is gone; what cannot be removed is noted."""
        for each in unneeded:
            try:
                if each.ref and next(self._claims_held(), None):
                    self.notes.append(f"{each.place} stays: a run has begun")
                    continue
                if each.ref and each.kind == "artifact":
                    with claimed(self._store.claim(each.ref), str(each.ref), lambda: None):
                        storage.remove(storage.join(each.place, MANIFEST))  # vouches no longer
                storage.remove(each.place)
            except (AlbatError, OSError) as error:
                self.notes.append(f"{each.place} stays: {error}")
                continue
            yield each

    def _artifacts(
        self,
        folders: Mapping[ArtifactRef, Files],
        manifests: Mapping[ArtifactRef, Manifest | None],
    ) -> set[ArtifactRef]:
        """Return the finished artifacts that can go."""
        known = {ref.key: ref for ref in manifests}
        wanted = self._wanted() | {ref.key for ref in manifests if ref.stage in _TABLES}
        wanted |= {ref.key for ref, its in folders.items() if not self._is_old(its.values())}
        needed: set[str] = set()
        while wanted:
            key = wanted.pop()
            if key in needed or key not in known:
                continue
            needed.add(key)
            wanted |= _named(manifests[known[key]])
        unread = sorted(str(known[key]) for key in needed if manifests[known[key]] is None)
        if unread:
            told = f"what {unread[0]} was made from is not known: artifacts stay"
            self.notes.append(told)
            return set()
        gone = {ref for ref, manifest in manifests.items() if manifest and ref.key not in needed}
        gone -= {ref for ref in self._newest_ids() & gone if _named(manifests[ref]) <= needed}
        if gone and self._held:
            self.notes.append(f"a run is under way ({min(self._held)}): artifacts stay for now")
            return set()
        return gone

    def _newest_ids(self) -> set[ArtifactRef]:
        """Return the ids of each corpus: without them those of all its shards are read again."""
        hints = storage.file_sizes(self._uri("latest", IDS))
        found = (self._store.latest(IDS, name.removesuffix(".json")) for name in hints)
        return {ref for ref in found if ref}

    def _wanted(self) -> set[str]:
        """Return the keys that are needed for themselves."""
        registry = Registry(self._store)
        entries, broken = registry.read_entries()
        aliases, strange = registry.read_aliases()
        for error in (*broken, *strange.values()):
            raise error
        runs: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            runs[entry.run].append(entry)
        last = self._keeping.last or 0
        kept = [entry for its in runs.values() for entry in its[-last:]]  # of 0: all
        kept += [entry for entry in entries if entry.adapter.key in aliases.values()]
        refs = [ref for e in kept for ref in (e.adapter, e.mixture, e.report) if ref]
        acted = (state.model_dump_json() for state in Watches(self._store.root).all_acted())
        return {ref.key for ref in refs} | {key for text in acted for key in _NAMED.findall(text)}

    def _attempts(
        self, ref: ArtifactRef, files: Files, manifest: Manifest | None
    ) -> Iterator[Unneeded]:
        """Yield the attempts at an artifact that its manifest does not vouch for."""
        if self._store.claim(ref) in self._held or (MANIFEST in files and manifest is None):
            return
        attempts: dict[str, list[FileState]] = defaultdict(list)
        for path, state in files.items():
            attempts[path.partition("/")[0]].append(state)
        for name, its in attempts.items():
            vouched = manifest is not None and name == manifest.attempt
            if _ATTEMPT.fullmatch(name) and not vouched and self._is_old(its):
                yield Unneeded("attempt", self._uri(str(ref), name), _bytes(its))

    def _records(self, gone: Mapping[str, ArtifactRef], files: Files) -> Iterator[Unneeded]:
        """Yield entries of the registry and hints at the newest whose artifacts go."""
        for path, state in files.items():
            top, *_, name = path.split("/")
            key = name.removesuffix(".json")
            if top == "latest" and gone:
                said = storage.read_bytes(self._uri(path)).decode(errors="replace")
                key = next(iter(_NAMED.findall(said)), "")
            if top in _TELLING and key in gone:
                yield Unneeded(_TELLING[top], self._uri(path), state.bytes, gone[key])

    def _left_files(self, files: Files) -> Iterator[Unneeded]:
        """Yield claims and files that nobody will finish."""
        for path, state in files.items():
            top, *between, name = path.split("/")
            if not self._is_old([state]):
                continue
            beside_manifest = len(between) == 1 and _KEY.fullmatch(between[0])
            if _UNFINISHED.fullmatch(name) and (top in _WRITTEN or beside_manifest):
                yield Unneeded("unfinished file", self._uri(path), state.bytes)
            elif top == CLAIMS and name.endswith(".json") and self._uri(path) not in self._held:
                yield Unneeded("claim", self._uri(path), state.bytes)

    def _checkpoints(self, files: Files) -> Iterator[Unneeded]:
        """Yield what trainings left that nobody will finish: the state, and adapters on the way."""
        trainings: dict[str, list[str]] = defaultdict(list)
        for path in files:
            top, *inner = path.split("/")
            key = inner[0].removesuffix(".safetensors") if inner else ""
            if top == "checkpoints" and path.endswith(".safetensors") and _KEY.fullmatch(key):
                trainings[key].append(path)
        for key, its in trainings.items():
            held = self._store.claim(ArtifactRef(stage=ADAPTER, key=key)) in self._held
            if not held and self._is_old([files[path] for path in its]):
                for path in its:
                    yield Unneeded("checkpoint", self._uri(path), files[path].bytes)

    def _drafts(self) -> Iterator[Unneeded]:
        """Yield drafts whose process is gone, or not known and long silent."""
        drafts = list(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))
        if not storage.is_remote(self._store.root):
            drafts += Path(self._store.root, "drafts").glob("*")
        for draft in drafts:
            left, its = is_left(draft), _below(draft).values()
            if (left or (left is None and not self._held)) and self._is_old(its):
                yield Unneeded("draft", str(draft), _bytes(its))

    def _copies(self) -> Iterator[Unneeded]:
        """Yield copies of what is remote, of whatever root, that were not used for long.

        With them notes on local files, which are read again then.
        """
        copies = [*storage.cache_folder("artifacts").glob("*/*/*")]
        for notes in ("backbones", "digests"):
            copies += storage.cache_folder(notes).glob("*")
        for copy in copies:
            its = _below(copy)
            if self._now - max(state.changed for state in its.values()) >= self._keeping.copies:
                yield Unneeded("copy", str(copy), _bytes(its.values()))
                continue
            for path, state in its.items():
                if _UNFINISHED.fullmatch(Path(path).name) and self._is_old([state]):
                    yield Unneeded("unfinished file", path, state.bytes)

    def _claims_held(self) -> Iterator[str]:
        """Yield the claims that somebody may hold."""
        for path in storage.file_sizes(self._uri(CLAIMS)):
            place = self._uri(CLAIMS, path)
            if not path.rpartition("/")[2].startswith(".") and may_be_held(place):
                yield place

    def _manifest(self, ref: ArtifactRef) -> Manifest | None:
        place = self._uri(str(ref), MANIFEST)
        try:
            return unsealed(Manifest, storage.read_bytes(place))
        except (ValueError, OSError) as error:
            self.notes.append(f"{place} cannot be read, so its folder stays: {error}")
            return None

    def _is_old(self, states: Iterable[FileState]) -> bool:
        newest = max(state.changed for state in states)
        return self._now - newest >= self._keeping.younger

    def _uri(self, *parts: str) -> str:
        return storage.join(self._store.root, *parts)


def _named(manifest: Manifest | None) -> set[str]:
    """Return the keys that a manifest names beside its own."""
    return set(_NAMED.findall(manifest.model_dump_json())) - {manifest.key} if manifest else set()


def _bytes(states: Iterable[FileState]) -> int:
    return sum(state.bytes for state in states)


def _below(folder: Path) -> dict[str, FileState]:
    """Return what a local folder and all below it are; folders have no bytes of their own."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):
            said = path.lstat()
            size = 0 if path.is_dir() else said.st_size
            found[str(path)] = FileState(size, said.st_mtime)
    return found or {str(folder): FileState(0, math.inf)}  # gone meanwhile
