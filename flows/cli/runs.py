"""Commands that run flows in this process."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    refuse_mistakes,
)
from flows.running.own_process import embedded_server, prepare_environment, stop_on_ctrl_c

if TYPE_CHECKING:
    from albat_core.runs.config import RunConfig
    from flows.albat import FlowResult


def _run(name: str, config: str, root: str | None, device: str | None, verbose: bool) -> None:
    """Run one of the flows in this process, after looking for mistakes."""
    prepare_environment(verbose)
    from flows.console import TerminalReporter, console, show_note, show_places
    from flows.showing import show_results

    with console.status("reading the configuration"):
        run = load(config, root, device)
    with embedded_server() as server_answers:
        with console.status("checking inputs, starting Prefect"):
            refuse_mistakes(run, show_note)
            import flows.albat  # noqa: F401 - the server starts meanwhile

            server_answers()
        with TerminalReporter() as reporter, stop_on_ctrl_c(reporter):
            result = _run_flow(name, run, reporter)
    if name == "albat":
        from albat_core.stages.report import read_results
        from albat_core.store.artifacts import ArtifactStore

        show_results(read_results(ArtifactStore(run.runtime.root), result.artifact))
        show_places(result.places)
    else:
        from albat_core.store.artifacts import ArtifactStore

        place = ArtifactStore(run.runtime.root).place(result.artifact)
        show_places({result.artifact.stage: str(result.artifact), "folder": place})


def _run_flow(name: str, run: "RunConfig", reporter: Any) -> "FlowResult":
    from flows import albat as flows

    with reporting_to(reporter):
        result: FlowResult = getattr(flows, name)(run)
    return result


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
