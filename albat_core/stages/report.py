"""Draws a run's report, and puts results where they are wanted."""

from pathlib import Path

import yaml

from albat_core.records.runs import ALBAT, RunArtifacts
from albat_core.report.content import ReportContent
from albat_core.report.gathering import gather
from albat_core.store import storage, transfer
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.claims import claimed
from albat_core.store.stage import Runtime, StageConfig

STAGE = "report"
STAGE_VERSION = 8
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
    its = config.settings(without={"runtime", "output", "reselection"})

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
