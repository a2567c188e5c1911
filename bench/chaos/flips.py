"""A flipped bit in each kind of file that is kept; then all is used, and the run is repeated."""

import json
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from albat_core.errors import Interrupted
from albat_core.progress import Advance, Silent, reporting_to
from albat_core.records.runs import ALBAT, LABELS
from albat_core.runs.config import RunConfig
from albat_core.store import claims
from albat_core.store.artifacts import ArtifactStore
from bench.chaos.children import flip, in_child
from bench.chaos.outcome import Draw, Trial
from bench.chaos.toy import (
    Wanted,
    adapter_of,
    at,
    carry_out,
    differences,
    plain,
    promote_and_watch,
    use_all,
)

_AGAIN = 0.4
"""Chance of an artifact to be made again when the run is repeated, so that others are read."""
_STOPS_AT = 8  # steps of training before the run whose checkpoint is flipped
_LAPSES = 2.0  # seconds without which a claim lapses here, in place of a minute
_WHOLE, _HALFWAY = "whole", "halfway"  # roots: of a finished run, and of one that was stopped
_NOBODY = 1 << 22  # number of a process that is never there

Files = dict[str, list[str]]
"""Paths of files below the folder of roots, by kind."""


def families(config: RunConfig, folder: Path) -> dict[str, Files]:
    """Return all kinds of files that are kept, with the roots that they lie in.

    Args:
        config: of a finished run, promoted and watched.
        folder: for the roots.
    """
    whole = folder / _WHOLE
    shutil.copytree(config.runtime.root, whole / "artifacts")
    shutil.copytree(config.output, whole / "runs")
    store = ArtifactStore(str(whole / "artifacts"))
    files: Files = {}
    manifests: Files = {}
    for ref in store.all_refs():
        manifest = store.manifest(ref)
        place = f"{_WHOLE}/artifacts/{ref}"
        manifests.setdefault(ref.stage, []).append(f"{place}/manifest.json")
        for file in manifest.files:
            name = f"{ref.stage}: {file.path}"
            files.setdefault(name, []).append(f"{place}/{manifest.attempt}/{file.path}")
    _stop_halfway(config, folder / _HALFWAY)

    def below(pattern: str) -> list[str]:
        return sorted(p.relative_to(folder).as_posix() for p in folder.glob(pattern) if p.is_file())

    kept = f"{_WHOLE}/artifacts"
    return {
        "artifact files": files,
        "manifests": manifests,
        "checkpoints": {"": below(f"{_HALFWAY}/artifacts/checkpoints/*")},
        "registry": {
            "entries": below(f"{kept}/registry/toy/*"),
            "aliases": below(f"{kept}/registry/*@*"),
        },
        "watches": {n: below(f"{kept}/watches/*/{n}.json") for n in ("watch", "acted")},
        "claims": {"": below(f"{_HALFWAY}/artifacts/claims/**/*")},
        "hints of the latest": {"": below(f"{kept}/latest/**/*")},
        "exported files": {n: below(f"{_WHOLE}/runs/toy/{n}") for n in ("*", "*/*", "*/data/*")},
    }


class _StopsAtStep(Silent):
    """Asks the last training to stop after some steps."""

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            if label == LABELS[ALBAT] and done >= _STOPS_AT:
                raise Interrupted("stopped")

        yield advance


