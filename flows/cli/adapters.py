"""Commands about finished adapters: list, promote, compare, push."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import ADAPTERS, app
from flows.running.own_process import prepare_environment

Name = Annotated[str, typer.Argument(help="`run`, `run/key` or `run@alias`.")]
StoreRoot = Annotated[str, typer.Option("--root", help="Where artifacts are kept.")]


@app.command("list", rich_help_panel=ADAPTERS)
def list_adapters(
    run: Annotated[str, typer.Argument(help="Of this run only.")] = "", root: StoreRoot = ".albat"
) -> None:
    """List finished adapters with what they were worth, the newest last."""
    prepare_environment()
    from albat_core.runs.registry import Registry
    from albat_core.store.artifacts import ArtifactStore
    from flows.console import console, escape
    from flows.showing import show_adapters

    registry = Registry(ArtifactStore(root))
    entries = registry.entries(run)
    if not entries:
        place = escape(ArtifactStore(root).root)
        console.print(f"no adapters below {place}; `albat run` makes one")
        return
    show_adapters(entries, registry.aliases())


@app.command(rich_help_panel=ADAPTERS)
def promote(
    name: Name,
    alias: Annotated[str, typer.Option("--as", help="The alias that moves.")] = "production",
    root: StoreRoot = ".albat",
) -> None:
    """Let an alias mean this adapter from now on."""
    prepare_environment()
    from albat_core.runs.registry import Registry
    from albat_core.store.artifacts import ArtifactStore
    from flows.console import console, escape

    entry = Registry(ArtifactStore(root)).promote(name, alias)
    moved, to = escape(f"{entry.run}@{alias}"), escape(entry.name)
    console.print(f"[cyan]{moved}[/] is now [cyan]{to}[/]")


@app.command(rich_help_panel=ADAPTERS)
def diff(first: Name, second: Name, root: StoreRoot = ".albat") -> None:
    """Say how two adapters differ: settings, rows, results."""
    prepare_environment()
    from albat_core.records.mixtures import changed_rows, weighted_rows
    from albat_core.runs.registry import Registry, changed_settings
    from albat_core.store.artifacts import ArtifactStore
    from flows.showing import show_difference

    store = ArtifactStore(root)
    before, after = (Registry(store).find(name) for name in (first, second))
    rows = changed_rows(*(weighted_rows(store, each.mixture) for each in (before, after)))
    show_difference(before, after, changed_settings(before.config, after.config), rows)


@app.command(rich_help_panel=ADAPTERS)
def push(
    name: Name,
    hub_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hub.")],
    public: Annotated[
        bool, typer.Option("--public", help="A repository that is made is seen by everybody.")
    ] = False,
    dry_run: Annotated[
        Path | None,
        typer.Option(
            "--dry-run",
            metavar="FOLDER",
            help="Write what would be uploaded there; upload nothing.",
        ),
    ] = None,
    root: StoreRoot = ".albat",
) -> None:
    """Upload an adapter to the Hugging Face Hub, with a card of data, mixture and results."""
    prepare_environment()
    from albat_core.runs import pushing
    from albat_core.runs.registry import Registry
    from albat_core.store.artifacts import ArtifactStore
    from flows.console import console, escape

    store = ArtifactStore(root)
    entry = Registry(store).find(name)
    if dry_run is not None:
        pushing.write_folder(store, entry, dry_run)
        console.print(f"wrote [cyan]{escape(str(dry_run))}[/]; nothing is uploaded")
        return
    with console.status("uploading"):
        place = pushing.push(store, entry, hub_id, private=not public)
    console.print(f"[cyan]{escape(entry.name)}[/] is at [cyan]{escape(place)}[/]")
