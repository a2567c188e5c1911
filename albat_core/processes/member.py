"""What a process of a group runs: it joins, calls the function that it is told, and says so.

Started by ``launching`` as ``python -m albat_core.processes.member DESCRIPTOR``, where the
descriptor is its end of a pipe of JSON.
"""

import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from queue import Queue
from typing import Any

from pydantic import ConfigDict, validate_call
from pydantic_core import to_jsonable_python

from albat_core.devices import keep_device, use_cores
from albat_core.errors import AlbatError, Interrupted
from albat_core.processes.group import joined
from albat_core.progress import Advance, Drawn, report_to

_PATIENCE = 5.0  # seconds to come to the next step and keep where it is


class Relay:
    """Tells whoever started this process of its progress.

    Args:
        pipe: to them.
        shown: whether it is told; one process of a group is.
    """

    def __init__(self, pipe: Connection, shown: bool) -> None:
        self._pipe = pipe
        self._shown = shown
        self._go_on: Queue[bool] = Queue()

    def say(self, **message: Any) -> None:
        """Say something."""
        self._pipe.send_bytes(json.dumps(message).encode())

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Show work, see ``Reporter``."""
        if not self._shown:
            yield lambda _done: None
            return

        def advance(done: int) -> None:
            if not self._ask(advance=done):
                raise Interrupted("stopped", remedy="run the same command again to go on")

        self._ask(track=[label, total, unit])
        yield advance
        self._ask(close=True)

    def _ask(self, **message: Any) -> bool:
        """Say something, and return whether to go on: no step more is done than was wanted."""
        try:
            self.say(**message)
        except OSError:  # whoever started this process is gone
            return False
        return self._go_on.get()

    def announce(
        self, stage: str, rows: int, seconds: float, reused: bool, notes: Sequence[str]
    ) -> None:
        """Tell nobody: whoever started this process announces what comes of it."""

    def show(self, label: str, step: int, drawn: Sequence[Drawn]) -> None:
        """Show nobody: what is drawn on the way is not sent between processes."""

    def follow(self) -> None:
        """Hear answers; end where who started this process is gone."""
        while True:
            try:
                self._go_on.put(bool(json.loads(self._pipe.recv_bytes())["go_on"]))
            except (EOFError, OSError):
                break
        self._go_on.put(False)
        time.sleep(_PATIENCE)
        os._exit(130)  # files are whole or not there


def main() -> None:
    """Call the function, with this process' group and device, and say what came of it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # whoever started this process ends it
    pipe = Connection(int(sys.argv[1]))
    told = json.loads(pipe.recv_bytes())
    group, device = told["group"], told["group"]["device"]
    relay = Relay(pipe, shown=group["rank"] == 0)
    report_to(relay)
    threading.Thread(target=relay.follow, daemon=True).start()
    keep_device(device)
    use_cores(int(os.environ["OMP_NUM_THREADS"]))
    module, _, name = told["function"].partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
        call = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(function)
        with joined(**group) as its:
            made = call(its, **told["arguments"])
    except Exception as error:
        relay.say(failed=_described(error))
    else:
        relay.say(made=to_jsonable_python(made, inf_nan_mode="constants"))
    os._exit(0)  # taking the interpreter down takes long, and could fail where others are gone


def _described(error: Exception) -> dict[str, str]:
    said = {"kind": type(error).__name__, "message": str(error), "trace": traceback.format_exc()}
    if isinstance(error, AlbatError):
        said |= {"message": error.message, "where": error.where, "remedy": error.remedy}
    return said


if __name__ == "__main__":
    main()
