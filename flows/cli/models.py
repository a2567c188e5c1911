"""Commands about models as they come."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli.app import LOOK, app
from flows.running.own_process import prepare_environment


@app.command(rich_help_panel=LOOK)
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="A language model.")],
    folder: Annotated[Path, typer.Argument(help="Where it is written, for `backbone.path`.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Of the weights; float32 keeps what the file has.", metavar="DTYPE"),
    ] = "float32",
) -> None:
    """Turn a GGUF file into a folder that is a backbone: weights as numbers, and the tokenizer."""
    prepare_environment()
    from albat_core.backbones.language.gguf import convert_gguf
    from flows.console import console, escape

    found = convert_gguf(file, folder, dtype)
    kept = ", ".join(f"{count} {name}" for name, count in found.types.items())
    console.print(
        f"[cyan]{escape(str(folder))}[/]: {found.parameters:,} parameters in {dtype}, of tensors "
        f"kept as {kept}; what quantization lost of them stays lost",
        soft_wrap=True,
    )
