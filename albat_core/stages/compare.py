"""Says what a new selection changed, and whether a new fine-tuning is worth it."""

from collections.abc import Sequence
from pathlib import Path

from albat_core.records.mixtures import (
    ADAPTATION,
    BACKBONE,
    changed_rows,
    moved_weight,
    weighted_rows,
)
from albat_core.records.selections import STAGE as SELECTION
from albat_core.records.selections import Selected
from albat_core.report.content import Changes, SelectedExample
from albat_core.report.gathering import made_now
from albat_core.report.showing import CHANGES, heaviest
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime

STAGE = "changes"


STAGE_VERSION = 3


PAGE = "changes.html"


def compare_selections(
    before: Selected, after: Selected, name: str, threshold: float, runtime: Runtime
) -> ArtifactRef:
    """Say what a new selection changed, and whether a new fine-tuning is worth it; draw the page.

    Args:
        before: the selection that an adapter was last trained on.
        after: the new one.
        name: of the run.
        threshold: share of the weight on other rows from which on it is worth it, in [0, 1].
        runtime: where artifacts are kept.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        from albat_core.report.page import render_changes

        old, new = (weighted_rows(store, each.mixture) for each in (before, after))
        rows, moved = changed_rows(old, new), moved_weight(old, new)
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
            worth=moved >= threshold,
            threshold=threshold,
            came=_examples(store, after, rows[BACKBONE].entered),
            went=_examples(store, before, rows[BACKBONE].left),
        )
        (folder / CHANGES).write_text(changes.model_dump_json(indent=1), encoding="utf-8")
        page = render_changes(changes, name, made_now())
        (folder / PAGE).write_text(page, encoding="utf-8")
        moved_rows = len(changes.backbone.entered) + len(changes.backbone.left)
        return Built(rows=moved_rows, facts={"worth": changes.worth, "moved": moved})

    inputs = {
        when: [each.mixture.key, each.estimate.key if each.estimate else None]
        for when, each in (("before", before), ("after", after))
    }
    settings = {"threshold": threshold, "name": name}
    return store.produce(STAGE, STAGE_VERSION, settings, inputs, build)


def export_changes(changes: ArtifactRef, output: str, runtime: Runtime) -> dict[str, str]:
    """Copy the page of a comparison below ``output``, in one piece; return its place by name."""
    place = storage.join(output, PAGE)
    page = ArtifactStore(runtime.root).folder(changes) / PAGE
    storage.write_bytes(place, page.read_bytes())
    return {"changes": place}


def _alpha(store: ArtifactStore, selected: Selected) -> float:
    return float(store.manifest(selected.mixture).facts["alpha"])


def _multiplier(store: ArtifactStore, selected: Selected) -> float | None:
    return (
        float(store.manifest(selected.estimate).facts["multiplier"]) if selected.estimate else None
    )


def _examples(
    store: ArtifactStore, selected: Selected, among: Sequence[str]
) -> tuple[SelectedExample, ...]:
    if not among:
        return ()
    chosen = ArtifactRef(stage=SELECTION, key=store.manifest(selected.mixture).inputs["selection"])
    return heaviest(store, chosen, selected.adaptation, among)
