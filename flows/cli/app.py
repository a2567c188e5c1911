"""The command's application, and the options that its commands share."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from albat_core.runs.config import RunConfig

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Find, in a backbone's own pretraining data, the examples that help your small "
    "adaptation set; fine-tune on the weighted mixture; learn what it was worth.\n\n"
    "Start with **albat demo**, then **albat init** and **albat check**. Everything that is "
    "computed is kept and found again: a command that was stopped goes on where it was.",
)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"albat {version('albat')}")
        raise typer.Exit


@app.callback()
def whole_command(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Say which version this is.", callback=_say_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Take the options that belong to no command."""


ALL, STAGES, LOOK = "The whole chain", "One stage, with what it needs", "Look and prepare"
ADAPTERS = "Finished adapters"
PRODUCTION = "Forms and schedules, in a browser"

bench = typer.Typer(no_args_is_help=True, help="Measure what selection is worth.")
app.add_typer(bench, name="bench", rich_help_panel=LOOK)

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="The run's configuration.")]
Root = Annotated[
    str | None, typer.Option(help="Folder or s3:// prefix for artifacts. [config: .albat]")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"] | None,
    # named, as some versions of typer take the name of a value for the option's
    typer.Option("--device", help="auto, cpu or cuda. [config: auto]", metavar="DEVICE"),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show Prefect's logs.")]


def load(config: str, root: str | None, device: str | None) -> "RunConfig":
    """Read a run's configuration."""
    from flows.config import load_config

    return load_config(config, overrides(root, device))


def overrides(root: str | None, device: str | None) -> dict[str, str]:
    """Return the values of ``runtime`` that options give."""
    given = {"root": root, "device": device}
    return {k: v for k, v in given.items() if v is not None}
