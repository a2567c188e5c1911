"""Selecting again when the adaptation data has changed: what is watched, and what a change changed.

Layout below the artifact root::

    watches/<run>/watch.json    the run whose adaptation data is watched
    watches/<run>/acted.json    the state of the data last acted on, and what came of it

Both are written whole. ``acted.json`` comes last: a selection that did not end is done again.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from albat_core.config import ReselectionConfig, RunConfig
from albat_core.input_files import find_files
from albat_core.records.mixtures import (
    ADAPTATION,
    BACKBONE,
    changed_rows,
    moved_weight,
)
from albat_core.records.selections import STAGE as SELECTION
from albat_core.records.selections import Selected
from albat_core.report.content import Changes, SelectedExample
from albat_core.report.gathering import made_now
from albat_core.report.page import render_changes
from albat_core.report.showing import CHANGES, heaviest
from albat_core.report.wording import changes_table, decision
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, canonical_json

STAGE = "changes"
STAGE_VERSION = 2
PAGE = "changes.html"

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
        """Watch a run's adaptation data from now on, with this configuration."""
        storage.write_bytes(self._place(config.name, "watch"), config.model_dump_json().encode())

    def remove(self, name: str) -> bool:
        """Watch a run no longer; return whether it was watched."""
        place = self._place(name, "watch")
        there = storage.exists(place)
        storage.remove(place)
        return there

    def all(self) -> list[RunConfig]:
        """Return the runs that are watched, by name."""
        places = [path for path in storage.file_sizes(self._root) if path.endswith("/watch.json")]
        return [
            RunConfig.model_validate_json(storage.read_bytes(f"{self._root}/{path}"))
            for path in sorted(places)
        ]

    def acted(self, name: str) -> Acted | None:
        """Return the state that was last acted on, if any was."""
        try:
            return Acted.model_validate_json(storage.read_bytes(self._place(name, "acted")))
        except FileNotFoundError:
            return None

    def set_acted(self, name: str, acted: Acted) -> None:
        """Note that a state was acted on."""
        storage.write_bytes(self._place(name, "acted"), acted.model_dump_json(indent=1).encode())

    def _place(self, name: str, kind: str) -> str:
        return storage.join(self._root, name, f"{kind}.json")


def data_fingerprint(config: RunConfig) -> str:
    """Return what changes when a file of the adaptation or held-out data is new, changed or gone.

    Local files are read; of remote ones, tags and sizes are listed.

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
    shared = config.model_dump(mode="json", include=_BASIS)
    return hashlib.blake2b(canonical_json(shared).encode(), digest_size=16).hexdigest()


def compare_selections(
    before: Selected, after: Selected, name: str, config: ReselectionConfig, runtime: Runtime
) -> ArtifactRef:
    """Say what a new selection changed, and whether a new fine-tuning is worth it; draw the page.

    Args:
        before: the selection that an adapter was last trained on.
        after: the new one.
        name: of the run.
        config: from how much on it is worth it.
        runtime: where artifacts are kept.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        rows = changed_rows(store, before.mixture, after.mixture)
        moved = moved_weight(store, before.mixture, after.mixture)
        alphas, multipliers = zip(
            *((_alpha(store, each), _multiplier(store, each)) for each in (before, after)),
            strict=True,
        )
        changes = Changes(
            adaptation=rows[ADAPTATION],
            backbone=rows[BACKBONE],
            moved=moved,
            alpha=alphas,
            multiplier=multipliers,
            worth=moved >= config.threshold,
            threshold=config.threshold,
            came=_examples(store, after, rows[BACKBONE].entered),
            went=_examples(store, before, rows[BACKBONE].left),
        )
        (folder / CHANGES).write_text(changes.model_dump_json(indent=1), encoding="utf-8")
        page = render_changes(changes, name, made_now())
        (folder / PAGE).write_text(page, encoding="utf-8")
        moved_rows = len(changes.backbone.entered) + len(changes.backbone.left)
        return Built(rows=moved_rows, facts={"worth": changes.worth, "moved": moved})

    inputs = {
        when: [each.mixture.key, each.mixing.key if each.mixing else None]
        for when, each in (("before", before), ("after", after))
    }
    knobs = {"threshold": config.threshold, "name": name}
    return store.produce(STAGE, STAGE_VERSION, knobs, inputs, build)


def export_changes(changes: ArtifactRef, output: str, runtime: Runtime) -> dict[str, str]:
    """Copy the page of a comparison below ``output``; return its place by name."""
    place = storage.join(output, PAGE)
    page = ArtifactStore(runtime.root).folder(changes) / PAGE
    storage.write_bytes(place, page.read_bytes())
    return {"changes": place}


def told(changes: Changes) -> str:
    """Return what a selection changed, as Markdown."""
    heading, *rows = (f"| {' | '.join(row)} |" for row in changes_table(changes))
    return "\n".join([decision(changes), "", heading, "|---|---:|---:|---:|---:|", *rows, ""])


def _alpha(store: ArtifactStore, selected: Selected) -> float:
    return float(store.manifest(selected.mixture).facts["alpha"])


def _multiplier(store: ArtifactStore, selected: Selected) -> float | None:
    return float(store.manifest(selected.mixing).facts["multiplier"]) if selected.mixing else None


def _examples(
    store: ArtifactStore, selected: Selected, among: Sequence[str]
) -> tuple[SelectedExample, ...]:
    if not among:
        return ()
    chosen = ArtifactRef(stage=SELECTION, key=store.manifest(selected.mixture).inputs["selection"])
    return heaviest(store, chosen, selected.adaptation, among)
