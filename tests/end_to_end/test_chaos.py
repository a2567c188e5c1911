"""A short form of the campaign of faults, which `make chaos` does at length."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PATIENCE

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]
ROOT = Path(__file__).parents[2]

UNVERIFIED = """
import os, runpy, sys
from albat_core.store import verification

verification.wrong_files = lambda *_, **__: {}  # as if files were not held against their digests
sys.argv[0] = "chaos"
runpy.run_module("bench.chaos", run_name="__main__")
"""


def campaign(*arguments: str, program: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Do some faults in a process of its own, which can be forked."""
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AWS_"))},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )


def test_kills_and_flipped_bits_are_survived() -> None:
    done = campaign("--kills", "4", "--flips", "11", program=("-m", "bench.chaos"))
    assert done.returncode == 0, done.stderr
    assert "WRONG" not in done.stderr
    assert done.stdout.splitlines()[-1] == "| **all** | 15 | 15 | 0 | |"


def test_a_store_that_does_not_look_is_found_out() -> None:
    done = campaign("--flips", "2", program=("-c", UNVERIFIED))
    assert done.returncode > 0, done.stderr
    assert "WRONG" in done.stderr
    assert "is not what its manifest says" in done.stderr
    assert done.stdout.splitlines()[-1] == "| **all** | 2 | 0 | 2 | |"
