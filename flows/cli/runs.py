"""Commands that run flows in this process."""

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from albat_core.errors import AlbatError
from albat_core.progress import reporting_to
from flows.cli.app import (
    ALL,
    STAGES,
    ConfigPath,
    Device,
    Root,
    Verbose,
    app,
    load,
)
from flows.running.own_process import (
    embedded_server,
    named_server,
    prepare_environment,
    stop_on_ctrl_c,
)

if TYPE_CHECKING:
    from albat_core.runs.config import RunConfig
    from albat_core.runs.goals import Goal, Outcome


def _run(goal: "Goal", config: str, root: str | None, device: str | None, verbose: bool) -> None:
    """Run one of the flows in this process, unless all of it is finished."""
    prepare_environment(verbose)
    from flows.console import console, show_places
    from flows.showing import show_results

    with console.status("reading the configuration"):
        run = load(config, root, device)
    outcome = _find(goal, run) or _compute(goal, run)
    from albat_core.store.artifacts import ArtifactStore

    store = ArtifactStore(run.runtime.root)
    if goal == "albat":
        from albat_core.stages.report import read_results

        show_results(read_results(store, outcome.artifact))
        show_places(outcome.places)
    else:
        folder = store.place(outcome.artifact)
        show_places({outcome.artifact.stage: str(outcome.artifact), "folder": folder})


def _find(goal: "Goal", run: "RunConfig") -> "Outcome | None":
    """Return what a run came to where all is finished: that needs no server of its own."""
    from albat_core.runs.goals import find_reached
    from flows.console import Held, TerminalReporter, console

    held, found = Held(), None
    with console.status("looking for what is finished"), reporting_to(held):
        if named_server() is None:  # else the run is wanted there
            with suppress(AlbatError):  # told with all other mistakes
                found = find_reached(goal, run)
    if found:
        with TerminalReporter() as reporter:
            held.tell(reporter)
    return found


def _compute(goal: "Goal", run: "RunConfig") -> "Outcome":
    """Run a flow, after looking for mistakes."""
    from flows.console import TerminalReporter, console, show_note

    with embedded_server() as server_answers:
        with console.status("checking inputs, starting Prefect"):
            from flows.checks import refuse_mistakes

            refuse_mistakes(run, show_note)
            from flows.albat import FLOWS  # the server starts meanwhile

            server_answers()
        with (
            TerminalReporter() as reporter,
            stop_on_ctrl_c(reporter),
            reporting_to(reporter),
        ):
            return FLOWS[goal](run)


@app.command(rich_help_panel=ALL)
def demo(
    image: Annotated[
        bool, typer.Option("--image", help="Pictures: a text-to-image model learns a style.")
    ] = False,
    root: Root = None,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """Adapt a small language model to health topics; with --image, one of pictures.

    A tenth of the texts, or 20 glyphs of a handwriting. Backbones, corpora and adaptation data
    come with the repository, or with `albat[demo]`; nothing is fetched.
    """
    from flows.starting import demo_config

    _run("albat", demo_config("image" if image else "text"), root, device, verbose)


@app.command(rich_help_panel=ALL)
def run(
    config: ConfigPath, root: Root = None, device: Device = None, verbose: Verbose = False
) -> None:
    """Run the whole chain: corpus to report."""
    _run("albat", config, root, device, verbose)


@app.command(rich_help_panel=STAGES)
def embed(
    config: ConfigPath, root: Root = None, device: Device = None, verbose: Verbose = False
) -> None:
    """Embed corpus and adaptation set."""
    _run("embed", config, root, device, verbose)


@app.command(rich_help_panel=STAGES)
def index(
    config: ConfigPath, root: Root = None, device: Device = None, verbose: Verbose = False
) -> None:
    """Index the corpus for nearest-neighbour search."""
    _run("index", config, root, device, verbose)


@app.command(rich_help_panel=STAGES)
def select(
    config: ConfigPath, root: Root = None, device: Device = None, verbose: Verbose = False
) -> None:
    """Select and weigh corpus examples."""
    _run("select", config, root, device, verbose)


@app.command(rich_help_panel=STAGES)
def mix(
    config: ConfigPath, root: Root = None, device: Device = None, verbose: Verbose = False
) -> None:
    """Write the weighted mixture to Parquet."""
    _run("mix", config, root, device, verbose)


@app.command(rich_help_panel=STAGES)
def finetune(
    config: ConfigPath, root: Root = None, device: Device = None, verbose: Verbose = False
) -> None:
    """Train the adapter on the mixture."""
    _run("finetune", config, root, device, verbose)


@app.command(rich_help_panel=STAGES)
def evaluate(
    config: ConfigPath, root: Root = None, device: Device = None, verbose: Verbose = False
) -> None:
    """Compare all arms on the held-out documents."""
    _run("evaluate", config, root, device, verbose)
