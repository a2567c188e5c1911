"""The `albat` command."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from albat_core.errors import AlbatError, ConfigError, Interrupted
from albat_core.progress import reporting_to
from flows.running import (
    AT_ONCE,
    embedded_server,
    prepare_environment,
    run_in_processes,
    stop_on_ctrl_c,
)

if TYPE_CHECKING:
    from albat_core.config import RunConfig
    from flows.albat import FlowResult

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Find, in a backbone's own pretraining data, the examples that help your small "
    "adaptation set; fine-tune on the weighted mixture; learn what it was worth.\n\n"
    "Start with **albat demo**, then **albat init** and **albat check**. Everything that is "
    "computed is kept and found again: a command that was stopped goes on where it was.",
)

_ALL, _STAGES, _LOOK = "The whole chain", "One stage, with what it needs", "Look and prepare"

bench = typer.Typer(no_args_is_help=True, help="Measure what selection is worth.")
app.add_typer(bench, name="bench", rich_help_panel=_LOOK)

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="The run's configuration.")]
Root = Annotated[
    str | None, typer.Option(help="Folder or s3:// prefix for artifacts. [config: .albat]")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"] | None,
    typer.Option(help="auto, cpu or cuda. [config: auto]", metavar="DEVICE"),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show Prefect's logs.")]


def _load(config: str, root: str | None, device: str | None) -> "RunConfig":
    from flows.config import load_config

    return load_config(config, _overrides(root, device))


def _overrides(root: str | None, device: str | None) -> dict[str, str]:
    overrides = {"root": root, "device": device}
    return {k: v for k, v in overrides.items() if v is not None}


def _run(name: str, config: str, root: str | None, device: str | None, verbose: bool) -> None:
    """Run one of the flows in this process, after looking for mistakes."""
    prepare_environment(verbose)
    from flows.console import TerminalReporter, console, show_places, show_results

    with console.status("reading the configuration"):
        run = _load(config, root, device)
    with embedded_server() as server_answers:
        with console.status("checking inputs, starting Prefect"):
            _refuse_mistakes(run)
            import flows.albat  # noqa: F401 - the server starts meanwhile

            server_answers()
        with TerminalReporter() as reporter, stop_on_ctrl_c(reporter):
            result = _run_flow(name, run, reporter)
    if name == "albat":
        from albat_core.artifacts import ArtifactStore
        from albat_core.report.writing import read_results

        show_results(read_results(ArtifactStore(run.runtime.root), result.artifact))
        show_places(result.places)
    else:
        from albat_core.artifacts import ArtifactStore

        place = ArtifactStore(run.runtime.root).place(result.artifact)
        show_places({result.artifact.stage: str(result.artifact), "folder": place})


def _run_flow(name: str, run: "RunConfig", reporter: Any) -> "FlowResult":
    from prefect.task_runners import ThreadPoolTaskRunner

    from flows import albat as flows

    started: Any = getattr(flows, name)
    runner: Any = ThreadPoolTaskRunner(max_workers=run.runtime.workers)
    with reporting_to(reporter):
        result: FlowResult = started.with_options(task_runner=runner)(run)
    return result


def _refuse_mistakes(run: "RunConfig") -> None:
    from flows.checks import find_mistakes

    if mistakes := find_mistakes(run):
        raise ConfigError(
            f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''} found:\n\n"
            + "\n\n".join(str(m) for m in mistakes)
        )


@app.command(rich_help_panel=_ALL)
def demo(
    image: Annotated[
        bool, typer.Option("--image", help="Pictures: a text-to-image model learns a style.")
    ] = False,
    root: Root = None,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Adapt a small language model to cancer texts; with --image, a small one of pictures.

    A tenth of the texts, or 20 drawings of another artist's style. Uses the backbones, corpora and
    adaptation data that come with the repository.
    """
    kind = "image" if image else "text"
    config = Path(__file__).parent.parent / "examples" / kind / "demo.yaml"
    if not config.is_file():
        raise ConfigError(
            "expected the examples of the repository, found none",
            where=str(config),
            remedy="run the demo from a clone of the repository",
        )
    _run("albat", str(config), root, device, verbose)


@app.command(rich_help_panel=_ALL)
def run(
    config: ConfigPath, root: Root = None, device: Device = None, verbose: Verbose = False
) -> None:
    """Run the whole chain: corpus to report."""
    _run("albat", config, root, device, verbose)


@app.command(rich_help_panel=_STAGES)
def embed(
    config: ConfigPath, root: Root = None, device: Device = None, verbose: Verbose = False
) -> None:
    """Embed corpus and adaptation set."""
    _run("embed", config, root, device, verbose)


@app.command(rich_help_panel=_STAGES)
def index(
    config: ConfigPath, root: Root = None, device: Device = None, verbose: Verbose = False
) -> None:
    """Index the corpus for nearest-neighbour search."""
    _run("index", config, root, device, verbose)


@app.command(rich_help_panel=_STAGES)
def select(
    config: ConfigPath, root: Root = None, device: Device = None, verbose: Verbose = False
) -> None:
    """Select and weigh corpus examples."""
    _run("select", config, root, device, verbose)


