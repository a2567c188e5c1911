"""Kill the busiest worker of a Dask or Ray run in the middle, and see whether it ends the same.

    python -m bench.workers --rows 200000

A corpus of ``bench.growth``, up to the mixture, by the command. First with threads; then with each
runner and a worker killed (SIGKILL) as soon as a share of the corpus is embedded. Keys and digests
of all artifacts are compared with those of the first.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from albat_core.store.artifacts import ArtifactStore
from bench.growth import FILE, write_file
from tests.toys import rewrite, write_run

WORKERS = {"dask": "multiprocessing.spawn", "ray": "ray::"}
"""What the command lines of workers have in them."""
SHARE = 0.3
"""Of the corpus's files that are embedded when a worker is killed."""


def start(path: Path, root: Path, **runtime: object) -> subprocess.Popen[bytes]:
    """Start a run up to its mixture."""
    settings = yaml.safe_load(path.read_text())["runtime"] | {"root": str(root)} | runtime
    rewrite(path, {"runtime": settings})
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "flows.cli", "mix", str(path)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def made(root: Path) -> dict[str, object]:
    """Return the digests of all artifacts by their name."""
    store = ArtifactStore(str(root))
    return {str(ref): store.manifest(ref).files for ref in store.all_refs()}


def embedded(root: Path) -> int:
    """Return how many parts of the corpus are embedded."""
    return len(
        [*root.glob("embeddings/*/*/manifest.json"), *root.glob("embeddings/*/manifest.json")]
    )


def busiest(run: subprocess.Popen[bytes], mark: str) -> psutil.Process | None:
    """Return the worker below a run that has computed most."""
    found = []
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            if mark in " ".join(process.cmdline()):
                found.append((process.cpu_times().user, process.pid, process))
        except psutil.Error:
            continue
    return max(found)[2] if found else None


def killed(path: Path, root: Path, runner: str, files: int) -> str:
    """Run with a runner, kill a worker; return what was killed, and how the run ended."""
    run = start(path, root, runner=runner, workers=2)
    while embedded(root) < SHARE * files and run.poll() is None:
        time.sleep(0.05)
    worker = busiest(run, WORKERS[runner])
    if worker is None:
        return f"no worker met, exit code {run.wait()}"
    then = f"{embedded(root)} of {files} parts embedded"
    worker.send_signal(signal.SIGKILL)
    said = run.communicate()[1].decode(errors="replace").strip().splitlines()
    ending = f", exit code {run.returncode}: {said[-1] if said else ''}" if run.returncode else ""
    return then + ending


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--runners", nargs="+", default=[*WORKERS])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = write_run(folder)
        for file in (folder / "corpus").iterdir():
            file.unlink()
        files = given.rows // FILE
        for number in range(files):
            write_file(folder, number)
        began = time.monotonic()
        if start(path, folder / "threads").wait():
            raise SystemExit("the run without kills failed")
        expected = made(folder / "threads")
        print(f"{given.rows:,} rows; {len(expected)} artifacts, {time.monotonic() - began:.0f} s\n")
        print("| runner | killed when | s | artifacts | as without |\n|---|---|---:|---:|---|")
        for runner in given.runners:
            began = time.monotonic()
            then = killed(path, folder / runner, runner, files)
            found = made(folder / runner)
            same = "yes" if found == expected else "NO"
            seconds = time.monotonic() - began
            print(f"| {runner} | {then} | {seconds:.0f} | {len(found)} | {same} |", flush=True)


if __name__ == "__main__":
    main()
