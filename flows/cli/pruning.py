"""The command that removes what is needed no longer."""

from typing import Annotated

import typer

from flows.cli.app import ADAPTERS, app
from flows.running.own_process import prepare_environment


@app.command(rich_help_panel=ADAPTERS)
def prune(
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove it; else it is only said what would go.")
    ] = False,
    older: Annotated[
        float,
        typer.Option(
            "--older", metavar="DAYS", min=0, help="What changed within so many days stays."
        ),
    ] = 1.0,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            metavar="N",
            min=1,
            help="Of each run, keep the last N adapters, and those that an alias means. "
            "[default: all]",
        ),
    ] = None,
    copies: Annotated[
        float,
        typer.Option(
            "--copies",
            metavar="DAYS",
            min=0,
            help="Copies of remote artifacts on this machine stay if used within so many days.",
        ),
    ] = 30.0,
    root: Annotated[str, typer.Option("--root", help="Where artifacts are kept.")] = ".albat",
) -> None:
    """Remove results that no finished run needs, and what interrupted work left behind."""
    prepare_environment()
    from albat_core.pruning import DAY, Keeping, Pruning
    from albat_core.store.artifacts import ArtifactStore
    from flows.console import console, escape, in_bytes, show_note

    store = ArtifactStore(root)
    pruning = Pruning(store, Keeping(older * DAY, keep, copies * DAY))
    found = pruning.find()
    count = size = 0
    for each in pruning.remove(found) if yes else found:
        line = f"{in_bytes(each.bytes):>9}  {each.kind:<15}  {each.place}"
        console.print(escape(line), soft_wrap=True)
        count, size = count + 1, size + each.bytes
    if not count:
        console.print(f"nothing to remove below {escape(store.root)}", soft_wrap=True)
    elif yes:
        console.print(f"[green]✓[/] removed {count:,}, {in_bytes(size)}")
    else:
        console.print(f"{count:,} would go, {in_bytes(size)}: [bold]albat prune --yes[/]")
    for note in pruning.notes:
        show_note(note)
