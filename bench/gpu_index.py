"""An index built and searched on the GPU, and on the CPU of the same machine: time and recall.

    python -m bench.gpu_index --rows 1000000

Vectors are those of ``bench.large_index``. Wall-clock seconds; the CPU computes with all its cores.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from albat_core.devices import device_name
from albat_core.records.indexes import load_index
from albat_core.records.vectors import load_vectors
from albat_core.search.config import IndexConfig
from albat_core.search.index import ExactSearch, recall
from albat_core.search.library import gpus
from albat_core.stages.index import build_index
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from bench.large_index import EMBEDDINGS, K, drawn, parts_of_index, write

QUERIES, NEIGHBOURS = 10_000, 200


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return wall-clock seconds of some work, and what it returns."""
    began = time.perf_counter()
    done = work()
    return time.perf_counter() - began, done


def line(root: str, kind: str, device: str) -> str:
    """Return a line of the table."""
    with tempfile.TemporaryDirectory() as own:  # where no other device has built it
        Path(own, EMBEDDINGS).symlink_to(Path(root, EMBEDDINGS))
        store, runtime = ArtifactStore(own), Runtime(root=own, device=device)
        parts = parts_of_index(ArtifactStore(root))
        built, ref = timed(lambda: build_index(parts, IndexConfig(kind=kind), 0, runtime))
        facts = store.manifest(ref).facts
        store.folder(ref)  # its digests are compared
        loaded, corpus = timed(lambda: load_index(store, ref, runtime))
        queries = corpus.space.project(drawn("queries", QUERIES))
        corpus.index.search(queries[:10], NEIGHBOURS)
        searched, found = timed(lambda: corpus.index.search(queries, NEIGHBOURS)[1])
        exact = ExactSearch(queries[:500], K, gpus(runtime))
        for part in parts:
            exact.add(corpus.space.project(load_vectors(store, part.embeddings)))
        near = recall(found[:500, :K], exact.positions)
        figures = f"{built:.1f} | {loaded:.1f} | {searched:.2f} | {near:.4f}"
        return f"| {kind} | {device} | {figures} | {facts['factory']}, {facts['probes']} |"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kinds", nargs="+", default=["flat", "ivf", "ivfpq"])
    parser.add_argument("--devices", nargs="+", default=["cuda", "cpu"])
    given = parser.parse_args()
    for device in given.devices:
        if device == "cuda" and not gpus(Runtime()):
            raise SystemExit("FAISS finds no GPU here that it was built for")
        print(f"{device}: {device_name(Runtime(device=device))}")
    print(f"{given.rows:,} rows; {QUERIES:,} queries, {NEIGHBOURS} neighbours each\n")
    print("| kind | device | build, s | load, s | search, s | recall@10 | factory, probes |")
    print("|---|---|---:|---:|---:|---:|---|")
    with tempfile.TemporaryDirectory() as root:
        write(ArtifactStore(root), given.rows)
        for kind in given.kinds:
            for device in given.devices:
                print(line(root, kind, device), flush=True)


if __name__ == "__main__":
    main()
