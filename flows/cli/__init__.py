"""The `albat` command."""

import os
import signal
import sys

import typer

from albat_core.errors import AlbatError, Interrupted
from flows.cli import runs  # noqa: F401 - commands are listed in the order of these imports

# isort: split
from flows.cli import look  # noqa: F401

# isort: split
from flows.cli import models  # noqa: F401

# isort: split
from flows.cli import benchmarks  # noqa: F401

# isort: split
from flows.cli import adapters  # noqa: F401

# isort: split
from flows.cli import pruning  # noqa: F401

# isort: split
from flows.cli import production  # noqa: F401

# isort: split
from flows.cli.app import app
from flows.running.own_process import AT_ONCE, STOPPED, ServerGoneError, stop_is_unsaid


def main() -> None:
    """Run the command; errors that a person can act on are printed without a traceback."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C is
    try:
        app(prog_name="albat")  # however it was started: completion asks by this name
    except Interrupted:
        if stop_is_unsaid():
            typer.secho(STOPPED, fg="yellow", err=True)
        sys.exit(130)
    except AlbatError as error:
        from flows.console import show_error

        show_error(error)
        if isinstance(error, ServerGoneError):
            sys.stdout.flush()
            os._exit(1)  # Prefect would tell the server of each event, for minutes
        sys.exit(1)
    except SystemExit as end:
        if end.code == 130:  # what typer makes of Ctrl-C, without a word
            typer.secho(AT_ONCE, fg="yellow", err=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
