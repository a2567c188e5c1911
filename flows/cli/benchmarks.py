"""Commands that measure what selection is worth."""

from typing import TYPE_CHECKING, Annotated

import typer

from albat_core.progress import reporting_to
from flows.cli.app import (
    ConfigPath,
    Device,
    Root,
    Verbose,
    bench,
    overrides,
)
from flows.running.own_process import (
    STOPS_WITHIN,
    embedded_server,
    prepare_environment,
    stop_on_ctrl_c,
)

if TYPE_CHECKING:
    from albat_core.benchmark.config import CalibrationConfig, EfficacyConfig
    from albat_core.runs.goals import Outcome


@bench.command()
def efficacy(
    config: ConfigPath,
    out: Annotated[str, typer.Option(help="Folder that the table is written to.")] = "runs",
    root: Root = None,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Compare every scorer and every fair baseline, on several tasks and seeds."""
    prepare_environment(verbose)
    from flows.config import load_efficacy

    benchmark = load_efficacy(config, overrides(root, device))
    result = _measured("efficacy", benchmark)
    command, place = f"albat bench efficacy {config}", f"efficacy-{benchmark.name}.md"
    _export(result, benchmark, f"Efficacy: {benchmark.name}", command, f"{out}/{place}")


@bench.command()
def calibration(
    configs: Annotated[
        list[str], typer.Argument(metavar="CONFIG.yaml...", help="Runs, or benchmarks of several.")
    ],
    task: Annotated[
        list[str] | None, typer.Option(help="Some of them, by name. Default: all.")
    ] = None,
    seed: Annotated[list[int], typer.Option(help="Give it several times.")] = [0, 1, 2],  # noqa: B006
    size: Annotated[
        list[float], typer.Option(help="Of the adaptation set, over the task's own.")
    ] = [0.5, 1.0, 2.0],  # noqa: B006
    parallel: Annotated[int, typer.Option(help="Processes.", min=1)] = 2,
    out: Annotated[str, typer.Option(help="Folder that the table is written to.")] = "runs",
    root: Root = None,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Hold what is said beforehand against what it was worth, on several tasks, seeds and sizes."""
    prepare_environment(verbose)
    from flows.config import load_calibration

    settings = {"seeds": seed, "sizes": size, "parallel": parallel}
    benchmark = load_calibration(configs, settings, overrides(root, device), task or ())
    result = _measured("calibration", benchmark)
    some = [f'--task "{name}"' for name in task or ()]
    some += [f"--seed {number}" for number in seed] + [f"--size {number:g}" for number in size]
    command = f"albat bench calibration {' '.join([*configs, *some])}"
    _export(result, benchmark, "Calibration", command, f"{out}/calibration.md")


def _measured(name: str, benchmark: "EfficacyConfig | CalibrationConfig") -> "Outcome":
    """Run a benchmark's flow."""
    from flows.console import LineReporter, console

    reporter = LineReporter()
    with embedded_server() as server_answers:
        with console.status("checking inputs, starting Prefect"):
            from flows.checks import refuse_mistakes

            for situation in benchmark.situations:
                refuse_mistakes(situation.run)
            from flows import efficacy as flows

            server_answers()
        with stop_on_ctrl_c(reporter, STOPS_WITHIN), reporting_to(reporter):
            result: Outcome = getattr(flows, name)(benchmark)
        return result


def _export(
    result: "Outcome",
    benchmark: "EfficacyConfig | CalibrationConfig",
    title: str,
    command: str,
    place: str,
) -> None:
    """Write a benchmark's table and say where it is."""
    from flows.console import show_places
    from flows.efficacy import export_table

    show_places({"table": export_table(result, benchmark, title, command, place)})
