"""Draws a run's report, and puts results where they are wanted."""

from pathlib import Path

import yaml

from albat_core.records.mixtures import CARD
from albat_core.records.runs import ALBAT, RunArtifacts
from albat_core.report import markdown
from albat_core.report.content import Arm, ReportContent
from albat_core.report.gathering import gather
from albat_core.store import storage, transfer
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.claims import claimed
from albat_core.store.stage import Runtime, StageConfig
from albat_core.trackers import Tracking, followed_by
from albat_core.trackers.base import Results, Row

STAGE = "report"
STAGE_VERSION = 10
PAGE, RESULTS = "report.html", "results.json"
EARLIER = "reports"
"""Folder of the output in which the report of each adapter stays: its day, and its key's start."""


def write_report(
    run: RunArtifacts, config: StageConfig, seed: int, runtime: Runtime
) -> ArtifactRef:
    """Draw the report of a run: the page, and its content as JSON.

    Args:
        run: what it tells of.
        config: the run's configuration, shown as YAML.
        seed: of the bootstrap.
        runtime: where artifacts are kept.
    """
    store = ArtifactStore(runtime.root)
    its = config.settings(without={"runtime", "output", "reselection", "tracking"})

    def build(folder: Path) -> Built:
        from albat_core.report.page import render

        content = gather(store, run, yaml.safe_dump(its.shown, sort_keys=False), seed)
        (folder / PAGE).write_text(render(content), encoding="utf-8")
        (folder / RESULTS).write_text(content.model_dump_json(indent=1), encoding="utf-8")
        return Built(rows=len(content.arms), facts={"headline": content.headline})

    inputs = {
        "artifacts": sorted({str(ref) for stage in run.stages for ref in stage.refs}),
        "arms": {arm.name: arm.evaluation.key for arm in run.arms},
    }
    return store.produce(STAGE, STAGE_VERSION, {"run": its, "seed": seed}, inputs, build)


def track_run(run: RunArtifacts, report: ArtifactRef, tracking: Tracking, runtime: Runtime) -> None:
    """Show what a run came to where it is tracked: the arms, report, mixture's card and adapter.

    Args:
        run: whose adapter and mixture.
        report: of it.
        tracking: where.
        runtime: where artifacts are kept.
    """
    store = ArtifactStore(runtime.root)
    content = read_results(store, report)
    adapter = next(arm.adapter for arm in run.arms if arm.name == ALBAT)
    assert adapter is not None  # ALBAT's arm is always trained
    figures = {f"heldout/loss/{arm.name}": arm.loss.value for arm in content.arms}
    figures |= {f"heldout/gain/{a.name}": a.gain.value for a in content.arms if a.gain}
    for arm in content.arms:
        figures |= {
            f"{'tasks' if each.task else 'heldout'}/{each.name}/{arm.name}": each.value.value
            for each in arm.metrics
        }
    results = Results(
        figures=figures,
        table=[_row(arm) for arm in content.arms],
        texts={
            "arms": markdown.results(content.arms, content.unit),
            "verdict": f"{content.headline}\n\n{content.verdict or ''}".strip(),
            "mixture": store.file(run.mixture, CARD).read_text(encoding="utf-8"),
        },
        files={"report": store.file(report, PAGE), "adapter": store.folder(adapter)},
    )
    with followed_by(tracking, "results", report.key) as followed:
        followed.keep(results)


def _row(arm: Arm) -> Row:
    """Return what an arm came to, intervals with their ends."""
    row: dict[str, str | float | None] = {"arm": arm.label}
    for name, its in (("loss", arm.loss), ("gain over adaptation only", arm.gain)):
        row[name] = its.value if its else None
        row[f"{name}, low"] = its.low if its else None
        row[f"{name}, high"] = its.high if its else None
    row["rows"] = arm.adaptation_rows + arm.backbone_rows
    return row | {each.title: each.value.value for each in arm.metrics}


def read_results(store: ArtifactStore, report: ArtifactRef) -> ReportContent:
    """Return what a report shows."""
    return ReportContent.model_validate_json((store.folder(report) / RESULTS).read_bytes())


def export_run(
    run: RunArtifacts, report: ArtifactRef, output: str, runtime: Runtime
) -> dict[str, str]:
    """Copy report, adapter and mixture below ``output``; return their places by name.

    Each is replaced as ``transfer.replace_tree`` says, one after the other and the report last:
    where this is killed, the report tells of the adapter before.

    Args:
        run: whose adapter and mixture.
        report: of it.
        output: a folder, local or remote.
        runtime: where artifacts are kept.

    Raises:
        DamagedError: what would be copied is not what was written; nothing is copied.
    """
    store = ArtifactStore(runtime.root)
    adapter = next(arm.adapter for arm in run.arms if arm.name == ALBAT)
    assert adapter is not None  # ALBAT's arm is always trained
    folders = {"adapter": store.folder(adapter), "mixture": store.folder(run.mixture)}
    page = store.folder(report)
    kept = f"{store.manifest(report).created[:10]}-{adapter.key[:8]}.html"
    with claimed(f"{output}.claim", output, lambda: None):  # another of this name may end now
        for name, folder in folders.items():
            transfer.replace_tree(folder, storage.join(output, name))
        storage.write_bytes(storage.join(output, EARLIER, kept), (page / PAGE).read_bytes())
        for name in (RESULTS, PAGE):
            storage.write_bytes(storage.join(output, name), (page / name).read_bytes())
    return {"report": storage.join(output, PAGE)} | {n: storage.join(output, n) for n in folders}


def export_mixture(mixture: ArtifactRef, output: str, runtime: Runtime) -> dict[str, str]:
    """Copy a mixture below ``output``, as ``export_run`` does; return its place by name."""
    place, folder = storage.join(output, "mixture"), ArtifactStore(runtime.root).folder(mixture)
    with claimed(f"{output}.claim", output, lambda: None):
        transfer.replace_tree(folder, place)
    return {"mixture": place}
