"""Kill the busiest worker of a Dask or Ray run, or the S3 server, in the middle of a run.

    python -m bench.workers --rows 200000

A corpus of ``bench.growth``, up to the mixture, by the command. First with threads; then with each
runner and a worker killed (SIGKILL) as soon as a share of the corpus is embedded; then with threads
and artifacts on S3, whose server is killed and comes back after some seconds. Keys and digests of
all artifacts are compared with those of the first.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from albat_core.store.artifacts import ArtifactStore
from bench.growth import write_corpus
from tests.end_to_end.s3_server import BUCKET, KEYS, RCLONE, Served
from tests.toys import rewrite

WORKERS = {"dask": "multiprocessing.spawn", "ray": "ray::"}
"""What the command lines of workers have in them."""
SHARE = 0.3
"""Of the corpus's files that are embedded when a worker, or the server, is killed."""
AWAY = 5.0
"""Seconds that the server is gone."""


def start(
    path: Path, root: Path | str, variables: Mapping[str, str] = {}, **runtime: object
) -> subprocess.Popen[bytes]:
    """Start a run up to its mixture."""
    settings = {"device": "cpu", "workers": 2} | {"root": str(root)} | runtime
    rewrite(path, {"runtime": settings})
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"} | dict(variables)
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


def reached(run: subprocess.Popen[bytes], root: Path, files: int) -> str:
    """Wait until a share of the corpus is embedded; return how much."""
    while embedded(root) < SHARE * files and run.poll() is None:
        time.sleep(0.05)
    return f"{embedded(root)} of {files} parts embedded"


def ended(run: subprocess.Popen[bytes]) -> str:
    """Wait for the end of a run; return what it said where it failed."""
    said = run.communicate()[1].decode(errors="replace").strip().splitlines()
    return f", exit code {run.returncode}: {said[-1] if said else ''}" if run.returncode else ""


def without_worker(path: Path, root: Path, runner: str, files: int) -> str:
    """Run with a runner, kill a worker; return when, and how the run ended."""
    run = start(path, root, runner=runner)
    then = reached(run, root, files)
    worker = busiest(run, WORKERS[runner])
    if worker is None:
        return f"no worker met{ended(run)}"
    worker.send_signal(signal.SIGKILL)
    return then + ended(run)


def without_server(path: Path, folder: Path, files: int) -> str:
    """Run with artifacts on S3, whose server is gone for a while; return as above."""
    served = folder / "served"
    (served / BUCKET).mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*free.getsockname())
    command = [str(RCLONE), "serve", "s3", "--addr", address, "--auth-key", ",".join(KEYS)]
    command += ["--config", str(folder / "none.conf"), str(served)]

    def serve() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    server = serve()
    try:
        variables = Served(served / BUCKET, f"http://{address}").variables
        run = start(path, f"s3://{BUCKET}/root", variables)
        then = reached(run, served / BUCKET / "root", files)
        server.kill()
        server.wait()
        time.sleep(AWAY)
        server = serve()
        return then + ended(run)
    finally:
        server.kill()
        server.wait()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--kinds", nargs="+", default=[*WORKERS, "s3"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path, files = write_corpus(folder, given.rows)
        began = time.monotonic()
        if start(path, folder / "threads").wait():
            raise SystemExit("the run without kills failed")
        expected = made(folder / "threads")
        print(f"{given.rows:,} rows; {len(expected)} artifacts, {time.monotonic() - began:.0f} s\n")
        print("| killed | when | s | artifacts | as without |\n|---|---|---:|---:|---|")
        for kind in given.kinds:
            began, root = time.monotonic(), folder / kind
            if kind == "s3":
                then, root = (
                    without_server(path, folder, files),
                    folder / "served" / BUCKET / "root",
                )
            else:
                then = without_worker(path, root, kind, files)
            found = made(root)
            same = "yes" if found == expected else "NO"
            seconds = time.monotonic() - began
            print(f"| {kind} | {then} | {seconds:.0f} | {len(found)} | {same} |", flush=True)


if __name__ == "__main__":
    main()
