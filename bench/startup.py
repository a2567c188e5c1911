"""What starting costs: CPU seconds of commands that compute little, and of imports.

``python -m bench.startup`` prints medians; CPU time, as other work on the machine changes it least.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.toys import write_run

ROUNDS = 5


def cpu_seconds(command: Sequence[str], folder: str) -> float:
    """Return the CPU time of a command and all that it starts, in seconds."""
    before = os.times()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )


def main() -> None:
    """Print a table."""
    python, albat = sys.executable, [sys.executable, "-m", "flows.cli"]
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder).resolve())
        root = ["--root", str(Path(folder) / "artifacts")]
        tried = {
            "python alone": [python, "-c", "pass"],
            "import albat_core.runs.config": [python, "-c", "import albat_core.runs.config"],
            "import albat_core.runs.chain": [python, "-c", "import albat_core.runs.chain"],
            "albat --help": [*albat, "--help"],
            "albat list": [*albat, "list", *root],
            "albat show": [*albat, "show", *root],
            "albat check, a toy": [*albat, "check", str(run)],
            "albat run, a toy, all of it finished": [*albat, "run", str(run), *root],
        }
        cpu_seconds([*albat, "run", str(run), *root], folder)
        print("| | CPU seconds |\n|---|---:|")
        for name, command in tried.items():
            seconds = [cpu_seconds(command, folder) for _ in range(ROUNDS)]
            print(f"| `{name}` | {statistics.median(seconds):.2f} |")


if __name__ == "__main__":
    main()