@app.command(rich_help_panel=_STAGES)
def materialize(
    config: ConfigPath, root: Root = None, device: Device = None, verbose: Verbose = False
) -> None:
    """Write the weighted mixture to Parquet."""
    _run("materialize", config, root, device, verbose)


@app.command(rich_help_panel=_STAGES)
def finetune(
    config: ConfigPath, root: Root = None, device: Device = None, verbose: Verbose = False
) -> None:
    """Train the adapter on the mixture."""
    _run("finetune", config, root, device, verbose)


@app.command(rich_help_panel=_STAGES)
def evaluate(
    config: ConfigPath, root: Root = None, device: Device = None, verbose: Verbose = False
) -> None:
    """Compare all arms on the held-out documents."""
    _run("evaluate", config, root, device, verbose)


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
    from flows.console import console, show_places

    benchmark = load_efficacy(config, _overrides(root, device))
    with embedded_server() as server_answers:
        with console.status("checking inputs, starting Prefect"):
            for situation in benchmark.situations:
                _refuse_mistakes(situation.run)
            from flows.efficacy import efficacy as started
            from flows.efficacy import export_table

            server_answers()
        result = run_in_processes(started, benchmark, benchmark.parallel)
    show_places({"table": export_table(result, benchmark, f"albat bench efficacy {config}", out)})


@app.command(rich_help_panel=_LOOK)
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("albat.yaml"),
) -> None:
    """Write a commented starter configuration."""
    prepare_environment()
    from flows.config import starter_config
    from flows.console import console

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(starter_config())
    except FileExistsError as error:
        raise ConfigError(
            "the file is there already", where=str(path), remedy="name another"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"expected a place that can be written ({error.strerror})",
            where=str(path),
            remedy="name a file in a folder that is there",
        ) from error
    console.print(f"wrote [cyan]{path}[/]; set its paths, then run [bold]albat check {path}[/]")


@app.command(rich_help_panel=_LOOK)
def check(
    config: ConfigPath,
    verdict: Annotated[
        bool, typer.Option("--verdict", help="Then say whether it will pay, without fine-tuning.")
    ] = False,
    root: Root = None,
    device: Device = None,
) -> None:
    """Look for all mistakes in a configuration and its inputs, in seconds."""
    prepare_environment()
    from flows.checks import check_file
    from flows.console import console, show_error

    with console.status("checking"):
        mistakes = check_file(config, _overrides(root, device))
    for mistake in mistakes:
        show_error(mistake)
    if mistakes:
        raise typer.Exit(1)
    console.print("[green]✓[/] no mistakes found")
    if verdict:
        _show_verdict(_load(config, root, device))


def _show_verdict(run: "RunConfig") -> None:
    """Compute and print what the corpus is expected to be worth."""
    from albat_core.selecting import Selecting
    from albat_core.verdict import quick_look
    from flows.console import TerminalReporter, show_verdict

    with TerminalReporter() as reporter, stop_on_ctrl_c(reporter), reporting_to(reporter):
        chain = Selecting(quick_look(run))
        facts = chain.facts(chain.mixing)
    show_verdict(facts)


@app.command(rich_help_panel=_LOOK)
def show(
    ref: Annotated[
        str, typer.Argument(help="`stage/key`, or how a key begins; none: list all.")
    ] = "",
    root: Annotated[str, typer.Option(help="Where artifacts are kept.")] = ".albat",
    verify: Annotated[bool, typer.Option(help="Compute the files' digests again.")] = False,
) -> None:
    """Say what an artifact is: stage, config, inputs, rows, size, digests."""
    prepare_environment()
    from albat_core.artifacts import ArtifactStore
    from albat_core.errors import ArtifactError
    from flows.console import console, show_artifact

    store = ArtifactStore(root)
    if not ref:
        refs = list(store.all_refs())
        for each in refs:
            manifest = store.find(each)
            made = f"{manifest.created}  {manifest.rows:,} rows" if manifest else "incomplete"
            console.print(f"{each}  [dim]{made}[/]", soft_wrap=True)
        if not refs:
            console.print(f"no artifacts below {store.root}")
        return
    found = store.resolve(ref)
    show_artifact(found, store.manifest(found), store)
    if verify:
        if changed := store.changed_files(found):
            raise ArtifactError(
                f"expected unchanged files, {', '.join(changed)} changed",
                where=str(found),
                remedy="remove the artifact's folder and run again",
            )
        console.print("\n[green]✓[/] all digests are as the manifest says")


def main() -> None:
    """Run the command; errors that a person can act on are printed without a traceback."""
    try:
        app()
    except Interrupted:
        typer.secho("stopped: run the same command again to go on", fg="yellow", err=True)
        sys.exit(130)
    except AlbatError as error:
        from flows.console import show_error

        show_error(error)
        sys.exit(1)
    except SystemExit as end:
        if end.code == 130:  # what typer makes of Ctrl-C, without a word
            typer.secho(AT_ONCE, fg="yellow", err=True)
        raise


if __name__ == "__main__":
    main()
