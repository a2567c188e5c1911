"""What grows with the corpus, and how fast: reruns, many parts on S3, and the index.

``python -m bench.scale reruns`` runs the chain on toys twice, ``storage`` looks for finished
artifacts on an S3 server of this machine, and ``index`` builds and grows indexes of random
vectors. Each prints a table; a growth exponent is that of time between a line and the one before.
``search`` says what a process allocates that loads an index with cells and searches it: where it
lies, and read whole, as it is to grow.
"""

import argparse
import asyncio
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import s3fs

from albat_core.records import indexes
from albat_core.records.shards import Part
from albat_core.records.vectors import STAGE, VECTORS, EmbeddedPart, load_vectors
from albat_core.runs.chain import Chain
from albat_core.search.config import IndexConfig
from albat_core.search.index import ExactSearch, VectorIndex
from albat_core.search.space import unit
from albat_core.seeding import numpy_generator
from albat_core.stages import index as index_stage
from albat_core.stages.index import build_index
from albat_core.store import digests, verification
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime
from bench.vectors import allocated
from flows.config import load_config
from tests.end_to_end.s3_server import BUCKET, served
from tests.toys import sentences, write_jsonl, write_run

DIMENSION, CENTRES = 64, 256
ONE_BY_ONE = 100  # artifacts that are looked for singly, to compare
WAYS = ("together", "noted")
PART = 50_000  # vectors


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Return wall-clock and CPU seconds of some work."""
    began, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - busy


def table(head: Sequence[str], lines: Iterator[tuple[float, Sequence[str], float]]) -> None:
    """Print lines as a table, with the exponent by which time grows.

    Args:
        head: names of columns.
        lines: each with its size, its cells and the seconds that grow.
    """
    print(f"| {' | '.join(head)} | exponent |\n|{'---:|' * (len(head) + 1)}", flush=True)
    before: tuple[float, float] | None = None
    for size, cells, seconds in lines:
        grows = "" if before is None else f"{_exponent(before, (size, seconds)):.2f}"
        print(f"| {' | '.join(cells)} | {grows} |", flush=True)
        before = size, seconds


def _exponent(one: tuple[float, float], other: tuple[float, float]) -> float:
    return math.log(other[1] / one[1]) / math.log(other[0] / one[0])


def reruns(sizes: Sequence[int]) -> Iterator[tuple[float, Sequence[str], float]]:
    """Yield what a run up to the index costs, the first time and when all of it is there."""
    for rows in sizes:
        with tempfile.TemporaryDirectory() as place:
            os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
            folder = Path(place, "toy")
            path = write_run(folder)
            for name in ("plants", "ships"):
                texts = sentences(name, rows // 2, 5)
                each = [
                    {"id": f"{name}-{n}", "doc": str(n), "text": t} for n, t in enumerate(texts)
                ]
                write_jsonl(folder / "corpus" / f"{name}.jsonl", each)
            first = timed(lambda: Chain(load_config(str(path))).inputs.index)  # noqa: B023
            time.sleep(digests._SETTLED)
            timed(lambda: Chain(load_config(str(path))).inputs.index)  # noqa: B023 - notes digests
            for known in (digests._notes.cache_clear, verification._known.clear):
                known()  # as another process
            again = timed(lambda: Chain(load_config(str(path))).inputs.index)  # noqa: B023
        cells = (f"{rows:,}", f"{first[1]:.1f}", f"{again[1]:.2f}")
        yield rows, cells, again[1]


@contextmanager
def slow_storage(delay: float) -> Iterator[Counter[str]]:
    """Let each request to S3 take so many seconds more; gives how many there were, by kind."""
    asked: Counter[str] = Counter()
    call = s3fs.S3FileSystem._call_s3

    async def slowly(self: s3fs.S3FileSystem, method: str, *args: Any, **kwargs: Any) -> Any:
        asked[method] += 1
        await asyncio.sleep(delay)
        return await call(self, method, *args, **kwargs)

    s3fs.S3FileSystem._call_s3 = slowly
    try:
        yield asked
    finally:
        s3fs.S3FileSystem._call_s3 = call


def storage(sizes: Sequence[int], delay: float) -> Iterator[tuple[float, Sequence[str], float]]:
    """Yield how long finished artifacts on S3 take to be found, together and one by one."""
    for count in sizes:
        with tempfile.TemporaryDirectory() as place, served(Path(place)) as server:
            os.environ.update(server.variables)
            s3fs.S3FileSystem.clear_instance_cache()
            made = _embedded_parts(ArtifactStore(f"{server.folder}/root"), count)
            with slow_storage(delay) as asked:
                remote = ArtifactStore(f"s3://{BUCKET}/root")
                costs = []
                for _ in WAYS:
                    asked.clear()
                    wall, busy = timed(lambda: remote.find_all(made))  # noqa: B023
                    costs.append((asked.total() / count, wall, busy))
                asked.clear()
                few = made[:ONE_BY_ONE]
                single = timed(lambda: [remote.find(ref) for ref in few])[0]  # noqa: B023
        cells = (
            f"{count:,}",
            f"{asked.total() / len(few):.2f}",
            f"{single / len(few) * count:.0f}",
            *(f"{requests:.3f} | {wall:.1f} | {busy:.1f}" for requests, wall, busy in costs),
        )
        yield count, cells, costs[-1][1]


def _embedded_parts(store: ArtifactStore, count: int) -> list[ArtifactRef]:
    """Make artifacts as embeddings of parts are, but for their size."""

    def build(folder: Path) -> Built:
        np.save(folder / VECTORS, np.zeros((4, 4), np.float32))
        return Built(rows=4, facts={"dimension": 4, "passes": 100})

    return [
        store.produce(STAGE, 2, {}, {"part": f"{n:064d}", "backbone": {"content": "0" * 32}}, build)
        for n in range(count)
    ]


def built_and_grown(
    sizes: Sequence[int], kind: str
) -> Iterator[tuple[float, Sequence[str], float]]:
    """Yield what building an index costs, adding a hundredth of its rows, and measuring recall."""
    for rows in sizes:
        with tempfile.TemporaryDirectory() as root:
            runtime = Runtime(root=root, device="cpu")
            parts = _vectors(ArtifactStore(root), rows)
            config = IndexConfig(kind=kind)
            measuring, adding = _Clock(), _Clock()
            with (
                measuring.on(ExactSearch, "add"),
                measuring.on(index_stage, "enough"),
                adding.on(VectorIndex, "add"),
            ):
                made: list[ArtifactRef] = []
                whole = parts[:-1]
                built = timed(lambda: made.append(build_index(whole, config, 0, runtime)))  # noqa: B023
            grown = timed(lambda: build_index(parts, config, 0, runtime, made[0]))  # noqa: B023
            facts = ArtifactStore(root).manifest(made[0]).facts
            raw = _raw(ArtifactStore(root), whole, facts)
        cells = (
            f"{rows:,}",
            facts["factory"],
            f"{built[1]:.1f}",
            f"{raw:.1f}",
            f"{adding.seconds:.2f}",
            f"{measuring.seconds / built[1]:.1%}",
            f"{facts['recall_at_10']:.3f}",
            f"{grown[1]:.2f}",
        )
        yield rows, cells, adding.seconds


def _raw(store: ArtifactStore, parts: Sequence[EmbeddedPart], facts: Mapping[str, Any]) -> float:
    """Return the CPU seconds of FAISS alone, with all vectors in memory: to train and to add."""
    import faiss

    vectors = unit(np.concatenate([load_vectors(store, part.embeddings) for part in parts]))
    index = faiss.index_factory(DIMENSION, facts["factory"], faiss.METRIC_INNER_PRODUCT)
    sample = numpy_generator(0, "raw").permutation(len(vectors))[: 64 * facts["cells"]]

    def build() -> None:
        index.train(vectors[sample])
        index.add(vectors)

    return timed(build)[1]


class _Clock:
    """CPU seconds that functions take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def on(self, owner: Any, name: str) -> Iterator[None]:
        """Count the calls of one, while the context lasts."""
        function = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - began

        setattr(owner, name, counted)
        try:
            yield
        finally:
            setattr(owner, name, function)


