"""The efficacy benchmark as a flow: tasks and seeds in processes of their own, then the table."""

from datetime import date

from albat_core.benchmark.arms import measure_situation
from albat_core.benchmark.config import EfficacyConfig
from albat_core.benchmark.table import TABLE, tabulate
from albat_core.report.gathering import machine
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactStore
from flows.albat import FlowResult
from flows.running.lifting import as_flow
from flows.running.runners import tasks_in_processes


@as_flow
def efficacy(config: EfficacyConfig) -> FlowResult:
    """Compare every scorer and every baseline on several tasks and seeds.

    Args:
        config: what is compared.
    """
    runtime = config.situations[0].run.runtime
    with tasks_in_processes(config.parallel) as execute:
        cases = [
            execute(measure_situation, situation=each, config=config, seed=seed)
            for seed in config.seeds
            for each in config.situations
        ]
        results = [result for case in cases for result in case.result()]
        table = execute(tabulate, results=results, seed=0, runtime=runtime).result()
    return FlowResult(artifact=table, stages=())


def export_table(result: FlowResult, config: EfficacyConfig, command: str, out: str) -> str:
    """Write a benchmark's table below a folder, and say how it was measured; return its place."""
    store = ArtifactStore(config.situations[0].run.runtime.root)
    folder = store.folder(result.artifact)
    head = f"""# Efficacy: {config.name}

`{command}`, {date.today().isoformat()}, {machine()}; seeds {", ".join(map(str, config.seeds))}.

"""
    place = storage.join(out, f"efficacy-{config.name}.md")
    storage.write_bytes(place, (head + (folder / TABLE).read_text("utf-8")).encode())
    return place
