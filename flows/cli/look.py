"""Commands that look at configurations and artifacts, and prepare them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from albat_core.progress import reporting_to
from flows.cli.app import LOOK, ConfigPath, Device, Root, app, load, overrides
from flows.running.own_process import STOPS_WITHIN, prepare_environment, stop_on_ctrl_c

if TYPE_CHECKING:
    from albat_core.runs.config import RunConfig


@app.command(rich_help_panel=LOOK)
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("albat.yaml"),
    minimal: Annotated[
        bool, typer.Option("--minimal", help="Only what must be set, without the defaults.")
    ] = False,
    image: Annotated[
        bool, typer.Option("--image", help="For pictures and a text-to-image model.")
    ] = False,
) -> None:
    """Write a commented starter configuration."""
    prepare_environment()
    from flows.console import console, escape
    from flows.starting import SCHEMA, write_starter

    write_starter(path, minimal=minimal, image=image)
    file, schema = escape(str(path)), escape(str(path.with_name(SCHEMA)))
    console.print(
        f"wrote [cyan]{file}[/], and [cyan]{schema}[/] for editors; set its paths, "
        f"then run [bold]albat check {file}[/]"
    )


@app.command(rich_help_panel=LOOK)
def check(
    config: ConfigPath,
    verdict: Annotated[
        bool, typer.Option("--verdict", help="Then say whether it will pay, without fine-tuning.")
    ] = False,
    cost: Annotated[
        bool, typer.Option("--cost", help="Then say what the run will take, stage by stage.")
    ] = False,
    root: Root = None,
    device: Device = None,
) -> None:
    """Look for all mistakes in a configuration and its inputs, in seconds."""
    prepare_environment()
    from flows.checks import check_file
    from flows.console import console, show_error, show_note

    with console.status("checking"):
        mistakes = check_file(config, overrides(root, device), show_note)
    for mistake in mistakes:
        show_error(mistake)
    if mistakes:
        raise typer.Exit(1)
    console.print("[green]✓[/] no mistakes found")
    if cost:
        _show_costs(load(config, root, device))
    if verdict:
        _show_verdict(load(config, root, device))


def _show_costs(run: "RunConfig") -> None:
    """Measure and print what each stage of a run will take."""
    from albat_core.devices import device_name
    from albat_core.runs.cost import expected_costs
    from flows.console import console
    from flows.showing import show_costs

    with console.status("measuring batches"):
        costs = expected_costs(run)
    show_costs(costs, device_name(run.runtime))


def _show_verdict(run: "RunConfig") -> None:
    """Compute and print what the corpus is expected to be worth."""
    from albat_core.runs.chain import Chain
    from albat_core.runs.quick_look import quick_look
    from albat_core.store.artifacts import ArtifactStore
    from flows.console import TerminalReporter
    from flows.showing import show_verdict

    with (
        ArtifactStore(run.runtime.root).in_use(),
        TerminalReporter() as reporter,
        stop_on_ctrl_c(reporter, STOPS_WITHIN),
        reporting_to(reporter),
    ):
        chain = Chain(quick_look(run))
        facts = chain.facts(chain.estimate)
    show_verdict(facts)


@app.command(rich_help_panel=LOOK)
def show(
    ref: Annotated[
        str,
        typer.Argument(
            help="`stage/key`, or how a key begins; or an adapter: `run/key`, `run@alias`. "
            "None: list all."
        ),
    ] = "",
    root: Annotated[str, typer.Option(help="Where artifacts are kept.")] = ".albat",
    verify: Annotated[bool, typer.Option(help="Compute the files' digests again.")] = False,
) -> None:
    """Say what an artifact is: stage, config, inputs, rows, size, digests."""
    prepare_environment()
    from albat_core.errors import ArtifactError
    from albat_core.runs.registry import Registry
    from albat_core.store.artifacts import ArtifactStore
    from flows.console import console, escape
    from flows.showing import show_artifact

    store = ArtifactStore(root)
    if not ref:
        refs = list(store.all_refs())
        for each in refs:
            manifest = store.find(each)
            made = f"{manifest.created}  {manifest.rows:,} rows" if manifest else "incomplete"
            console.print(f"{escape(str(each))}  [dim]{made}[/]", soft_wrap=True)
        if not refs:
            console.print(f"no artifacts below {escape(store.root)}")
        return
    try:
        found = store.resolve(ref)
    except ArtifactError:
        registry = Registry(store)
        if not registry.matching(ref):
            raise
        found = registry.find(ref).adapter
    show_artifact(found, store.manifest(found), store)
    if verify:
        if changed := store.changed_files(found):
            raise ArtifactError(
                f"expected unchanged files, {', '.join(changed)} changed",
                where=str(found),
                remedy="remove the artifact's folder and run again",
            )
        console.print("\n[green]✓[/] all digests are as the manifest says")
