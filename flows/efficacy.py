"""The efficacy benchmark as a flow: tasks and seeds in processes of their own, then the table."""

from datetime import date

from albat_core.benchmark.arms import EfficacyConfig, measure_situation
from albat_core.benchmark.table import TABLE, tabulate
from albat_core.report.gathering import machine
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactStore
from flows.albat import FlowResult
from flows.lifting import as_flow
from flows.runners import tasks_in_processes


@as_flow
def efficacy(config: EfficacyConfig) -> FlowResult:
    """Compare every scorer and every baseline on several tasks and seeds.

    Args:
        config: what is compared.
    """
    cases = [(each, config, seed) for seed in config.seeds for each in config.situations]
    runtime = config.situations[0].run.runtime
    with tasks_in_processes(config.parallel) as execute:
        results = [r for case in execute(measure_situation, cases, ()) for r in case]
        [table] = execute(tabulate, [(results,)], (0, runtime))
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
