"""A run on toys that nothing disturbs, the same run done again, and what differs between them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from albat_core.errors import AlbatError
from albat_core.records.runs import ALBAT
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.runs.registry import PRODUCTION, Registry
from albat_core.runs.reselection import Watches, data_fingerprint, note_finished
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from bench.chaos.children import Ended, in_child
from flows.config import load_config
from tests.toys import write_run

_TIMES = {"created", "seconds", "attempt", "training_seconds", "reused", "promoted"}
"""What two undisturbed runs may say differently."""
_TELL_TIMES = {"adapter": {"README.md"}, "report": {"report.html", "results.json"}}
"""Files that say how long it took, by stage; of a report's results all else is compared."""
ALIAS = f"toy@{PRODUCTION}"


def write_toy(folder: Path, **changes: object) -> RunConfig:
    """Write the inputs of a run that takes three seconds and keeps a checkpoint of each step."""
    runtime = {"root": str(folder / "artifacts"), "device": "cpu", "checkpoint_seconds": 1e-9}
    path = write_run(folder, baselines=[], refit=False, runtime=runtime, **changes)
    return load_config(str(path))


def at(config: RunConfig, place: str) -> RunConfig:
    """Return a run with its artifacts and output below another place."""
    runtime = config.runtime.model_copy(update={"root": storage.join(place, "artifacts")})
    return config.model_copy(update={"runtime": runtime, "output": storage.join(place, "runs")})


def carry_out(config: RunConfig) -> None:
    """Do what the flow ``albat`` does, without Prefect."""
    store = ArtifactStore(config.runtime.root)
    with store.in_use():
        chain = Chain(config)
        state = data_fingerprint(config)
        assert chain.report
        chain.export()
        chain.register(evaluated=True)
        note_finished(config, state, chain.selected, chain.selected)


def promote_and_watch(config: RunConfig) -> None:
    """Let the alias mean the newest adapter, and have the data watched."""
    Registry(ArtifactStore(config.runtime.root)).promote("toy")
    Watches(config.runtime.root).add(config)


def use_all(config: RunConfig) -> dict[str, Any]:
    """Read all that is kept as whoever uses it does; return what was read or told of each."""
    store = ArtifactStore(config.runtime.root)
    read: dict[str, Any] = {}

    def note(name: str, value: Any) -> None:
        try:
            read[name] = value()
        except AlbatError as error:
            read[name] = {"told": str(error)}

    for ref in store.all_refs():
        note(str(ref), lambda ref=ref: sorted(p.name for p in store.folder(ref).iterdir()))
    note("alias", lambda: Registry(store).find(ALIAS).adapter.key)
    note("entry", lambda: Registry(store).find("toy").model_dump(mode="json"))
    watches = Watches(config.runtime.root)
    for name in watches.names():
        note("watch", lambda name=name: _unplaced(watches.config(name).model_dump(mode="json")))
    note("acted", lambda: (a := watches.acted("toy")) and a.model_dump(mode="json"))
    said: dict[str, Any] = json.loads(json.dumps(read))  # as it comes out of a child
    return said


def _unplaced(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in ("runtime", "output")}


def plain(value: Any) -> Any:
    """Return JSON without what says a time."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items() if k not in _TIMES}
    return [plain(each) for each in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Wanted:
    """What an undisturbed run came to.

    Args:
        manifests: by artifact, without times.
        results: what its report says, without times.
        read: see ``use_all``.
        seconds: that it took.
        writes: that it did.
    """

    manifests: dict[str, Any]
    results: Any
    read: dict[str, Any]
    seconds: float
    writes: int


def manifests(store: ArtifactStore) -> dict[str, Any]:
    """Return what the manifests say but for times, and for files that say one."""
    found = {}
    for ref in store.all_refs():
        if store.find(ref) is None:
            continue
        said = plain(store.manifest(ref).model_dump(mode="json"))
        telling = _TELL_TIMES.get(ref.stage, set())
        said["files"] = [file for file in said["files"] if file["path"] not in telling]
        found[str(ref)] = said
    return found


def _results(store: ArtifactStore) -> Any:
    (ref,) = (ref for ref in store.all_refs() if ref.stage == "report")
    return plain(json.loads(storage.read_bytes(storage.join(store.place(ref), "results.json"))))


def undisturbed(config: RunConfig, look: RunConfig | None = None) -> Wanted:
    """Do a run in a child; return what it came to.

    Args:
        config: of the run.
        look: the same with its root as files of this machine, where it has another.
    """
    first = expect(in_child(lambda: carry_out(config)))
    expect(in_child(lambda: promote_and_watch(config)))
    read = expect(in_child(lambda: use_all(config))).gave
    store = ArtifactStore((look or config).runtime.root)
    return Wanted(manifests(store), _results(store), read, first.seconds, first.writes)


def expect(ended: Ended) -> Ended:
    """Return how a child ended, which must have finished."""
    assert ended.finished, ended
    return ended


def differences(config: RunConfig, wanted: Wanted) -> list[str]:
    """Return what is not as after an undisturbed run, read where it lies: empty where all is."""
    store = ArtifactStore(config.runtime.root)
    there = manifests(store)
    found = [f"{name} is lost" for name in wanted.manifests.keys() - there.keys()]
    found += [f"{name} is of no run" for name in there.keys() - wanted.manifests.keys()]
    for name in there.keys() & wanted.manifests.keys():
        stage, _, key = name.partition("/")
        changed = store.changed_files(ArtifactRef(stage=stage, key=key))
        found += [f"{name}: {file} is not what its manifest says" for file in changed]
        if there[name] != wanted.manifests[name]:
            found.append(f"{name} differs from that of an undisturbed run")
    if found:
        return found
    if _results(store) != wanted.results:
        found.append("the report says something else")
    return found + _not_exported(config, store) + _left(store)


def _not_exported(config: RunConfig, store: ArtifactStore) -> list[str]:
    """Return what of the output is not what the artifacts hold."""
    output = f"{config.output}/{config.name}"
    entries = Registry(store).entries(config.name)
    if len(entries) != 1 or entries[0].report is None:
        return ["the registry has not the one evaluated adapter"]
    (entry,) = entries
    places = {"adapter": entry.adapter, "mixture": entry.mixture, "": entries[0].report}
    found = []
    for name, ref in places.items():
        folder = storage.join(output, name) if name else output
        sizes = storage.file_sizes(folder)
        files = {file.path: file.sha256 for file in store.manifest(ref).files}
        if name and sizes.keys() != files.keys():
            found.append(f"exported {name} has other files")
        found += [
            f"exported {path} differs from the artifact"
            for path, digest in files.items()
            if path not in sizes or storage.digest(storage.join(folder, path)) != digest
        ]
    return found


def _left(store: ArtifactStore) -> list[str]:
    """Return what a run that has ended should have removed."""
    names = storage.file_sizes(store.root)
    left = [
        name
        for name in names
        if name.startswith(("checkpoints/", "drafts/"))
        and not name.rpartition("/")[2].startswith(".")  # half written: `albat prune` removes it
    ]
    return [f"{name} is left behind" for name in left]


def adapter_of(config: RunConfig) -> ArtifactRef:
    """Return ALBAT's adapter, made where it is not there."""
    ref = Chain(config).arms.adapter(ALBAT)
    assert ref is not None
    return ref
