"""The report of a run, and where its results go."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from albat_core.artifacts import ArtifactRef
from albat_core.report import writing
from albat_core.report.writing import RunArtifacts
from albat_core.stage import Runtime, StageConfig
from tasks.caching import stage_task


@stage_task("report", "write the report")
def write_report(
    run: RunArtifacts, config: StageConfig, seed: int, runtime: Runtime
) -> ArtifactRef:
    """Gather what a run came to and draw the page."""
    return writing.write_report(run, config, seed, runtime)


@task(name="export", cache_policy=NO_CACHE, persist_result=False)
def export_run(
    run: RunArtifacts, report: ArtifactRef, output: str, runtime: Runtime
) -> dict[str, str]:
    """Copy report, adapter and mixture to the run's output."""
    return writing.export_run(run, report, output, runtime)
