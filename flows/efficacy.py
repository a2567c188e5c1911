"""Benchmarks as flows: tasks and seeds in processes of their own, then the table."""

from datetime import date

from albat_core.benchmark.arms import TASKS, ArmResult, measure_situation
from albat_core.benchmark.calibration import calibrate, tabulate_cases
from albat_core.benchmark.chart import CHART
from albat_core.benchmark.config import CalibrationConfig, EfficacyConfig
from albat_core.benchmark.table import TABLE, tabulate
from albat_core.progress import track
from albat_core.report.gathering import machine
from albat_core.runs.goals import Outcome
from albat_core.runs.steps import Pending
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactStore
from flows.running.lifting import as_flow
from flows.running.runners import tasks_in_processes


@as_flow
def efficacy(config: EfficacyConfig) -> Outcome:
    """Compare every scorer and every baseline on several tasks and seeds.

    Args:
        config: what is compared.
    """
    runtime = config.situations[0].run.runtime
    count = len(config.seeds) * len(config.situations)
    with (
        ArtifactStore(runtime.root).in_use(),
        tasks_in_processes(config.parallel) as execute,
        track(config.name, count, TASKS) as advance,
    ):
        counted: list[Pending[list[ArmResult]]] = []

        def told(case: Pending[list[ArmResult]]) -> list[ArmResult]:
            found = case.result()
            if case not in counted:
                counted.append(case)
                advance(1)
            return found

        first, *others = config.seeds
        tuned = [
            execute(measure_situation, situation=each, config=config, seed=first)
            for each in config.situations
        ]
        cases = [
            execute(measure_situation, situation=each, config=config, seed=seed, first=told(its))
            for seed in others
            for each, its in zip(config.situations, tuned, strict=True)
        ]
        results = [result for case in (*tuned, *cases) for result in told(case)]
        table = execute(tabulate, results=results, seed=0, runtime=runtime).result()
    return Outcome(artifact=table, stages=())


@as_flow
def calibration(config: CalibrationConfig) -> Outcome:
    """Hold what is said of tasks beforehand, and by their runs, against what it was worth.

    Args:
        config: on which tasks, seeds and sizes.
    """
    runtime = config.situations[0].run.runtime
    count = len(config.seeds) * len(config.situations)
    with (
        ArtifactStore(runtime.root).in_use(),
        tasks_in_processes(config.parallel) as execute,
        track(config.name, count, TASKS) as advance,
    ):
        measured = [
            execute(calibrate, situation=each, sizes=config.sizes, seed=seed)
            for seed in config.seeds
            for each in config.situations
        ]
        cases = []
        for its in measured:
            cases += its.result()
            advance(1)
        table = execute(tabulate_cases, cases=cases, runtime=runtime).result()
    return Outcome(artifact=table, stages=())


def export_table(
    result: Outcome,
    config: EfficacyConfig | CalibrationConfig,
    title: str,
    command: str,
    place: str,
) -> str:
    """Write a benchmark's table as Markdown with its chart beside it; return its place."""
    store = ArtifactStore(config.situations[0].run.runtime.root)
    folder = store.folder(result.artifact)
    picture = f"{place.removesuffix('.md')}.png"
    storage.write_bytes(picture, (folder / CHART).read_bytes())
    head = f"""# {title}

`{command}`, {date.today().isoformat()}, {machine()}; seeds {", ".join(map(str, config.seeds))}.

![What was measured]({picture.rpartition("/")[2]})

"""
    storage.write_bytes(place, (head + (folder / TABLE).read_text("utf-8")).encode())
    return place
