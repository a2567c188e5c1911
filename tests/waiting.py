"""Waiting for what other threads and processes do, however busy the machine is."""

import time
from collections.abc import Callable

PATIENCE = 300.0  # seconds after which what is waited for will not come


def wait_until(condition: Callable[[], object], pause: float = 0.02) -> None:
    """Wait until a condition holds; fail once it will not."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(pause)
