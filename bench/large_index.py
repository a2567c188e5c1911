"""An index that is built by groups of rows, which may be side by side: time, memory, recall.

    python -m bench.large_index --rows 10000000

Random vectors of 64 dimensions around 256 centres, and 500 others of their kind as queries. Each
step runs in a process of its own, of one thread; its memory is what it allocated at its peak,
beyond that of its imports: pages of mapped files, which the system takes back where it needs
them, are not counted.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from albat_core.records.indexes import Coded, load_index
from albat_core.records.shards import Part
from albat_core.records.vectors import VECTORS, EmbeddedPart, load_vectors
from albat_core.search.config import IndexConfig
from albat_core.search.index import ExactSearch, recall
from albat_core.search.space import Vectors
from albat_core.seeding import numpy_generator
from albat_core.stages.index import build_index, code_rows, groups, learn_cells
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime
from bench.vectors import cost

DIMENSION, CENTRES, PART, QUERIES, K = 64, 256, 50_000, 500, 10
EMBEDDINGS = "embeddings"
CONFIG = IndexConfig(kind="ivfpq")


def drawn(name: str, count: int) -> Vectors:
    """Return vectors (count, 64) around the centres."""
    centres = numpy_generator(0, "centres").standard_normal((CENTRES, DIMENSION), np.float32)
    generator = numpy_generator(0, name)
    noise = generator.standard_normal((count, DIMENSION), np.float32)
    return centres[generator.integers(CENTRES, size=count)] + noise


def write(store: ArtifactStore, rows: int) -> None:
    """Write embeddings of so many rows."""
    for start in range(0, rows, PART):
        size = min(PART, rows - start)

        def build(folder: Path, start: int = start, size: int = size) -> Built:
            np.save(folder / VECTORS, drawn(f"rows {start}", size))
            return Built(rows=size, facts={"dimension": DIMENSION, "start": start})

        store.produce(EMBEDDINGS, 0, {}, {"start": start}, build)


def parts_of_index(store: ArtifactStore) -> list[EmbeddedPart]:
    """Return what ``write`` wrote, in order."""
    made = [(store.manifest(ref), ref) for ref in store.all_refs() if ref.stage == EMBEDDINGS]
    return [
        EmbeddedPart(
            part=Part(
                shards=ArtifactRef(stage="shards", key=f"{manifest.facts['start']:032d}"),
                name="part",
                rows=manifest.rows,
                sha256="",
            ),
            embeddings=ref,
        )
        for manifest, ref in sorted(made, key=lambda its: its[0].facts["start"])
    ]


def child(step: str, root: str) -> None:
    """Do one step, those before it are found finished; print CPU seconds, MB and what was found."""
    store, runtime = ArtifactStore(root), Runtime(root=root, device="cpu")
    parts = parts_of_index(store)
    grouped = groups(parts, CONFIG, runtime)
    if step == "cells":
        with cost() as told:
            learn_cells(parts, CONFIG, 0, runtime)
        print(*told)
        return
    cells = learn_cells(parts, CONFIG, 0, runtime)
    if step.isdigit():
        with cost() as told:
            code_rows(cells, grouped[int(step)], CONFIG, runtime)
        print(*told)
        return
    coded = tuple(code_rows(cells, group, CONFIG, runtime) for group in grouped)
    if step == "index":
        with cost() as told:
            build_index(parts, CONFIG, 0, runtime, coded=Coded(cells=cells, groups=coded))
        print(*told)
        return
    ref = build_index(parts, CONFIG, 0, runtime)
    store.folder(ref)  # its digests are compared
    with cost() as told:
        corpus = load_index(store, ref, runtime)
        queries = corpus.space.project(drawn("queries", QUERIES))
        found = corpus.index.search(queries, K)[1]
    exact = ExactSearch(queries, K)
    for part in parts:
        exact.add(corpus.space.project(load_vectors(store, part.embeddings)))
    facts = store.manifest(ref).facts
    print(*told, facts["factory"], facts["probes"], facts[f"recall_at_{K}"])
    print(f"{recall(found, exact.positions):.4f}")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--child", nargs=2, metavar=("STEP", "ROOT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child)
        return
    with tempfile.TemporaryDirectory() as root:
        store, runtime = ArtifactStore(root), Runtime(root=root, device="cpu")
        write(store, given.rows)
        count = len(groups(parts_of_index(store), CONFIG, runtime))

        def done(step: str) -> list[str]:
            command = [sys.executable, "-m", "bench.large_index", "--child", step, root]
            return subprocess.check_output(command, text=True).split()

        print(f"{given.rows:,} rows, {count} groups\n")
        print("| step | CPU s | MB |\n|---|---:|---:|")
        for step, name in (
            ("cells", "learn space and cells"),
            *((str(n), f"code the rows of group {n + 1}") for n in range(count)),
            ("index", "join, and measure recall"),
            ("search", f"search {QUERIES} new queries"),
        ):
            seconds, memory, *found = done(step)
            print(f"| {name} | {float(seconds):.1f} | {float(memory):.0f} |", flush=True)
        print(f"\n{found[0]}, {found[1]} cells looked into; recall@{K} {found[2]}, {found[3]} new")


if __name__ == "__main__":
    main()
