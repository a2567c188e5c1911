"""What it takes to take embeddings that were computed elsewhere, by rows of the corpus.

    python -m bench.vectors --rows 250000 1000000

Vectors in halves of precision lie in Parquet in another order than the corpus's rows. Each step
runs in a process of its own; its memory is what it allocated at its peak, beyond that of its
imports: pages of mapped files, which the system takes back where it needs them, are not counted.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from albat_core.records.examples import Example, examples_to_table
from albat_core.records.shards import STAGE, Part
from albat_core.records.tables import write_table
from albat_core.seeding import numpy_generator
from albat_core.sources.vectors import VectorSource, find_vectors
from albat_core.stages.adopt import adopt_part, keep_vectors, match_vectors
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime

DIMENSION, PART = 64, 4096
STEPS = ("keep", "match", "take")


def allocated() -> int:
    """Return the bytes that this process has allocated, those of mapped files left out."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


@contextmanager
def cost() -> Iterator[list[float]]:
    """Give a list that gets CPU seconds, and memory at its peak in MB, of the work inside."""
    told: list[float] = []
    before = peak = allocated()
    done = threading.Event()

    def look() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, allocated())

    looking = threading.Thread(target=look)
    looking.start()
    began = time.process_time()
    try:
        yield told
    finally:
        seconds = time.process_time() - began
        done.set()
        looking.join()
        told += [seconds, max(peak - before, 0) / 1e6]


def write(folder: Path, rows: int) -> None:
    """Write a corpus's parts, and its vectors in another order."""
    generator = numpy_generator(0, "vectors")
    order = generator.permutation(rows)
    kind = pa.list_(pa.float16(), DIMENSION)
    schema = pa.schema([("id", pa.string()), ("embedding", kind)])
    with pq.ParquetWriter(folder / "vectors.parquet", schema) as writer:
        for start in range(0, rows, 1 << 16):
            some = order[start : start + (1 << 16)]
            drawn = generator.standard_normal(len(some) * DIMENSION, np.float32)
            column = pa.FixedSizeListArray.from_arrays(
                pa.array(drawn.astype(np.float16)), type=kind
            )
            writer.write_table(pa.table({"id": [f"row-{n}" for n in some], "embedding": column}))

    def build(draft: Path) -> Built:
        for number, start in enumerate(range(0, rows, PART)):
            names = [f"row-{n}" for n in range(start, min(start + PART, rows))]
            table = examples_to_table([Example(n, n, "corpus", text=n) for n in names])
            write_table(table, draft / f"{number:05d}.parquet")
        return Built(rows=rows)

    ArtifactStore(str(folder / "root")).produce(STAGE, 0, {}, {}, build)


def _parts(store: ArtifactStore) -> list[Part]:
    (ref,) = (ref for ref in store.all_refs() if ref.stage == STAGE)
    manifest = store.manifest(ref)
    left, parts = manifest.rows, []
    for file in manifest.files:
        rows = min(PART, left)
        parts.append(Part(shards=ref, name=file.path, rows=rows, sha256=file.sha256))
        left -= rows
    return parts


def child(step: str, folder: Path) -> None:
    """Do one step; those before it are found finished."""
    runtime = Runtime(root=str(folder / "root"), device="cpu")
    store = ArtifactStore(runtime.root)
    (file,) = find_vectors(VectorSource(path=str(folder / "vectors.parquet")))
    parts = _parts(store)
    rows = sum(part.rows for part in parts)

    def kept() -> ArtifactRef:
        return keep_vectors(file, runtime)

    def matched() -> ArtifactRef:
        return match_vectors(parts, [kept()], runtime)

    if step == "keep":
        with cost() as told:
            kept()
    elif step == "match":
        kept()
        with cost() as told:
            matched()
    else:
        files, matches = {0: kept()}, matched()
        with cost() as told:
            for number, part in enumerate(parts):
                adopt_part(part, "", number * PART, matches, files, runtime)
    print(f"{told[0] / rows * 1e6:.1f} {told[1]:.0f}")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--child", nargs=2, metavar=("STEP", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], Path(given.child[1]))
        return
    print(f"| rows | {' | '.join(f'{s}: CPU, µs a row | MB' for s in STEPS)} |")
    print(f"|{'---:|' * (1 + 2 * len(STEPS))}")
    for rows in given.rows:
        with tempfile.TemporaryDirectory() as name:
            write(Path(name), rows)
            cells = [f"{rows:,}"]
            for step in STEPS:
                command = [sys.executable, "-m", "bench.vectors", "--child", step, name]
                cells += subprocess.check_output(command, text=True).split()
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