def _vectors(store: ArtifactStore, rows: int) -> list[EmbeddedPart]:
    """Make embeddings of so many rows around centres, and of a hundredth more as the last part."""
    generator = numpy_generator(0, "scale")
    centres = generator.standard_normal((CENTRES, DIMENSION), dtype=np.float32)
    sizes = [min(PART, rows - start) for start in range(0, rows, PART)]
    parts = []
    for number, size in enumerate([*sizes, rows // 100]):

        def build(folder: Path, size: int = size) -> Built:
            noise = generator.standard_normal((size, DIMENSION), dtype=np.float32)
            np.save(folder / VECTORS, centres[generator.integers(CENTRES, size=size)] + noise)
            return Built(rows=size, facts={"dimension": DIMENSION})

        made = store.produce(STAGE, 2, {}, {"part": number}, build)
        shards = ArtifactRef(stage="shards", key=f"{number:032d}")
        part = Part(shards=shards, name="part", rows=size, sha256="")
        parts.append(EmbeddedPart(part=part, embeddings=made))
    return parts


def searched(root: str, way: str) -> None:
    """Load the index below a root and search it; print MB allocated for that and CPU seconds."""
    runtime, store = Runtime(root=root, device="cpu"), ArtifactStore(root)
    (ref,) = (ref for ref in store.all_refs() if ref.stage == indexes.STAGE)
    queries = numpy_generator(0, "queries").standard_normal((200, DIMENSION), dtype=np.float32)
    store.folder(ref)  # its digests are compared
    before, began = allocated(), time.process_time()
    corpus = indexes.load_index(store, ref, runtime, to_grow=way == "whole")
    corpus.index.search(corpus.space.project(queries), 10)
    seconds = time.process_time() - began
    print(f"{(allocated() - before) / 1e6:.1f} {seconds:.2f}")


def search(sizes: Sequence[int]) -> Iterator[tuple[float, Sequence[str], float]]:
    """Yield what a search in a process of its own allocates, and its CPU seconds."""
    for rows in sizes:
        with tempfile.TemporaryDirectory() as root:
            store, runtime = ArtifactStore(root), Runtime(root=root, device="cpu")
            build_index(_vectors(store, rows), IndexConfig(kind="ivf", cells=256), 0, runtime)
            cells: list[str] = []
            for way in ("mapped", "whole"):
                command = [sys.executable, "-m", "bench.scale", "search", "--child", root, way]
                cells += subprocess.check_output(command, text=True).split()
            yield rows, [f"{rows:,}", *cells], float(cells[1])


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["reruns", "storage", "index", "search"])
    parser.add_argument("--sizes", type=int, nargs="+", help="rows, or parts on storage")
    parser.add_argument("--kinds", nargs="+", default=["ivf", "ivfpq"], help="of index")
    parser.add_argument("--delay", type=float, default=0.02, help="seconds more of a request")
    parser.add_argument("--child", nargs=2, metavar=("ROOT", "WAY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    head: tuple[str, ...]
    if given.child:
        searched(*given.child)
    elif given.what == "search":
        head = ("rows", "mapped: MB", "CPU s", "whole: MB", "CPU s")
        table(head, search(given.sizes or [200_000]))
    elif given.what == "reruns":
        head = ("rows", "first, CPU s", "all reused, CPU s")
        table(head, reruns(given.sizes or [10_000, 100_000]))
    elif given.what == "storage":
        each = ("requests", "s", "CPU s")
        head = ("parts", "singly: requests", "s", *(f"{w}: {n}" for w in WAYS for n in each))
        table(head, storage(given.sizes or [300, 3_000], given.delay))
    else:
        head = (
            *("rows", "index", "build, CPU s", "FAISS alone", "of it adding", "measuring recall"),
            "recall@10",
            "1% more rows, CPU s",
        )
        for kind in given.kinds:
            table(head, built_and_grown(given.sizes or [10_000, 100_000], kind))


if __name__ == "__main__":
    main()
