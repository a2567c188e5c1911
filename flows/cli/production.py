"""Commands that start and stop a Prefect server and a worker on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import PRODUCTION, app

Folder = Annotated[
    Path, typer.Option("--folder", help="Where the server's database and the logs are kept.")
]
_HERE = Path(".albat-up")


@app.command(rich_help_panel=PRODUCTION)
def up(
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Use this Prefect server rather than one of albat's own."),
    ] = None,
    port: Annotated[int, typer.Option(help="Of the server; the next that is free.")] = 4200,
    folder: Folder = _HERE,
) -> None:
    """Start Prefect's server and a worker here, with a form for every kind of run."""
    from flows.console import console, show_places
    from flows.production import up as start

    with console.status("starting"):
        running, already = start(folder.resolve(), server, port)
    said = "runs already" if already else "is up"
    console.print(f"[green]✓[/] albat {said}: [bold]{running.ui}[/]")
    show_places({"logs": str(folder / "*.log"), "stop": "albat down"})


@app.command(rich_help_panel=PRODUCTION)
def down(folder: Folder = _HERE) -> None:
    """Stop what `albat up` started; runs under way are cancelled, the database is kept."""
    from flows.console import console
    from flows.production import down as stop

    with console.status("stopping"):
        cancelled = stop(folder.resolve())
    if cancelled is None:
        console.print(f"nothing to stop: `albat up` started nothing with {folder}")
        return
    for name in cancelled:
        console.print(f"[yellow]cancelled[/] the run {name}; run again, it goes on from there")
    console.print("[green]✓[/] stopped; the database is kept for the next [bold]albat up[/]")
