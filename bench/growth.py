"""A corpus of many rows from nothing to the mixture, all of it reused, and with one more file.

    python -m bench.growth --rows 1000000

Files of 10,000 short rows in words of three topics, the tests' toy model, an index that may grow.
Each run is a process of its own, of one thread; its memory is what it allocated at its peak.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from albat_core.runs.chain import Chain
from bench.vectors import cost
from flows.config import load_config
from tests.toys import TOPICS, sentences, write_jsonl, write_run

FILE = 10_000  # rows


def write_file(folder: Path, number: int) -> None:
    """Write one file of the corpus."""
    topic = [*TOPICS][number % len(TOPICS)]
    rows = [
        {"id": f"{number}-{n}", "doc": f"{number}-{n // 2}", "text": text}
        for n, text in enumerate(sentences(topic, FILE, 10 + number))
    ]
    write_jsonl(folder / "corpus" / f"{number:05d}.jsonl", rows)


def write_corpus(folder: Path, rows: int, **changes: object) -> tuple[Path, int]:
    """Write a run of the toys with a corpus of so many rows; return its file, and their count."""
    path = write_run(folder, **changes)
    for file in (folder / "corpus").iterdir():
        file.unlink()
    files = rows // FILE
    for number in range(files):
        write_file(folder, number)
    return path, files


def run(path: str) -> None:
    """Make a run's mixture; print CPU seconds and MB."""
    with cost() as told:
        _ = Chain(load_config(path)).arms.mixture("albat")
    print(*told)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--run", metavar="CONFIG", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        run(given.run)
        return
    with tempfile.TemporaryDirectory() as place:
        path, files = write_corpus(Path(place), given.rows, index={"grow": True})

        def done() -> tuple[float, float]:
            command = [sys.executable, "-m", "bench.growth", "--run", str(path)]
            seconds, memory = subprocess.check_output(command, text=True).split()[-2:]
            return float(seconds), float(memory)

        print(f"{given.rows:,} rows in {files} files\n")
        print("| | CPU s | of the first | MB |\n|---|---:|---:|---:|")
        first, memory = done()
        print(f"| from nothing to the mixture | {first:.1f} | | {memory:.0f} |", flush=True)
        for name in ("all reused, files hashed once more", "all reused"):
            seconds, memory = done()
            print(f"| {name} | {seconds:.1f} | {seconds / first:.1%} | {memory:.0f} |", flush=True)
        write_file(Path(place), files)
        seconds, memory = done()
        print(f"| one more file | {seconds:.1f} | {seconds / first:.1%} | {memory:.0f} |")


if __name__ == "__main__":
    main()
