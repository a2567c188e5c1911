"""Benchmarks as flows: tasks and seeds in processes of their own, then the table."""

from datetime import date
from typing import Generic, TypeVar

from albat_core.benchmark.arms import TASKS, ArmResult, measure_situation
from albat_core.benchmark.calibration import Case, calibrate, tabulate_cases
from albat_core.benchmark.chart import CHART
from albat_core.benchmark.config import CalibrationConfig, EfficacyConfig
from albat_core.benchmark.table import TABLE, tabulate
from albat_core.errors import AlbatError, Interrupted
from albat_core.progress import Advance, track
from albat_core.report.gathering import machine
from albat_core.runs.goals import Outcome
from albat_core.runs.steps import Pending
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactStore
from flows.running.lifting import as_flow
from flows.running.runners import tasks_in_processes

Made = TypeVar("Made")


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
        found = _Found[ArmResult](advance)
        first, *others = config.seeds
        tuned = [
            execute(measure_situation, situation=each, config=config, seed=first)
            for each in config.situations
        ]
        further: list[Pending[list[ArmResult]]] = []
        for each, its in zip(config.situations, tuned, strict=True):
            if chosen := found.of(its):
                further += [
                    execute(
                        measure_situation, situation=each, config=config, seed=seed, first=chosen
                    )
                    for seed in others
                ]
        for case in further:
            found.of(case)
        results = found.whole()
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
        found = _Found[Case](advance)
        for its in measured:
            found.of(its)
        cases = found.whole()
        table = execute(tabulate_cases, cases=cases, runtime=runtime).result()
    return Outcome(artifact=table, stages=())


class _Found(Generic[Made]):
    """What tasks and seeds came to. Where one fails the others go on: they may take hours.

    Args:
        advance: counts those that ended well.
    """

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._made: list[Made] = []
        self._failures: list[AlbatError] = []

    def of(self, case: Pending[list[Made]]) -> list[Made]:
        """Wait for a task with a seed; of one that failed there is nothing."""
        try:
            made = case.result()
        except Interrupted:
            raise
        except AlbatError as error:
            self._failures.append(error)
            return []
        self._made += made
        self._advance(1)
        return made

    def whole(self) -> list[Made]:
        """Return what all of them came to.

        Raises:
            AlbatError: one failed; the first that did.
        """
        if self._failures:
            raise self._failures[0]
        return self._made


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
