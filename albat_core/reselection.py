"""Selecting again when the adaptation data has changed: what is watched, and what a change changed.

Layout below the artifact root::

    watches/<run>/watch.json    the run whose adaptation data is watched
    watches/<run>/acted.json    the state of the data last acted on, and what came of it

Both are written whole. ``acted.json`` comes last: a selection that did not end is done again.
"""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from albat_core import storage
from albat_core.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.config import ReselectionConfig, RunConfig
from albat_core.dataset import described_rows
from albat_core.input_files import find_files
from albat_core.records import ADAPTATION, BACKBONE
from albat_core.registry import RowChanges, changed_rows
from albat_core.selecting import Selected
from albat_core.stage import Runtime, canonical_json

STAGE = "changes"
STAGE_VERSION = 1
CHANGES = "changes.json"

_FOLDER = "watches"
_BASIS = {"seed", "backbone", "split", "shards", "surrogate"}
"""What has to be the same for a selection to go on from an earlier one."""


class Changes(BaseModel):
    """How a selection differs from the one before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adaptation: RowChanges
    backbone: RowChanges
    moved: float
    """Share of the objective's weight that is on other rows than before, in [0, 1]."""
    alpha: tuple[float, float]
    """Before and after."""
    multiplier: tuple[float | None, float | None]
    """Predicted, before and after; None where alpha is configured."""
    worth: bool
    """Whether enough has moved for a new fine-tuning."""
    threshold: float
    """Of ``moved``, from which on it is."""


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
    before: Selected, after: Selected, config: ReselectionConfig, runtime: Runtime
) -> ArtifactRef:
    """Say what a new selection changed, and whether a new fine-tuning is worth it.

    Args:
        before: the selection that an adapter was last trained on.
        after: the new one.
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
        )
        (folder / CHANGES).write_text(changes.model_dump_json(indent=1), encoding="utf-8")
        moved_rows = len(changes.backbone.entered) + len(changes.backbone.left)
        return Built(rows=moved_rows, facts={"worth": changes.worth, "moved": moved})

    inputs = {
        name: [each.mixture.key, each.mixing.key if each.mixing else None]
        for name, each in (("before", before), ("after", after))
    }
    return store.produce(STAGE, STAGE_VERSION, {"threshold": config.threshold}, inputs, build)


def read_changes(store: ArtifactStore, ref: ArtifactRef) -> Changes:
    """Return what a selection changed."""
    return Changes.model_validate_json((store.folder(ref) / CHANGES).read_bytes())


def moved_weight(store: ArtifactStore, before: ArtifactRef, after: ArtifactRef) -> float:
    """Return the total variation distance of two mixtures' weights, in [0, 1].

    It is the share of the objective's weight that lies on other rows than before:
    sum_i |w_i - v_i| / 2.
    """
    weights: list[dict[str, float]] = []
    for ref in (before, after):
        table = described_rows(store, ref)
        weights.append(
            dict(zip(table["example_id"].to_pylist(), table["weight"].to_pylist(), strict=True))
        )
    old, new = weights
    return sum(abs(old.get(n, 0.0) - new.get(n, 0.0)) for n in old.keys() | new.keys()) / 2


def told(changes: Changes) -> str:
    """Return what a selection changed, as Markdown."""
    lines = [
        "| rows | in | out | stay |",
        "|---|---:|---:|---:|",
        *(
            f"| {role} | {len(rows.entered):,} | {len(rows.left):,} | {rows.stayed:,} |"
            for role, rows in ((ADAPTATION, changes.adaptation), (BACKBONE, changes.backbone))
        ),
        "",
        f"alpha: {changes.alpha[0]:.3f} before, {changes.alpha[1]:.3f} now",
    ]
    before, after = changes.multiplier
    if before is not None and after is not None:
        lines.append(f"expected worth: {before:.1f} times your data before, {after:.1f} now")
    decision = "a new fine-tuning is worth it" if changes.worth else "no new fine-tuning is needed"
    return "\n\n".join(["\n".join(lines[:4]), *lines[5:]]) + (
        f"\n\n{changes.moved:.1%} of the objective's weight is on other rows than before "
        f"(reselection.threshold: {changes.threshold:.1%}): {decision}.\n"
    )


def _alpha(store: ArtifactStore, selected: Selected) -> float:
    return float(store.manifest(selected.mixture).facts["alpha"])


def _multiplier(store: ArtifactStore, selected: Selected) -> float | None:
    return float(store.manifest(selected.mixing).facts["multiplier"]) if selected.mixing else None
