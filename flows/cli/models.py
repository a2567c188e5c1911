"""Commands about models as they come."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli.app import LOOK, app
from flows.running.own_process import prepare_environment


@app.command(rich_help_panel=LOOK)
def convert(
    file: Annotated[
        Path,
        typer.Argument(
            help="A language model (.gguf), or one for pictures (.safetensors).", metavar="FILE"
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="Where it is written, for `backbone.path`.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(
            "--dtype", help="Of the weights; float32 keeps what the file has.", metavar="DTYPE"
        ),
    ] = "float32",
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="A pipeline's folder of the same family, for what is not in a file of pictures: "
            "descriptions, tokenizers, scheduler. Else they come from the hub.",
            metavar="PIPELINE",
        ),
    ] = None,
) -> None:
    """Turn a model in one file into a folder that is a backbone."""
    prepare_environment()
    from albat_core.backbones import convert_file
    from flows.console import console, escape

    found = convert_file(file, folder, dtype, config)
    kept = ", ".join(f"{count} {name}" for name, count in found.types.items())
    console.print(
        f"[cyan]{escape(str(folder))}[/]: {found.parameters:,} parameters in {dtype}, of tensors "
        f"kept as {kept}; what was lost to these types stays lost",
        soft_wrap=True,
    )
