"""Commands that start and stop a Prefect server and a worker, and tell it what to watch."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from albat_core.redaction import redacted
from albat_core.store import storage
from flows.cli.app import PRODUCTION, ConfigPath, Device, Root, app, load
from flows.running.own_process import prepare_environment

Folder = Annotated[
    Path, typer.Option("--folder", help="Where the server's database and the logs are kept.")
]
Server = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", help="Of this Prefect server, not of `albat up`'s."),
]
_HERE = Path(".albat-up")


@app.command(rich_help_panel=PRODUCTION)
def up(
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="Use this Prefect server rather than one of albat's own.",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the server; the next that is free. 0: any.")
    ] = 4200,
    folder: Folder = _HERE,
) -> None:
    """Start Prefect's server and a worker here, with a form for every kind of run."""
    from flows.console import console, show_places
    from flows.local.production import up as start

    with console.status("starting"):
        running, already = start(folder.resolve(), server, port)
    said = "runs already" if already else "is up"
    console.print(f"[green]✓[/] albat {said}: [bold]{running.ui}[/]")
    show_places({"logs": str(folder / "*.log"), "stop": "albat down"})


@app.command(rich_help_panel=PRODUCTION)
def down(folder: Folder = _HERE) -> None:
    """Stop what `albat up` started; runs under way are cancelled, the database is kept."""
    from flows.console import console, escape
    from flows.local.production import down as stop

    with console.status("stopping"):
        cancelled = stop(folder.resolve())
    if cancelled is None:
        console.print(f"nothing to stop: `albat up` started nothing with {escape(str(folder))}")
        return
    for name in cancelled:
        console.print(
            f"[yellow]cancelled[/] the run {escape(name)}; run again, it goes on from there"
        )
    console.print("[green]✓[/] stopped; the database is kept for the next [bold]albat up[/]")


@app.command(rich_help_panel=PRODUCTION)
def watch(
    config: ConfigPath,
    stop: Annotated[bool, typer.Option("--stop", help="Watch it no longer.")] = False,
    root: Root = None,
    device: Device = None,
    server: Server = None,
    folder: Folder = _HERE,
) -> None:
    """Select again whenever a run's adaptation data has changed, on schedule or when notified."""
    prepare_environment()
    from albat_core.runs.reselection import Watches
    from flows.checks import refuse_mistakes
    from flows.console import console
    from flows.local import deploying
    from flows.local.production import server_in_use
    from flows.places import placed

    run = placed(load(config, root, device))
    if stop:
        there = Watches(run.runtime.root).remove(run.name)
        console.print(f"{run.name} is {'no longer' if there else 'not'} watched")
        return
    with console.status("checking inputs"):
        Watches(run.runtime.root).refuse_another(run)
        api = server_in_use(folder.resolve(), server)
        refuse_mistakes(run)
        look = asyncio.run(deploying.watch(api, run))
    console.print(
        f"[green]✓[/] {run.name} is watched; its data is looked at now, by the run {look}"
    )


@app.command(rich_help_panel=PRODUCTION)
def notify(
    uri: Annotated[str, typer.Argument(help="Of the adaptation data: a path or s3:// address.")],
    server: Server = None,
    folder: Folder = _HERE,
) -> None:
    """Tell that adaptation data has changed, so that it is looked at before the next schedule."""
    from flows.local import deploying
    from flows.local.production import server_in_use

    place = storage.absolute(uri)
    asyncio.run(deploying.notify(server_in_use(folder.resolve(), server), place))
    typer.echo(f"✓ told that {redacted(place)} has changed")
