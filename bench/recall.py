"""What each kind of index finds on queries that are not in it, beside what it says it finds.

Of the embeddings of a run's corpus some are kept back as queries, and the others are indexed:
``python -m bench.recall CONFIG`` prints a table.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from albat_core.records.indexes import load_index
from albat_core.records.shards import Part
from albat_core.records.vectors import STAGE, VECTORS, EmbeddedPart, load_vectors
from albat_core.runs.chain import Chain
from albat_core.search.config import IndexConfig
from albat_core.search.index import ExactSearch, recall
from albat_core.search.space import Vectors
from albat_core.seeding import numpy_generator
from albat_core.stages.index import build_index
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime
from flows.config import load_config

QUERIES, K = 500, 10
KINDS = ("flat", "ivf", "ivfpq")


def embeddings(path: str) -> Vectors:
    """Return a run's corpus embeddings (n, d), each once, in random order."""
    chain = Chain(load_config(path))
    store = ArtifactStore(chain.config.runtime.root)
    found = np.concatenate(
        [np.asarray(load_vectors(store, part.embeddings)) for part in chain.inputs.embeddings]
    )
    return numpy_generator(0, "recall").permutation(np.unique(found, axis=0))


def line(kind: str, vectors: Vectors, queries: Vectors) -> str:
    """Return what an index of this kind costs and finds."""
    with tempfile.TemporaryDirectory() as root:
        runtime = Runtime(root=root, device="cpu")
        store = ArtifactStore(root)

        def build(folder: Path) -> Built:
            np.save(folder / VECTORS, vectors)
            return Built(rows=len(vectors), facts={"dimension": vectors.shape[1]})

        made = store.produce(STAGE, 1, {}, {}, build)
        shards = ArtifactRef(stage="shards", key="none")
        part = Part(shards=shards, name="part", rows=len(vectors), sha256="")
        began = time.process_time()
        built = build_index(
            [EmbeddedPart(part=part, embeddings=made)], IndexConfig(kind=kind), 0, runtime
        )
        building = time.process_time() - began
        facts = store.manifest(built).facts
        corpus = load_index(store, built, runtime)
        asked = corpus.space.project(queries)
        exact = ExactSearch(asked, K)
        exact.add(corpus.space.project(vectors))
        began = time.process_time()
        found = corpus.index.search(asked, K)[1]
        searching = time.process_time() - began
        corpus.index.compare_with(None)
        codes = recall(corpus.index.search(asked, K)[1], exact.positions)
    cells = (
        facts["factory"],
        f"{building:.1f}",
        f"{facts['probes']} of {facts['cells']}" if facts["cells"] else "all",
        f"{facts[f'recall_at_{K}']:.3f}",
        f"{recall(found, exact.positions):.3f}",
        f"{codes:.3f}",
        f"{searching / len(queries) * 1e6:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    every = embeddings(sys.argv[1])
    queries, vectors = every[:QUERIES], every[QUERIES:]
    print(f"{len(vectors):,} vectors of {vectors.shape[1]} dimensions, {QUERIES} new queries\n")
    print(f"| index | build, CPU s | cells looked into | recall@{K} told | of new queries |"
          " without exact comparison | search, µs a query |")  # fmt: skip
    print("|---|---:|---:|---:|---:|---:|---:|")
    for kind in KINDS:
        print(line(kind, vectors, queries), flush=True)


if __name__ == "__main__":
    main()