def _stop_halfway(config: RunConfig, place: Path) -> None:
    """Stop a run as it trains, leaving a checkpoint; write the claims that a kill would leave."""

    def stopped() -> None:
        with reporting_to(_StopsAtStep()):
            adapter_of(at(config, str(place)))

    ended = in_child(stopped)
    assert ended.failed, ended
    store = ArtifactStore(str(place / "artifacts"))
    missing = {str(ref) for ref in ArtifactStore(config.runtime.root).all_refs()}
    missing -= {str(ref) for ref in store.all_refs()}
    claim = {"host": socket.gethostname(), "process": _NOBODY + 1, "holder": "0" * 32}
    for what in [*missing, f"runs/{'0' * 32}"]:
        file = Path(store.root, "claims", f"{what}.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(claim | {"renewed": time.time()}), encoding="utf-8")


def flip_bits(
    done: int, count: int, draw: Draw, config: RunConfig, wanted: Wanted, folder: Path
) -> Iterator[tuple[str, Trial]]:
    """Flip bits, one after another, in all kinds of files by turns; yields the family of each.

    Args:
        done: flips before these.
        count: of flips with those.
        draw: says where.
        config: of the run.
        wanted: what it comes to undisturbed.
        folder: for roots.
    """
    every = families(config, folder)
    by_turns = {name: cycle(kinds) for name, kinds in every.items()}
    shares = [2 if name in ("artifact files", "manifests") else 1 for name in every]
    order = cycle([n for n, share in zip(every, shares, strict=True) for _ in range(share)])
    for number in range(count):
        family = next(order)
        kind = next(by_turns[family])
        if number < done:
            continue
        drawn = draw("flips", number)
        path = str(drawn.choice(every[family][kind]))
        root, _, name = path.partition("/")
        trial = folder / "trial"
        shutil.copytree(folder / root, trial)
        try:
            yield family, _flipped(trial, name, drawn, at(config, str(trial)), wanted)
        finally:
            shutil.rmtree(trial)


def _flipped(
    root: Path, name: str, draw: np.random.Generator, config: RunConfig, wanted: Wanted
) -> Trial:
    bit = int(draw.integers(8 * (root / name).stat().st_size))
    again = [ref for ref in wanted.manifests if draw.random() < _AGAIN]
    if draw.random() < 0.5:  # otherwise all is found, and only looked at
        for ref in again:
            if not name.startswith(f"artifacts/{ref}/"):
                (root / "artifacts" / ref / "manifest.json").unlink(missing_ok=True)
    flip(root / name, bit)
    told: list[str] = []
    wrong: list[str] = []
    if draw.random() < 0.5:  # whoever uses it comes before the next run, or after it
        wrong += _used(config, wanted.read, told)
        wrong += _repeated(config, told)
    else:
        wrong += _repeated(config, told)
        wrong += _used(config, plain(wanted.read), told)
    wrong += _repeated(config, []) or _after_remedies(config, wanted)
    return Trial(f"bit {bit} of {name}", tuple(dict.fromkeys(wrong)), tuple(told))


def _used(config: RunConfig, wanted: dict[str, Any], told: list[str]) -> list[str]:
    """Use all that is kept, and note what is told; return what is read otherwise than it was."""
    ended = in_child(lambda: use_all(config))
    told += ended.told
    odd = [ended.broke] if ended.broke else []
    for what, value in (ended.gave or {}).items():
        if isinstance(value, dict) and "told" in value:
            told.append(value["told"])
        elif value is not None and plain(value) != plain(wanted.get(what, value)):
            odd.append(f"{what} is read as {str(value)[:80]}")
        elif value is not None and value != wanted.get(what, value) and wanted != plain(wanted):
            odd.append(f"{what} is read with another time")
    return odd


def _repeated(config: RunConfig, told: list[str]) -> list[str]:
    """Repeat the run, and note what is told; return why it did not end as runs do."""
    ended = in_child(lambda: quick(config))
    told += ended.told
    if ended.finished:
        return []
    return [ended.broke or f"the repeated run ends: {ended.told[0]}"]


def _after_remedies(config: RunConfig, wanted: Wanted) -> list[str]:
    """Return what differs once what was told is followed: the alias given again, and the watch."""
    remedied = in_child(lambda: promote_and_watch(config))
    if not remedied.finished:
        return [remedied.broke or remedied.told[0]]
    read = plain(in_child(lambda: use_all(config)).gave or {})
    odd = [
        f"{n} stays other than it was" for n, v in plain(wanted.read).items() if read.get(n) != v
    ]
    return [*differences(config, wanted), *odd]


def quick(config: RunConfig) -> None:
    """Do the run where claims lapse soon."""
    claims._LAPSES = _LAPSES
    carry_out(config)
